"""How fast the teacher is asked, and what resuming costs: python benchmarks/asking.py

A server on loopback, in a process of its own, answers at once with 1.4 KB. Requests a second are
measured with the ledger on disk and with one that keeps nothing, in turns, so that both see the
same machine. Resuming is measured on ledgers of which half is answered: seconds until the first
request, and the process's largest memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from potstill.config import GenerationConfig
from potstill.models.endpoint import EndpointModel
from potstill.rundir import JsonLines, content_hash, write_jsonl
from potstill.tasks import get_task
from potstill.teach.asker import Asker, Place
from potstill.teach.generate import generate
from potstill.teach.index import State
from potstill.teach.ledger import Ledger
from potstill.teach.requests import Requests
from potstill.types import Message, Record, Response

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The parcel left the depot on Monday and is due on Thursday. " * 20
CONFIG = GenerationConfig(pilot=0, max_in_flight=64)
QA = get_task("qa")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "asking.md")
    parser.add_argument("--work", type=Path, default=None, help="folder for the ledgers")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    elif options.resume:
        print(json.dumps(asyncio.run(resume(options.resume, options.rows[0]))))
    else:
        speeds = asyncio.run(compare_sinks(options.requests, options.work))
        resumed = [resume_apart(rows, options.work) for rows in options.rows]
        text = page(options, speeds, resumed)
        options.out.write_text(text, encoding="utf-8")
        print(text)


async def serve() -> None:
    """Answers every request alike; says its port first."""
    from aiohttp import web

    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}}
    usage = {"prompt_tokens": 20, "completion_tokens": 300, "total_tokens": 320}
    completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "fake"}
    tree = {**completion, "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}
    body = json.dumps(tree).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


class Nowhere:
    """A ledger that keeps nothing."""

    path, num_damaged, cost = Path("nowhere"), 0, 0.0

    def __init__(self) -> None:
        self.saved = dict.fromkeys(State, 0)

    def find(self, keys: Any) -> dict[bytes, State]:
        return {}

    def answer(self, key: bytes) -> None:
        return None

    def put(self, response: Response, record: int) -> asyncio.Future[None]:
        self.saved[State.DONE] += 1
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def want(self, wants: Any) -> None:
        return None

    async def flush(self) -> None:
        return None

    def counts(self) -> dict[State, int]:
        return self.saved


def records(number: int) -> Iterator[Record]:
    for n in range(number):
        content = f"Parcel {n}: when does it come? " * 8
        yield Record(id=f"row-{n}", messages=(Message(role="user", content=content),))


async def compare_sinks(number: int, work: Path | None) -> dict[str, list[dict[str, float]]]:
    """Requests a second with and without a ledger on disk, in turns."""
    found: dict[str, list[dict[str, float]]] = {"nothing": [], "ledger": []}
    with server() as url:
        await ask_through(url, Nowhere(), max(200, number // 10))  # warm up
        for _ in range(ROUNDS):
            found["nothing"].append(await ask_through(url, Nowhere(), number))
            with tempfile.TemporaryDirectory(dir=work) as folder, Ledger(Path(folder)) as ledger:
                ledger.begin("train")
                found["ledger"].append(await ask_through(url, ledger, number))
    return found


async def ask_through(url: str, ledger: Any, number: int) -> dict[str, float]:
    teacher = EndpointModel(url, "fake", max_in_flight=64)
    asker = Asker(teacher, QA, CONFIG, ledger, number, 0, lambda state: None)
    places = (Place(n, record, 0) for n, record in enumerate(records(number)))
    async with lag() as lags:
        started = time.perf_counter()
        await asker.ask_all(places)
        seconds = time.perf_counter() - started
    await teacher.close()
    assert asker.tally.answered == number
    lags.sort()
    return {"per_second": number / seconds, "lag_p99": lags[int(len(lags) * 0.99)]}


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """How much later than asked the event loop came back, in seconds, every 5 ms."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before - 0.005)

    task = asyncio.create_task(watch())
    try:
        yield lags
    finally:
        task.cancel()


class Instant:
    """A teacher that answers at once, and notes when it was first asked."""

    name, max_in_flight = "instant", 64
    first_asked_at: float | None = None

    async def respond(
        self, record: Record, sampling: Any, *, turn: int = 0, sample: int = 0
    ) -> Response:
        self.first_asked_at = self.first_asked_at or time.perf_counter()
        await asyncio.sleep(0)
        return Response(record_id=record.id, text=TEXT, finish_reason="stop", num_new_tokens=300)


