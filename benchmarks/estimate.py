"""What `potstill estimate` says of a training, and what that training then takes.

    python benchmarks/estimate.py --model FOLDER --data conversation/taskmaster4/train.jsonl

The student is six layers of the model. Each case is estimated as the command does it, and then
trained for more steps than were probed, in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from potstill.config import DistillConfig, parse_config
from potstill.pipeline.context import Context
from potstill.pipeline.data import load, split
from potstill.pipeline.estimate import estimate
from potstill.pipeline.story import processor
from potstill.pipeline.teach import render_rows
from potstill.rundir import RunDir, read_jsonl
from potstill.types import Record

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "results" / "estimate.md"
KEPT = (0, 1, 10, 19, 28, 29)
CASES: dict[str, dict[str, Any]] = {
    "all weights, text": {"loss": {}, "train": {}},
    "LoRA, text, hidden states of the teacher": {
        "loss": {"hidden": "cosine"},
        "train": {"adapter": "lora"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--train", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train:
        print(json.dumps(train(options, *options.train)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cut(options.model, Path(folder, "student"))
        for case in CASES:
            rows.append(one(options, case, Path(folder)))
            print(json.dumps(rows[-1], indent=1), flush=True)
    options.out.write_text(page(rows, options), encoding="utf-8")


def cut(model: str, out: Path) -> None:
    from potstill.models.weights import load_weights
    from potstill.train.prune import cut_layers, save_untouched

    weights, tokenizer = load_weights(model)
    save_untouched(cut_layers(weights, KEPT), tokenizer, out)


def config_of(options: argparse.Namespace, case: str, folder: Path) -> DistillConfig:
    tree = {
        "name": "estimate",
        "task": "conversation",
        "teacher": options.model,
        "student": str(folder / "student"),
        "train_data": str(options.data),
        "data": {"validation": 0.02},
        "loss": CASES[case]["loss"],
        "train": {
            "batch_size": 8,
            "micro_batch_size": 4,
            "max_steps": options.steps,
            "max_tokens": 384,
            "eval_steps": options.steps // 2,
            "early_stopping": False,
            **CASES[case]["train"],
        },
    }
    return parse_config(tree)


def one(options: argparse.Namespace, case: str, folder: Path) -> dict[str, Any]:
    ctx = Context(config_of(options, case, folder), RunDir(folder / "run"))
    found = estimate(ctx, training=True).training
    assert found is not None and found.fits, found
    command = [sys.executable, __file__, "--model", options.model, "--data", str(options.data)]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(
        [*command, "--train", case, str(folder)], capture_output=True, text=True, check=True
    )
    actual = json.loads(done.stdout.splitlines()[-1])
    predicted = found.model_dump()
    return {"case": case, "predicted": predicted, "actual": actual}


def train(options: argparse.Namespace, case: str, folder: str) -> dict[str, Any]:
    """The whole training of a case, as a run does it."""
    from potstill.models.weights import load_weights
    from potstill.train.loop import fine_tune_student
    from potstill.train.memory import Memory

    config = config_of(options, case, Path(folder))
    with tempfile.TemporaryDirectory() as place:
        ctx = Context(config, RunDir(place))
        load(ctx)
        split(ctx)
        model, tokenizer = load_weights(config.student.place)
        parts = [read_jsonl(path, Record) for path in (ctx.run.train, ctx.run.validation)]
        rows, watched = (render_rows(ctx, tokenizer, part) for part in parts)
        teacher = None
        if config.loss.needs_teacher:
            teacher = load_weights(options.model, dtype="auto")[0]
        result = fine_tune_student(
            model,
            tokenizer,
            rows,
            watched,
            loss=config.loss,
            train=config.train,
            targets=None,
            out=ctx.run,
            teacher=teacher,
        )
    return {"seconds": result.seconds, "peak_memory_bytes": Memory().most, "rows": len(rows)}


def page(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    machine = processor()
    lines = [
        "# Is what `potstill estimate` says of training true?",
        "",
        f"{datetime.date.today().isoformat()}, {machine['name']}, {options.threads} threads, "
        f"torch {torch.__version__.partition('+')[0]}, {platform.system()}. Student: layers "
        f"{', '.join(map(str, KEPT))} of SmolLM2-135M; rows of taskmaster4 (customer service), 8 "
        f"records a step in micro-batches of 4; 20 steps probed, {options.steps} trained, two "
        f"looks at the validation rows.",
        "",
        "| training | time said | time taken | off | memory said | memory taken | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        said, took = row["predicted"], row["actual"]
        cells = [row["case"]]
        for key, unit, scale in (("seconds", "s", 1.0), ("peak_memory_bytes", "GB", 1e9)):
            off = said[key] / took[key] - 1
            digits = 1 if unit == "s" else 2
            cells += [
                f"{said[key] / scale:.{digits}f} {unit}",
                f"{took[key] / scale:.{digits}f} {unit}",
                f"{off:+.1%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    energy = rows[0]["predicted"]["energy_source"]
    lines += [
        "",
        "The goal is 15 %. One run each, so chance is in it: the same machine is seldom equally "
        f"busy twice. Energy: {energy}" + (" on this machine." if "not" in energy else "."),
        "GPUs and trainings of hours were not measured.",
        "",
        "```",
        "python benchmarks/estimate.py --model FOLDER --data conversation/taskmaster4/train.jsonl",
        "```",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
