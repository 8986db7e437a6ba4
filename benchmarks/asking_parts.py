"""What the ledger's parts cost while asking: rounds without one of them, in turns."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import median
from typing import Any

from asking_server import server

from potstill.teach.index import State
from potstill.teach.ledger import Ledger
from potstill.types import Response

Ask = Callable[[str, Any, int], Coroutine[Any, Any, dict[str, float]]]


class WithoutIndex(Ledger):
    """Lines are written, and nobody notes where."""

    num_put = 0

    def put(
        self, response: Response, record: int, key: bytes | None = None
    ) -> asyncio.Future[None]:
        self.num_put += 1
        return super().put(response, record, key)

    def counts(self) -> dict[State, int]:
        return {State.DONE: self.num_put}

    def _save_index(self) -> None:
        self._unindexed, self._wanted, self._cost = [], [], 0.0


VARIANTS: dict[str, Callable[[Path], Ledger]] = {
    "nothing": Ledger,
    "waiting for the disk": lambda path: Ledger(path, sync=lambda file: None),
    "the index": WithoutIndex,
    "waiting for the disk, and the index": lambda path: WithoutIndex(path, sync=lambda file: None),
    "writing and waiting for the disk": lambda path: Ledger(
        path, write=lambda file, data: len(data), sync=lambda file: None
    ),
}
"""What is left out, and the ledger without it."""


def parts(options: argparse.Namespace, ask: Ask, nowhere: Callable[[], Any]) -> list[str]:
    """Costs against keeping nothing, of the pairs in each round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *VARIANTS)}
    with server() as url:
        place = f"{url}/plain"
        asyncio.run(ask(place, nowhere(), max(100, options.requests // 10)))  # warm up
        for number in range(options.rounds):
            for name in list(found)[:: 1 - 2 * (number % 2)]:
                found[name].append(_round(place, name, options, ask, nowhere))
    lines = [
        f"{options.requests:,} requests a round, {options.rounds} rounds in turns. Cost is the "
        "median of the rounds' own ratios to keeping nothing; paused is the share of time in which "
        "so many answers are not on the disk yet that nothing more is asked. Processor time: "
        "microseconds a request above keeping nothing, medians of the rounds' own differences.",
        "",
        "| left out | requests/s, median | cost | lowest to highest | paused | asking thread | "
        "other threads |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        rates = [one["per_second"] for one in each]
        pairs = zip(rates, (one["per_second"] for one in found[""]), strict=True)
        costs = [1 - rate / free for rate, free in pairs]
        range_of = f"{median(costs):.1%} | {min(costs):.1%} to {max(costs):.1%}"
        cells = [name or "the ledger", f"{median(rates):,.0f}", range_of if name else "– | –"]
        cells.append(f"{median(one['paused'] for one in each):.1%}")
        for part in ("own", "others"):
            above = [one[part] - free[part] for one, free in zip(each, found[""], strict=True)]
            cells.append(f"{median(above):+.0f}" if name else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _round(
    place: str, name: str, options: argparse.Namespace, ask: Ask, nowhere: Callable[[], Any]
) -> dict[str, float]:
    if not name:
        return asyncio.run(ask(place, nowhere(), options.requests))
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        with VARIANTS[name](Path(folder)) as ledger:
            ledger.begin("train")
            return asyncio.run(ask(place, ledger, options.requests))
