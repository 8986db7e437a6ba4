"""How fast the teacher is asked, in how much memory, and what resuming costs.

    python benchmarks/asking.py speed ledger parts logprobs limits memory resume engine

A server on loopback, in a process of its own on the same cores, answers at once. What is compared
is measured in turns, so all see the same machine. Each part puts its table in the place that
docs/results/asking.md has for it, and leaves the rest of that page alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from asking_engine import engine
from asking_ledger import cost
from asking_memory import CONFIG, QA, memory, records, resuming
from asking_parts import parts
from asking_peers import IN_FLIGHT
from asking_server import BODIES, server

from potstill.models.endpoint import EndpointModel
from potstill.models.sweeping import seldom_swept
from potstill.teach.asker import Asker
from potstill.teach.index import State
from potstill.teach.ledger import Ledger
from potstill.teach.requests import Place
from potstill.types import Response

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--requests", type=int, default=6_000, help="a round, without logprobs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--inside", action="store_true", help="memory: without a server")
    parser.add_argument("--curator", help="Python of an environment with bespokelabs-curator")
    parser.add_argument("--gguf", help="weights for engine; SmolLM2 of the demo where not given")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "asking.md")
    parser.add_argument("--work", type=Path, default=None, help="folder for the ledgers")
    options = parser.parse_args()
    for part in options.parts:
        lines = PARTS[part](options)
        text = "\n".join([*heading(part, options), "", *lines])
        print(text, flush=True)
        put(options.out, "memory inside" if part == "memory" and options.inside else part, text)


# Asking, with and without a ledger


class Nowhere:
    """A ledger that keeps nothing, and says so of as many together as the ledger at least."""

    path, num_damaged, cost = Path("nowhere"), 0, 0.0

    def __init__(self) -> None:
        self.saved = dict.fromkeys(State, 0)
        self.together: asyncio.Future[None] | None = None

    def find(self, keys: Any) -> dict[bytes, State]:
        return {}

    def put(self, response: Response, record: int, key: bytes) -> asyncio.Future[None]:
        self.saved[State.DONE] += 1
        if self.together is None:
            self.together = asyncio.get_running_loop().create_future()
        together = self.together
        if self.saved[State.DONE] % IN_FLIGHT == 0:
            self.together = None
            together.set_result(None)
        return together

    def want(self, wants: Any) -> None:
        return None

    async def flush(self) -> None:
        return None

    def counts(self) -> dict[State, int]:
        return self.saved


async def ask_through(url: str, ledger: Any, number: int, k: int = 0) -> dict[str, float]:
    """Asks so many prompts, and says how fast and how late the event loop was.

    The clock stops when the last answer is there; `end` is how long it then waits until all is on
    the disk and in the index, which a run does once. `own` and `others` are processor microseconds
    a request: of the thread that asks, and of all others of this process.
    """
    teacher = EndpointModel(f"{url}/v1", "fake", max_in_flight=IN_FLIGHT, start_in_flight=IN_FLIGHT)
    asker = Asker(teacher, QA, CONFIG, ledger, number, k, lambda state: None)
    places = (Place(n, record, 0) for n, record in enumerate(records(number)))
    flush, ended = ledger.flush, 0.0

    async def noting_the_time() -> None:
        nonlocal ended
        ended = time.perf_counter()
        await flush()

    ledger.flush = noting_the_time
    with seldom_swept():  # as `generate` does
        async with lag(asker) as (lags, pauses):
            started, own, all_ = time.perf_counter(), time.thread_time(), time.process_time()
            await asker.ask_all(places)
            waited = time.perf_counter() - ended
            own, all_ = time.thread_time() - own, time.process_time() - all_
    await teacher.close()
    assert asker.tally.answered == number
    lags.sort()
    late = lags[int(len(lags) * 0.99)]
    return {
        "per_second": number / (ended - started),
        "end": waited,
        "lag": late,
        "paused": sum(pauses) / len(pauses),
        "own": own / number * 1e6,
        "others": (all_ - own) / number * 1e6,
    }


@contextlib.asynccontextmanager
async def lag(asker: Asker) -> AsyncIterator[tuple[list[float], list[bool]]]:
    """How much later than asked the event loop came back, in seconds, every 5 ms.

    And whether asking was paused at that moment, since too many answers are not kept yet.
    """
    lags: list[float] = []
    pauses: list[bool] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before - 0.005)
            pauses.append(asker._unsaved.locked())

    task = asyncio.create_task(watch())
    try:
        yield lags, pauses
    finally:
        task.cancel()


async def compare(
    url: str, options: argparse.Namespace, number: int, k: int, peers: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Rounds of asking with and without a ledger, three pairs each, and of others, in turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    await ask_through(url, Nowhere(), max(100, number // 10), k)  # warm up
    for _ in range(options.rounds):
        for sink in ("ledger", "nowhere", "nowhere", "ledger", "ledger", "nowhere"):
            if sink == "nowhere":
                one = await ask_through(url, Nowhere(), number, k)
            else:
                with tempfile.TemporaryDirectory(dir=options.work) as name:
                    with Ledger(Path(name)) as ledger:
                        ledger.begin("train")
                        one = await ask_through(url, ledger, number, k)
            found.setdefault(sink, []).append(one)
        for who, python in peers.items():
            path = str(Path(__file__).with_name("asking_peers.py"))
            command = [python, "-P", path, who, f"{url}/v1", str(max(50, number // 10)), str(k)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(who, []).append(json.loads(done.stdout.splitlines()[-1]))
    return found


def speed(options: argparse.Namespace) -> list[str]:
    peers = {"openai": sys.executable}
    if options.curator:
        peers["curator"] = options.curator
    with server() as url:
        found = asyncio.run(compare(f"{url}/plain", options, options.requests, 0, peers))
    size = f"{len(BODIES['plain']) / 1000:.1f} KB"
    return table_of_sinks(found, f"Answers of {size}, {options.requests:,} requests a round")


def logprobs(options: argparse.Namespace) -> list[str]:
    number = options.requests // 10
    with server() as url:
        peers = {"openai": sys.executable}
        found = asyncio.run(compare(f"{url}/probable", options, number, 20, peers))
    size = f"{len(BODIES['probable']) / 1000:.0f} KB"
    what = f"Answers of {size} (300 tokens of 20 log-probabilities), {number:,} requests a round"
    return table_of_sinks(found, what)


def table_of_sinks(found: dict[str, list[dict[str, Any]]], what: str) -> list[str]:
    names = {
        "nowhere": "Potstill, keeping nothing",
        "ledger": "Potstill, with the ledger on disk",
    }
    lines = [
        f"{what}, {IN_FLIGHT} in flight; {len(found['ledger'])} rounds with and without the ledger "
        f"in turns, {len(found['openai'])} of others with a tenth of the requests between them.",
        "",
        "| who asks | requests/s, median | lowest to highest | event loop lag, p99 |",
        "|---|---|---|---|",
    ]
    for who, each in found.items():
        rates = [one["per_second"] for one in each]
        late = f"{median(one['lag'] for one in each) * 1000:.0f} ms" if who in names else "–"
        name = names.get(who) or f"{each[0]['version']}"
        lines.append(
            f"| {name} | {median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {late} |"
        )
    end = 1e3 * median(one["end"] for one in found["ledger"])
    lines += [
        "",
        f"The wait at a round's end, until all is in the index, {end:.0f} ms, is not in it.",
    ]
    return lines


# An endpoint with an allowance


def limits(options: argparse.Namespace) -> list[str]:
    with server() as url:
        rows = [asyncio.run(use_allowance(url, *case)) for case in CASES]
    return [
        "100 requests a second are allowed, and no more than that at once; answers take 50 ms. "
        f"{SECONDS} seconds, of which the first, with a full second's worth to begin with, and the "
        "last are not counted.",
        "",
        "| how the limit is known | share of the allowance used | refused |",
        "|---|---|---|",
        *rows,
    ]


SECONDS = 30
CASES: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("given: `teacher.requests_per_minute: 6000`", "limited-100.0-silent", {"given": True}),
    ("told in headers", "limited-100-told", {}),
    ("only by status 429", "limited-100-silent", {}),
)


async def use_allowance(url: str, name: str, path: str, settings: dict[str, Any]) -> str:
    limit = {"requests_per_minute": 6_000} if settings else {}
    teacher = EndpointModel(f"{url}/{path}/v1", "fake", max_in_flight=256, **limit)
    asker = Asker(teacher, QA, CONFIG, Nowhere(), 10**9, 0, lambda state: None)
    places = (Place(n, record, 0) for n, record in enumerate(records(10**9)))
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(asker.ask_all(places), SECONDS)
    await teacher.close()
    params = {"path": f"/{path}/v1/chat/completions", "from": "1", "to": str(SECONDS - 1)}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/counted", params=params) as reply:
            found = await reply.json()
    return f"| {name} | {found['share']:.1%} | {found['num_refused']:,} |"


# The page


def heading(part: str, options: argparse.Namespace) -> list[str]:
    from potstill.pipeline.story import processor  # not where memory is measured

    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    machine = processor()
    command = " ".join(["python", "benchmarks/asking.py", part, *given(part, options)])
    return [
        f"{datetime.date.today()}, commit {commit}, {machine['name']} with {machine['cores']} "
        f"cores: `{command}`"
    ]


def given(part: str, options: argparse.Namespace) -> list[str]:
    """The options that change what a part measures."""
    words: list[str] = []
    if part in ("speed", "ledger", "parts", "logprobs", "resume", "engine"):
        words += ["--rounds", str(options.rounds)]
    if part in ("speed", "parts", "logprobs"):
        words += ["--requests", str(options.requests)]
    if part in ("memory", "resume"):
        words += ["--rows", *(str(rows) for rows in options.rows)]
    words += ["--inside"] * (part == "memory" and options.inside)
    return words + ["--curator", "PYTHON"] * (part == "speed" and options.curator is not None)


def put(page: Path, part: str, text: str) -> None:
    """Puts a part's text into its place in the page."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    whole = page.read_text(encoding="utf-8") if page.exists() else f"{begin}\n{end}\n"
    assert begin in whole, f"{page} has no place for {part}: {begin}"
    before, _, rest = whole.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


PARTS: dict[str, Callable[[argparse.Namespace], Iterable[str]]] = {
    "speed": speed,
    "ledger": lambda options: cost(options, Nowhere),
    "parts": lambda options: parts(options, ask_through, Nowhere),
    "logprobs": logprobs,
    "limits": limits,
    "memory": memory,
    "resume": resuming,
    "engine": engine,
}


if __name__ == "__main__":
    main()
