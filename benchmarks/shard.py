"""What sharing the weights out among processes takes: python benchmarks/shard.py --model FOLDER

The same steps in one process, in two that hold all weights each, and in two that hold a part,
each way in processes of its own, in turns. Rows are random tokens: what is learned is no matter.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import random
import tempfile
from pathlib import Path
from statistics import median

from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered
from potstill.pipeline.story import processor
from potstill.rundir import RunDir
from potstill.train.together import fine_tune_together

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "one process": {},
    "two, each with all weights": {"processes": 2},
    "two, weights shared out": {"processes": 2, "shard": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "shard.md")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            found[way].append(one(way, options))
            print(way, found[way][-1], flush=True)
    options.out.write_text(page(found, options), encoding="utf-8")


def one(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step after the first one, and the most memory that a process held."""
    train = TrainConfig(
        batch_size=8,
        micro_batch_size=2,
        max_steps=options.steps,
        packing=False,
        early_stopping=False,
        **WAYS[way],
    )
    draw = random.Random(0)
    rows = [
        Rendered([draw.randrange(10, 40_000) for _ in range(256)], [0] * 128 + [1] * 128)
        for _ in range(8 * options.steps)
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        result = fine_tune_together(
            options.model, rows, (), loss=LossConfig(), train=train, targets=run.targets, out=run
        )
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    ends = [line["seconds"] for line in lines]
    each = [end - start for start, end in itertools.pairwise(ends)]
    return {
        "seconds": median(each),
        "bytes": result.peak_memory_bytes / train.processes,
        "loss": lines[-1]["train/loss_nats"],
    }


def page(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    machine = processor()
    lines = [
        "# What does sharing weights out among processes take?",
        "",
        f"{datetime.date.today()}; `python benchmarks/shard.py --model FOLDER --rounds "
        f"{options.rounds} --steps {options.steps}`, {machine['name']} with {machine['cores']} "
        "cores,",
        "all of them used by one process or one each by two, over gloo. SmolLM2-135M, all weights",
        "(float32 under autocast, AdamW: 2.2 GB with gradients and moments), steps of 8 rows of",
        f"256 tokens in parts of 2; {options.rounds} rounds in turns, medians of each round's",
        f"steps 2 to {options.steps}. Memory is the most that a process held, its libraries, the",
        "reading of the weights and the writing of the model included.",
        "",
        "| way | seconds a step, each round | memory of a process, GB | loss of the last step |",
        "|---|---|---|---|",
    ]
    for way, runs in found.items():
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        most = max(run["bytes"] for run in runs) / 1e9
        lines.append(f"| {way} | {seconds} | {most:.2f} | {runs[-1]['loss']:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
