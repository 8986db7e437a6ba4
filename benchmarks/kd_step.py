"""What a training step with a teacher costs, beside one without and beside TRL's GKD trainer.

Runs in an environment of its own that has TRL beside torch; its trainer is used as installed:

    pip install torch==2.13.0 trl==1.16.0
    PYTHONPATH=src python -P benchmarks/kd_step.py --teacher FOLDER --data FILE

-P, because `datasets.py` beside this file would hide the package of that name from TRL. FOLDER
holds SmolLM2-135M-Instruct; FILE is conversation/sgd/train.jsonl. Each measurement is a process
of its own (benchmarks/kd_step_side.py); the ways take turns, in the other direction every other
round. What was measured stays in --work, and a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end of the tables -->"
SIDE = Path(__file__).with_name("kd_step_side.py")
SIDES = {
    "sft": "fine-tuning on text",
    "cached": "text and cached probabilities",
    "online": "teacher in the step",
    "trl": "TRL's GKD trainer",
}
ROWS = {"equal": "of one length", "real": "conversations"}
FORMATS = {
    "autocast": "Weights in float32, arithmetic in bfloat16 (autocast; the teacher in bfloat16)",
    "fp32": "All in float32",
}
COMMAND = "PYTHONPATH=src python -P benchmarks/kd_step.py --teacher FOLDER --data FILE"
HEADER = [
    "| rows | way | seconds a step, median [quartiles] | n | tokens/s | MB loaded | MB at most "
    "| added by the steps | system time | loss of the first step | of the last |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]

Figures = dict[str, Any]
"""What kd_step_side.py printed, with `round`, `side` and `rows`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="conversations, a row each")
    parser.add_argument("--work", type=Path, default=Path("runs") / "kd-step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=list(FORMATS), default="autocast")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--seconds", type=float, help="begin no measurement after so long")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "kd-step.md")
    options = parser.parse_args()
    measure(options)
    put(options.out, page(options))


def measure(options: argparse.Namespace) -> None:
    """Makes what is missing, and keeps it."""
    began, measured = time.monotonic(), kept(options.work, options.precision)
    if not (options.work / "targets" / "manifest.json").exists():
        options.work.mkdir(parents=True, exist_ok=True)
        run("prepare", options, "--data", str(options.data))
    done = {(one["round"], one["side"], one["rows"]) for one in measured}
    for number in range(options.rounds):
        turn = [(side, rows) for rows in options.rows for side in options.sides]
        for side, rows in turn if number % 2 == 0 else turn[::-1]:
            is_late = options.seconds and time.monotonic() - began > options.seconds
            if (number, side, rows) in done or is_late:
                continue
            found = json.loads(run(side, options, "--rows", rows).splitlines()[-1])
            measured.append({"round": number, "side": side, "rows": rows, **found})
            write(options.work, options.precision, measured)
            seconds = statistics.median(found["seconds"])
            print(
                f"{number} {rows} {side} {seconds:.2f} s, {found['peak'] / 1e6:,.0f} MB", flush=True
            )


def kept(work: Path, precision: str) -> list[Figures]:
    """What was measured so far in a number format."""
    file = work / f"measured-{precision}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def write(work: Path, precision: str, measured: Sequence[Figures]) -> None:
    (work / f"measured-{precision}.json").write_text(json.dumps(measured), encoding="utf-8")


def run(side: str, options: argparse.Namespace, *more: str) -> str:
    """Standard output of one process."""
    command = [sys.executable, "-P", str(SIDE), side, str(options.work), *more]
    for name in ("teacher", "warmup", "steps", "batch_size", "threads", "precision"):
        command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def page(options: argparse.Namespace) -> str:
    """The page of results."""
    names = ("torch", "transformers", "trl")
    command = COMMAND + "".join(
        f" --{name} {getattr(options, name)}" for name in ("rounds", "warmup", "steps", "threads")
    )
    versions = (f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in names)
    lines = [
        "# What does a training step with a teacher cost?",
        "",
        f"{datetime.date.today()}; `{command}`;",
        f"{machine()};",
        f"{', '.join(versions)}. Teacher: SmolLM2-135M-Instruct; student: 6 of its 30 layers,",
        f"all weights trained, AdamW, no gradient checkpointing; {options.batch_size} rows a step.",
        f"Each measurement is a process of its own: {options.warmup} steps of warm-up, then "
        f"{options.steps} timed;",
        "the ways take turns, and all see the same tokens in the same steps. A ratio is that of",
        "one step of both ways in the same round. MB are resident memory (of 10^6 bytes), the",
        "median over rounds; *system time* is the kernel's share of the processor time.",
        "",
    ]
    known = {precision: kept(options.work, precision) for precision in FORMATS}
    known = {precision: measured for precision, measured in known.items() if measured}
    lines += [*facts(next(iter(known.values()))), ""]
    for precision, measured in known.items():
        groups: dict[tuple[str, str], list[Figures]] = {}
        for rows in ROWS:
            for side in SIDES:
                some = [one for one in measured if (one["rows"], one["side"]) == (rows, side)]
                groups |= {(rows, side): some} if some else {}
        lines += [f"## {FORMATS[precision]}", "", *HEADER]
        lines += [line(ROWS[rows], SIDES[side], some) for (rows, side), some in groups.items()]
        lines += ["", *goals(groups), ""]
    return "\n".join(lines)


