"""Tokens per second of packed against padded rows: python benchmarks/packing.py --data FOLDER

FOLDER holds TASK/DATASET/train.jsonl in the chat format. The same student does the same kind
of steps in four ways that take turns, step by step, so that all see the same machine; every
way has its own copy of the weights. Tokens are those of the rows: padding is not counted.

    padded, random      steps drawn at random, each padded to its longest row: the usual trainer
    padded, by length   rows of like length share a step
    packed, random      the very steps of `padded, random`, without padding
    packed, by length   the very steps of `padded, by length`
"""

from __future__ import annotations

import argparse
import copy
import datetime
import random
import time
from pathlib import Path
from typing import Any

import torch

from potstill import console
from potstill.config import LossConfig, TrainConfig
from potstill.data.load import load_dataset
from potstill.data.render import Rendered, render
from potstill.models.catalog import find_model
from potstill.models.weights import load_weights
from potstill.tasks import get_task
from potstill.train.loop import Training
from potstill.train.plan import num_loss_tokens
from potstill.train.prune import choose_layers, cut_layers
from potstill.train.student import prepare_student

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "support": ("classification/bitext_support",),
    "support dialogues": ("conversation/sgd",),
    "NLI": ("nli/mnli",),
    "support, dialogues and NLI": ("classification/bitext_support", "conversation/sgd", "nli/mnli"),
}
WAYS: dict[str, dict[str, Any]] = {
    "padded, random": {"packing": False, "order": "random"},
    "padded, by length": {"packing": False, "order": "by_length"},
    "packed, random": {"packing": True, "order": "random"},
    "packed, by length": {"packing": True, "order": "by_length"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=400, help="of each dataset")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--limits", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--out", type=Path, help="page to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_weights(find_model(options.model))
    if options.layers < model.config.num_hidden_layers:
        model = cut_layers(model, choose_layers(model, tokenizer, [], options.layers, by="even")[0])
    text = page(model, tokenizer, options)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    console.print_line(text)


def page(model: Any, tokenizer: Any, options: argparse.Namespace) -> str:
    """The page of results."""
    known = {
        place: read(options.data / place / "train.jsonl", tokenizer, options.rows)
        for place in dict.fromkeys(place for name in options.sets for place in SETS[name])
    }
    lines = [
        "# What does packing bring against padding?",
        "",
        f"{datetime.date.today()}; `python benchmarks/packing.py --data FOLDER`; {options.model}, "
        f"{options.layers} layers, learning from text with all weights, precision as `auto` "
        f"chooses it, {options.threads} CPU threads. {options.steps} steps of "
        f"{options.batch_size} records for each number, after one that is not counted; the ways "
        f"take turns step by step. Tokens are those of the rows, padding is not counted.",
        "",
        "| rows | tokens a row, mean and longest | loss positions | "
        + " | ".join(f"{way}, tokens/s" for way in WAYS)
        + " | packed / padded, random | packed / padded, by length | data pipeline |",
        "|---" * (len(WAYS) + 6) + "|",
    ]
    for name in options.sets:
        rows = [row for place in SETS[name] for row in known[place]]
        random.Random(0).shuffle(rows)
        ways = {way: training(model, tokenizer, rows, options, keys) for way, keys in WAYS.items()}
        speeds, shares = measure(ways, options.steps)
        lengths = [len(row.ids) for row in rows]
        loss = sum(map(num_loss_tokens, rows)) / sum(lengths)
        ratios = [
            speeds[f"packed, {order}"] / speeds[f"padded, {order}"]
            for order in ("random", "by length")
        ]
        cells = [
            name,
            f"{sum(lengths) / len(lengths):.0f}, {max(lengths)}",
            f"{loss:.1%}",
            *(f"{speed:,.0f}" for speed in speeds.values()),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{shares['packed, random']:.2%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        console.print_line(lines[-1])  # the rest takes minutes
    ways = {
        f"{limit:,}": training(
            model, tokenizer, rows, options, {**WAYS["packed, random"], "micro_batch_tokens": limit}
        )
        for limit in options.limits
    }
    if not ways:
        return "\n".join(lines) + "\n"
    speeds, _ = measure(ways, options.steps)
    lines += [
        "",
        "Packed tokens computed at once, on the last rows of the table in random steps:",
        "",
        "| " + " | ".join(ways) + " |",
        "|---" * len(ways) + "|",
        "| " + " | ".join(f"{speed:,.0f} tokens/s" for speed in speeds.values()) + " |",
    ]
    return "\n".join(lines) + "\n"


def read(file: Path, tokenizer: Any, num_rows: int) -> list[Rendered]:
    """The first rows of a dataset, the last answer of each conversation."""
    task = get_task(file.parent.parent.name)
    records = load_dataset(file, task=file.parent.parent.name)[:num_rows]
    turns = [list(task.turns(record))[-1] for record in records]
    rows = [render(tokenizer, t.messages, t.reference, max_tokens=2048) for t in turns]
    return [row for row in rows if row is not None]


def training(
    model: Any,
    tokenizer: Any,
    rows: list[Rendered],
    options: argparse.Namespace,
    keys: dict[str, Any],
) -> Training:
    """A training of its own copy of the model."""
    settings = {"batch_size": options.batch_size, "max_steps": options.steps + 1, "ema": None}
    train = TrainConfig(**{**settings, **keys})
    student = prepare_student(copy.deepcopy(model), train, torch.device("cpu"))
    return Training(student, tokenizer, rows, [], LossConfig(), train, None)


def measure(ways: dict[str, Training], num_steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens per second of every way, and the data pipeline's share of its time."""
    tokens, seconds, shares = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), {}
    for way in ways.values():
        way.step()  # the first step allocates
    for number in range(num_steps):
        # Who begins changes, so that no way always follows the same other.
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            way = ways[name]
            rows = way.plan.rows(way.state.step)
            started = time.perf_counter()
            way.step()
            seconds[name] += time.perf_counter() - started
            tokens[name] += sum(len(way.train_rows[row].ids) for row in rows)
    for name, way in ways.items():
        started = time.perf_counter()
        for step in range(1, num_steps + 1):
            for part in way.plan.micro_batches(step):
                way.parts.tensors([way.train_rows[row] for row in part])
        shares[name] = (time.perf_counter() - started) / seconds[name]
    return {name: tokens[name] / seconds[name] for name in ways}, shares


if __name__ == "__main__":
    main()
