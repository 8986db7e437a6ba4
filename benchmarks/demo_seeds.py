"""The demo over several seeds, as one table: python benchmarks/demo_seeds.py --seeds 0 1 2 3 4

Each seed is a whole demo in a folder of its own (data, teacher, students, comparison). Run it
again after an interruption; finished seeds are read, not repeated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scipy import stats

from potstill.types import Comparison, Estimate, Report

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("teacher", "distilled", "text", "gold_few", "untouched", "gguf:q8_0", "tfidf_teacher")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "demo-seeds.md")
    options = parser.parse_args()
    for seed in options.seeds:
        one(options.runs, seed)
        done = [s for s in options.seeds if (folder(options.runs, s) / "seconds.json").exists()]
        options.out.write_text(page(options.runs, done), encoding="utf-8")
        print(f"seed {seed} done; table of {len(done)} seeds in {options.out}", flush=True)


def folder(runs: Path, seed: int) -> Path:
    return runs / (f"demo-seed-{seed}" if seed else "demo")


def one(runs: Path, seed: int) -> None:
    """Runs the demo of a seed as a user would, and notes how long it took."""
    clock = folder(runs, seed) / "seconds.json"
    if clock.exists():
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "potstill.cli", "demo", "--seed", str(seed)]
    subprocess.run([*command, "--runs", str(runs)], check=True)
    clock.write_text(json.dumps({"seconds": time.monotonic() - started}))


def page(runs: Path, seeds: list[int]) -> str:
    reports = {seed: read(runs, seed) for seed in seeds}
    seconds = {
        seed: json.loads((folder(runs, seed) / "seconds.json").read_text())["seconds"]
        for seed in seeds
    }
    first = next(iter(reports.values()))
    machine = first.environment["processor"]
    packages = first.environment["packages"]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    lines = [
        "# What does the demo reach, over seeds?",
        "",
        f"{datetime.date.today()}, commit {commit}, {machine['name']} with {machine['cores']} "
        f"cores (shared), torch {packages['torch']}, transformers {packages['transformers']}.",
        f"`python benchmarks/demo_seeds.py --seeds {' '.join(map(str, seeds))}`; "
        f"n = {first.task['n']} test tickets a seed. A seed changes wordings, items, order and "
        "resampling. Values with 95 % intervals; differences and retention are paired.",
        "",
        f"## {first.primary_metric.replace('_', ' ').capitalize()}: right in all four fields",
        "",
        "| seed | " + " | ".join(ROWS) + " |",
        "|---|" + "---|" * len(ROWS),
    ]
    for seed, report in reports.items():
        cells = [value(report, row) for row in ROWS]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    others = ("untouched", "gold_few", "text", "tfidf_teacher")
    lines += [
        "",
        "## The distilled student against the others",
        "",
        "| seed | "
        + " | ".join(f"minus {name}" for name in others)
        + " | of the teacher's quality | latency / teacher's | GGUF latency / teacher's "
        "| minutes |",
        "|---|" + "---|" * (len(others) + 4),
    ]
    for seed, report in reports.items():
        cells = [difference(report, name) for name in others]
        cells += [show(found) for found in ratios(report)]
        lines.append(f"| {seed} | " + " | ".join(cells) + f" | {seconds[seed] / 60:.1f} |")
    if len(reports) > 2:
        found = [
            [compared(report, name).difference for name in others] for report in reports.values()
        ]
        cells = [over_seeds(column, sign="+") for column in zip(*found, strict=True)]
        found = [[ratio.value for ratio in ratios(report)] for report in reports.values()]
        cells += [over_seeds(column) for column in zip(*found, strict=True)]
        lines.append("| **mean** | " + " | ".join(cells) + " | |")
        lines += ["", "The mean is that of the seeds, with Student's t interval over them."]
    return "\n".join(lines) + "\n"


def read(runs: Path, seed: int) -> Report:
    file = folder(runs, seed) / "reports" / "report.json"
    return Report.model_validate_json(file.read_text(encoding="utf-8"))


def value(report: Report, row: str) -> str:
    found = report.models.get(row)
    return show(found.metrics[report.primary_metric]) if found else ""


def show(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return "not measured"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def ratios(report: Report) -> list[Estimate]:
    """Kept quality, time of an answer, and that of the GGUF file, as shares of the teacher's."""
    times = [report.models[role].metrics["latency_ratio"] for role in ("distilled", "gguf:q8_0")]
    return [report.retention["of_teacher"], *times]


def over_seeds(values: tuple[float, ...], sign: str = "") -> str:
    """Mean of the seeds with its 95 % t interval."""
    mean, n = statistics.fmean(values), len(values)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
    return f"{mean:{sign}.3f} [{mean - half:{sign}.3f}, {mean + half:{sign}.3f}]"


def difference(report: Report, other: str) -> str:
    found = compared(report, other)
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def compared(report: Report, other: str) -> Comparison:
    return next(
        c
        for c in report.comparisons
        if (c.a, c.b, c.metric) == ("distilled", other, report.primary_metric)
    )


if __name__ == "__main__":
    main()