def line(rows: str, side: str, some: Sequence[Figures]) -> str:
    seconds = [second for one in some for second in one["seconds"]]
    tokens = sum(sum(one["tokens"]) for one in some)
    losses = some[0]["losses"]
    system, user = (sum(one[f"{kind}_seconds"] for one in some) for kind in ("system", "user"))
    cells = [
        rows,
        side,
        spread(seconds),
        str(len(seconds)),
        f"{tokens / sum(seconds):,.0f}",
        f"{middle(some, 'loaded') / 1e6:,.0f}",
        f"{middle(some, 'peak') / 1e6:,.0f}",
        f"{added(some) / 1e6:,.0f}",
        f"{system / (system + user):.0%}",
        f"{losses[0]:.4f}",
        f"{losses[-1]:.4f}",
    ]
    return "| " + " | ".join(cells) + " |"


def facts(measured: Sequence[Figures]) -> Iterable[str]:
    """What the rows are like."""
    for rows, name in ROWS.items():
        for one in [one for one in measured if one["rows"] == rows][:1]:
            tokens, loss, padded = (sum(one[k]) for k in ("tokens", "loss_positions", "padded"))
            yield (
                f"- Rows, {name}: {tokens:,} tokens in the timed steps, {loss:,} of them loss "
                f"positions (**{loss / tokens:.1%}**); {padded:,} when each step is padded to its "
                f"longest row ({padded / tokens:.2f} times)."
            )


def goals(groups: dict[tuple[str, str], list[Figures]]) -> Iterable[str]:
    """Ratios of steps over the same rows in the same round, against what was aimed at."""
    yield "| ratio | rows | aimed at | time, median [quartiles] | memory at most | added by steps |"
    yield "|---|---|---|---|---|---|"
    for over, under, aims in (
        ("cached", "sft", {"equal": "time <= 1.10, memory <= 1.05", "real": ""}),
        (
            "trl",
            "online",
            {"equal": "time >= 1.15, memory >= 1 / 0.7 = 1.43", "real": "time >= 1.5"},
        ),
    ):
        for rows, aim in aims.items():
            above, below = groups.get((rows, over)), groups.get((rows, under))
            if not above or not below:
                continue
            by_round = {one["round"]: one["seconds"] for one in below}
            ratios = [
                a / b
                for one in above
                if one["round"] in by_round
                for a, b in zip(one["seconds"], by_round[one["round"]], strict=True)
            ]
            peak = middle(above, "peak") / middle(below, "peak")
            yield (
                f"| {SIDES[over]} / {SIDES[under]} | {ROWS[rows]} | {aim} | "
                f"**{spread(ratios)}** of {len(ratios)} | **{peak:.2f}** | "
                f"{added(above) / added(below):.2f} |"
            )


def spread(numbers: Sequence[float]) -> str:
    """Median and quartiles."""
    if len(numbers) < 2:
        return f"{numbers[0]:.2f}"
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def middle(some: Sequence[Figures], key: str) -> float:
    return statistics.median(one[key] for one in some)


def added(some: Sequence[Figures]) -> float:
    return statistics.median(one["peak"] - one["loaded"] for one in some)


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"{os.cpu_count()} cores"


def put(out: Path, tables: str) -> None:
    """Writes the page; what somebody wrote under the tables stays."""
    before = out.read_text(encoding="utf-8") if out.exists() else ""
    out.write_text(f"{tables}\n{END}\n\n{before.partition(END)[2].lstrip()}", encoding="utf-8")


if __name__ == "__main__":
    main()
