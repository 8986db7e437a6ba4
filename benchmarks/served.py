"""What does `potstill serve` itself cost? python benchmarks/served.py MODEL --data RECORDS.jsonl

MODEL, a GGUF file or a folder, is asked in its engine and through a `potstill serve` of its own
process, in turns, by 1, 4 and 10 users at once, each of whom asks again as soon as the answer is
there, as a stream. RECORDS are those of a run's data folder.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from datasets import put

from potstill.config import LoadConfig, TeacherConfig
from potstill.examine.load import measure_load
from potstill.models.endpoint import EndpointModel
from potstill.models.machine import num_cores, processor
from potstill.rundir import read_jsonl
from potstill.serve.opening import open_served
from potstill.tasks.conversation import conversation
from potstill.types import Record, Sampling

ROOT = Path(__file__).resolve().parent.parent
USERS = (1, 4, 10)
WAYS = ("engine", "served")
URL = re.compile(r"http://[^ ]+/v1")
METRICS = {"latency": "s an answer", "ttft": "s to the first text", "requests_per_second": "/s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="of each level and round")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "served.md")
    options = parser.parse_args()
    records = read_jsonl(options.data, Record)
    asyncio.run(work(options, records))


async def work(options: argparse.Namespace, records: list[Record]) -> None:
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for way in WAYS[:: 1 - 2 * (number % 2)]:
            async with opened(way, options.model) as model:
                await model.respond(records[-1], Sampling(max_new_tokens=4))
                for users in USERS:
                    for name, value in (await level(model, records, users, options)).items():
                        found.setdefault(f"{way} {users} {name}", []).append(value)
            print(number, way, {key: values[-1] for key, values in found.items()}, flush=True)
    put(options.out, page(found, options, len(records)))


@asynccontextmanager
async def opened(way: str, path: Path) -> AsyncIterator[Any]:
    """The model in its engine, or an endpoint behind which the same engine is served."""
    if way == "engine":
        model: Any = open_served(TeacherConfig(source=str(path)))
        try:
            yield model
        finally:
            await model.close()
        return
    command = [str(Path(sys.executable).with_name("potstill")), "serve", str(path)]
    command += ["--port", "0", "--launch", "none", "--name", "served"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = next(found for line in process.stdout if (found := URL.search(line)))
            model = EndpointModel(told.group(), "served")
            yield model
            await model.close()
        finally:
            process.terminate()


async def level(
    model: Any, records: list[Record], users: int, options: argparse.Namespace
) -> dict[str, float]:
    config = LoadConfig(
        concurrency=(users,), num_requests=options.requests, e2e_seconds=None, ttft_seconds=1e6
    )
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    load = await measure_load(model, records, task=conversation, sampling=sampling, config=config)
    metrics = load.levels[0].metrics
    return {name: value for name in METRICS if (value := metrics[name].value) is not None}


def page(found: dict[str, list[float]], options: argparse.Namespace, num_records: int) -> str:
    lines = [
        "# What does `potstill serve` itself cost?",
        "",
        f"{datetime.date.today()}; `python benchmarks/served.py {options.model.name} "
        f"--data FILE --rounds {options.rounds}`, {processor()['name']}, {num_cores()} cores.",
        f"Streamed answers of at most {options.max_new_tokens} tokens to {num_records} prompts in "
        f"turn, {options.requests} a level and round. Medians of a round, then the median of",
        f"{options.rounds} rounds with the lowest and highest; ratios are within a round.",
        "",
        "| | users | in its engine | through `potstill serve` | served ÷ engine |",
        "|---|---|---|---|---|",
    ]
    for name, text in METRICS.items():
        for users in USERS:
            pair = [found.get(f"{way} {users} {name}", []) for way in WAYS]
            if all(pair):
                ratios = [new / old for old, new in zip(*pair, strict=True)]
                cells = [spread(pair[0], 3), spread(pair[1], 3), spread(ratios, 2)]
                lines.append(f"| {text} | {users} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    low, mid, high = (f"{f(values):.{digits}f}" for f in (min, median, max))
    return f"{mid} ({low} to {high})"


if __name__ == "__main__":
    main()
