"""What the ledger costs while asking: one run that keeps its answers half of the time.

Rounds with and without a ledger, each of some seconds, differ by a quarter on a shared machine
for reasons of its neighbours, which last seconds as well. Here one run goes on, with the same
connections, and its answers go to the ledger or nowhere in turns of half a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from asking_memory import CONFIG, QA, records
from asking_peers import IN_FLIGHT
from asking_server import server

from potstill.examine.resample import percentile_interval, resampled_sums
from potstill.models.endpoint import EndpointModel
from potstill.models.sweeping import seldom_swept
from potstill.teach.asker import Asker
from potstill.teach.index import State
from potstill.teach.ledger import Ledger
from potstill.teach.requests import Place
from potstill.types import Response

SECONDS = {"plain": 0.4, "probable": 1.6}
"""Of a turn, by what is answered; what the turn before left over is done in SETTLING before it."""

SETTLING = 0.15
TURNS = 40
"""Of a round, which has a ledger of its own."""


class InTurns:
    """A ledger that keeps what it is given, or does not.

    Args:
        nowhere: What it is given to then.
    """

    def __init__(self, ledger: Ledger, nowhere: Any):
        self.ledger, self.nowhere = ledger, nowhere
        self.keeps = True
        self.path, self.num_damaged, self.cost = ledger.path, 0, 0.0

    @property
    def now(self) -> Any:
        return self.ledger if self.keeps else self.nowhere

    def find(self, keys: Sequence[bytes]) -> dict[bytes, State]:
        return self.now.find(keys)

    def put(self, response: Response, record: int, key: bytes) -> asyncio.Future[None]:
        return self.now.put(response, record, key)

    def want(self, wants: Any) -> None:
        self.now.want(wants)

    async def flush(self) -> None:
        await self.ledger.flush()

    def counts(self) -> dict[State, int]:
        kept, thrown = self.ledger.counts(), self.nowhere.counts()
        return {state: kept.get(state, 0) + thrown[state] for state in State}


class Turn(NamedTuple):
    """Some tenths of a second of asking."""

    requests: int
    seconds: float
    own: float
    """Processor seconds of the thread that asks."""

    others: float
    """Of all other threads of this process."""


async def one_round(url: str, sink: InTurns, k: int, seconds: float) -> list[list[Turn]]:
    """The turns in which answers were kept, and those in which they were not, in pairs."""
    teacher = EndpointModel(f"{url}/v1", "fake", max_in_flight=IN_FLIGHT, start_in_flight=IN_FLIGHT)
    asker = Asker(teacher, QA, CONFIG, sink, 10**9, k, lambda state: None)
    is_over = False

    def places() -> Iterator[Place]:
        given = itertools.takewhile(lambda _: not is_over, enumerate(records(10**9)))
        return (Place(n, record, 0) for n, record in given)

    def clocks() -> Turn:
        own = time.thread_time()
        return Turn(asker.tally.answered, time.perf_counter(), own, time.process_time() - own)

    turns: list[list[Turn]] = [[], []]
    with seldom_swept():  # as `generate` does
        asking = asyncio.create_task(asker.ask_all(places()))
        await asyncio.sleep(1.0)  # until connections are open
        for number in range(TURNS):
            sink.keeps = number % 4 in (0, 3)
            await asyncio.sleep(SETTLING)
            before = clocks()
            await asyncio.sleep(seconds)
            turn = Turn(*(now - then for now, then in zip(clocks(), before, strict=True)))
            turns[not sink.keeps].append(turn)
        is_over = True
        await asking
    await teacher.close()
    return turns


def cost(options: argparse.Namespace, nowhere: Callable[[], Any]) -> list[str]:
    """Table of the ledger's costs for short answers and for those with log-probabilities."""
    rounds: dict[str, list[list[list[Turn]]]] = {name: [] for name in SECONDS}
    for number in range(options.rounds):
        for name, seconds in SECONDS.items():
            if name == "probable" and number % 12:
                continue  # its turns are four times as long
            with server() as url, tempfile.TemporaryDirectory(dir=options.work) as folder:
                with Ledger(Path(folder)) as ledger:
                    ledger.begin("train")
                    sink = InTurns(ledger, nowhere())
                    k = 20 * (name == "probable")
                    turns = asyncio.run(one_round(f"{url}/{name}", sink, k, seconds))
            rounds[name].append(turns)
    lines = [
        f"{IN_FLIGHT} in flight. Turns of {SECONDS['plain']} s, {SECONDS['probable']} s with "
        f"log-probabilities, {TURNS} of them a round, which has a server and a ledger of its own; "
        f"{SETTLING} s between them, in which what the turn before left over is done, are not "
        "counted. Costs are of the requests a second of all turns, with 95 % intervals over the "
        "rounds.",
        "",
        "| answers | pairs of turns | rounds | requests/s, kept nowhere | with the ledger | "
        "**it costs** | rounds' own costs | µs a request of the asking thread | the ledger adds "
        "| in other threads |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    titles = {"plain": "1.5 KB", "probable": "406 KB, 300 tokens of 20 log-probabilities"}
    return lines + [_row(titles[name], each) for name, each in rounds.items() if each]


def _row(title: str, rounds: list[list[list[Turn]]]) -> str:
    kept, thrown = (
        np.array([np.sum(turns[which], axis=0) for turns in rounds]) for which in (0, 1)
    )
    both = np.concatenate([kept, thrown], axis=1)  # [rounds, 8]
    drawn = resampled_sums(both, seed=0)

    def differs(a: np.ndarray) -> Any:
        return 1 - (a[..., 0] / a[..., 1]) / (a[..., 4] / a[..., 5])

    def adds(which: int) -> str:
        def value(a: np.ndarray) -> Any:
            return 1e6 * (a[..., which] / a[..., 0] - a[..., 4 + which] / a[..., 4])

        low, high = percentile_interval(value(drawn))
        return f"{value(both.sum(axis=0)):+.1f} [{low:+.1f}, {high:+.1f}]"

    low, high = percentile_interval(differs(drawn))
    total, each = both.sum(axis=0), sorted(differs(both))
    cells = [
        title,
        f"{sum(len(turns[0]) for turns in rounds):,}",
        f"{len(rounds)}",
        f"{total[4] / total[5]:,.0f}",
        f"{total[0] / total[1]:,.0f}",
        f"**{differs(total):.1%} [{low:.1%}, {high:.1%}]**",
        f"{each[0]:.1%} to {each[-1]:.1%}",
        f"{1e6 * total[6] / total[4]:.0f}",
        adds(2),
        adds(3),
    ]
    return "| " + " | ".join(cells) + " |"
