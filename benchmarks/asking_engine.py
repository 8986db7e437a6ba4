"""A launched engine asked through Potstill and directly: a part of benchmarks/asking.py."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import aiohttp

from potstill.config import GenerationConfig, TeacherConfig
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.chat_format import request_body
from potstill.models.engines import GgufModel
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.types import Message, Record, Sampling

NUM_PROMPTS, NUM_TOKENS, SLOTS, CONTEXT, THREADS, IN_FLIGHT = 32, 48, 4, 4096, 2, 8


def records(turn: int) -> list[Record]:
    """Other prompts in each round: the engine remembers what it has read."""
    found = []
    for n in range(NUM_PROMPTS):
        text = f"Story {turn}-{n}: a parcel leaves on day {n} and is late. Tell it at length."
        found.append(Record(id=f"{turn}-{n}", messages=(Message(role="user", content=text),)))
    return found


def engine(options: argparse.Namespace) -> list[str]:
    file = options.gguf or find_model("smollm2-135m").source
    found = asyncio.run(compare(file, options.rounds))
    lines = [
        f"{Path(file).name} in llama.cpp's server, {SLOTS} slots of {CONTEXT:,} tokens, {THREADS} "
        f"threads; {NUM_PROMPTS} prompts a round, answers of at most {NUM_TOKENS} tokens, greedy, "
        f"{IN_FLIGHT} in flight; {options.rounds} rounds in turns.",
        "",
        "| who asks | tokens/s, median | lowest to highest | share of a plain loop's, by round |",
        "|---|---|---|---|",
    ]
    for who, rates in found.items():
        shares = [rate / plain for rate, plain in zip(rates, found["a plain loop"], strict=True)]
        lines.append(
            f"| {who} | {median(rates):.1f} | {min(rates):.1f} to {max(rates):.1f} | "
            f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) |"
        )
    return lines


async def compare(file: str, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each way of asking, a round each in turns."""
    teacher = open_chat_model(TeacherConfig(launch="llama-server", model=file))
    assert isinstance(teacher, GgufModel), "a llama-server on PATH would be another engine"
    found: dict[str, list[float]] = {}
    try:
        with plain_server(file) as url:
            await teacher.prepare()
            await ask_plainly(url, records(-1)[:IN_FLIGHT])
            await ask_through(teacher, records(-1)[:IN_FLIGHT], pilot=0)
            for turn in range(rounds):
                asked = records(turn)
                ways = {
                    "a plain loop": ask_plainly(url, asked),
                    "Potstill": ask_through(teacher, asked, pilot=0),
                    "Potstill, a pilot of 16 first": ask_through(teacher, asked, pilot=16),
                }
                for who, way in ways.items():
                    found.setdefault(who, []).append(await way)
    finally:
        await teacher.close()
    return found


@contextlib.contextmanager
def plain_server(file: str) -> Iterator[str]:
    """The address of the same server with the same settings."""
    arguments = (file, *map(str, (CONTEXT, SLOTS, THREADS)))
    command = [sys.executable, "-m", "potstill.models.llama_server", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            lines = (line.decode("utf-8", "replace").strip() for line in process.stdout)
            yield next(line for line in lines if line.startswith("http://"))
        finally:
            process.stdin.close()


async def ask_plainly(url: str, asked: list[Record]) -> float:
    """A loop over one connection pool that reads tokens off the answers and keeps nothing."""
    left, num_tokens = iter(asked), 0
    sampling = Sampling(temperature=0.0, max_new_tokens=NUM_TOKENS)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3600)) as session:

        async def work() -> None:
            nonlocal num_tokens
            for record in left:
                body = request_body("model", record.messages, sampling)
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    num_tokens += (await reply.json())["usage"]["completion_tokens"]

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return num_tokens / (time.perf_counter() - started)


async def ask_through(teacher: GgufModel, asked: list[Record], *, pilot: int) -> float:
    """As `potstill run` asks, the answers in a ledger."""
    # A pilot would stop at stories that are cut; two calls ask in the same order as it does.
    config = GenerationConfig(temperature=0.0, max_new_tokens=NUM_TOKENS, pilot=0)
    with tempfile.TemporaryDirectory() as folder:
        started, num_tokens = time.perf_counter(), 0
        for some in (asked[:pilot], asked[pilot:]) if pilot else (asked,):
            counts = await generate(teacher, some, Path(folder), task=get_task("qa"), config=config)
            num_tokens += counts.num_new_tokens
        return num_tokens / (time.perf_counter() - started)