def resume_apart(rows: int, work: Path | None) -> dict[str, float]:
    """Fills half of a ledger, and resumes in a process of its own whose memory is its own."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        write_jsonl(folder / "records.jsonl", records(rows))
        asyncio.run(fill(folder, rows // 2))
        command = [sys.executable, __file__, "--resume", name, "--rows", str(rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"rows": rows, **json.loads(done.stdout)}


async def fill(folder: Path, number: int) -> None:
    """Answers that an earlier run has kept, which was stopped at half its rows."""
    asked = JsonLines(folder / "records.jsonl", Record)
    requests = Requests(Instant(), QA, CONFIG, 0)
    with Ledger(folder) as ledger:
        chains = (requests.chain(n, record, 0) for n, record in enumerate(asked))
        first = [chain.first.key for chain in itertools.islice(chains, 16)]
        ledger.begin("train", content_hash(asked.path), first)
        chains = (requests.chain(n, record, 0) for n, record in enumerate(asked))
        for chain in itertools.islice(chains, number):
            saved = ledger.put(
                Response(
                    record_id=chain.record_id,
                    fingerprint=chain.first.fingerprint,
                    text=TEXT,
                    finish_reason="stop",
                    num_new_tokens=300,
                    model=Instant.name,
                ),
                chain.number,
            )
            if chain.number % 256 == 255:
                await saved
        await ledger.flush()


async def resume(folder: Path, rows: int) -> dict[str, float]:
    """Goes on with a ledger until all is answered."""
    teacher, before = Instant(), peak_bytes()
    started = time.perf_counter()
    asked = JsonLines(folder / "records.jsonl", Record)
    source, number = content_hash(asked.path), asked.num_lines()
    counts = await generate(
        teacher, asked, folder, task=QA, config=CONFIG, requested=number, source=source
    )
    ended = time.perf_counter()
    assert (counts.answered, counts.reused) == (rows, rows // 2)
    assert teacher.first_asked_at is not None
    return {
        "seconds_to_first": teacher.first_asked_at - started,
        "seconds": ended - started,
        "peak_bytes": peak_bytes(),
        "start_bytes": before,
    }


def peak_bytes() -> int:
    """Largest memory of this process; getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def page(
    options: argparse.Namespace,
    speeds: dict[str, list[dict[str, float]]],
    resumed: list[dict[str, float]],
) -> str:
    from potstill.pipeline.story import processor  # not where memory is measured

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    machine = processor()
    rows = " ".join(str(one["rows"]) for one in resumed)
    middle = {
        sink: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for sink, found in speeds.items()
    }
    cost = 1 - middle["ledger"]["per_second"] / middle["nothing"]["per_second"]
    lines = [
        "# How fast is the teacher asked, and what does resuming cost?",
        "",
        f"{datetime.date.today()}, commit {commit}, {machine['name']} with {machine['cores']} "
        "cores (shared by server and client).",
        f"`python benchmarks/asking.py --requests {options.requests} --rows {rows}`; answers of "
        f"1.4 KB, 64 in flight, {options.requests:,} requests a round, the median of {ROUNDS} "
        "rounds in turns.",
        "",
        "## Requests a second",
        "",
        "| answers go to | requests/s | lowest to highest | event loop lag, p99 |",
        "|---|---|---|---|",
    ]
    for sink, name in (("nothing", "nowhere"), ("ledger", "the ledger, on disk")):
        each = [one["per_second"] for one in speeds[sink]]
        lines.append(
            f"| {name} | {middle[sink]['per_second']:,.0f} | {min(each):,.0f} to {max(each):,.0f} "
            f"| {middle[sink]['lag_p99'] * 1000:.1f} ms |"
        )
    lines += [
        "",
        f"The ledger costs {cost:.1%} of the requests a second.",
        "",
        "## Resuming a run of which half is answered",
        "",
        "| rows | seconds to the first request | seconds to the end | peak memory |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['rows']:,} | {one['seconds_to_first']:.2f} | {one['seconds']:.1f} "
        f"| {one['peak_bytes'] / 2**20:.0f} MiB |"
        for one in resumed
    ]
    if len(resumed) > 1:
        few, many = resumed[0], resumed[-1]
        slope = (many["peak_bytes"] - few["peak_bytes"]) / (many["rows"] - few["rows"]) * 1e5
        lines += ["", f"Memory grows by {slope / 2**20:.2f} MiB for 100,000 rows."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
