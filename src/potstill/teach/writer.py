"""A thread that writes what it is handed, many pieces together, and tells those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from potstill.errors import PotstillError
from potstill.teach.index import Want

MOST_TOGETHER = 256
"""Pieces that are written together at most."""

_GATHER_SECONDS = 0.075


class Item(NamedTuple):
    """Something to be written: an outcome, wishes, or nothing, for somebody who only waits."""

    future: asyncio.Future[None] | None
    """Done once it is written."""

    size: int = 0
    """Bytes of the outcome's line."""

    want: Want | None = None
    """Whose outcome it is; None where there is none."""

    cost: float = 0.0
    wants: Sequence[Want] = ()
    """Outcomes that are there already."""


class Writer:
    """Writes in the order in which it was handed things, at most 256 or 75 ms of them at once.

    The event loop only hands over; files and database are this thread's, so that a slow disk
    holds up nobody who asks.

    Args:
        write: Writes some items, all or none. Returns why it could not; empty where it could.
        follow: Does what need not be done before outcomes count, and is called after those who
            wait for them were told; those who wait for everything are told after it.
    """

    def __init__(
        self, write: Callable[[Sequence[Item]], str], follow: Callable[[Sequence[Item]], str]
    ):
        self.failure = ""
        """Why nothing is written any more; empty while it is."""

        self._write, self._follow = write, follow
        # None ends the thread.
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._soon = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="ledger", daemon=True)

    def start(self) -> None:
        """From now on what is handed over is written."""
        self._thread.start()

    def add(self, item: Item, *, at_once: bool = False) -> None:
        """Hands it over.

        Args:
            at_once: Waits for no company.
        """
        self._items.put(item)
        # A thread that is told twice wakes up no earlier, and telling costs both of them.
        if (at_once or self._items.qsize() >= MOST_TOGETHER) and not self._soon.is_set():
            self._soon.set()

    def finish(self) -> None:
        """Returns when everything is written, and ends the thread."""
        self._items.put(None)
        self._soon.set()
        self._thread.join()

    def _write_on(self) -> None:
        is_last, began = False, 0.0
        while not is_last:
            found = [self._items.get()]
            # Not after a write that took as long: others have come meanwhile.
            self._soon.wait(began + _GATHER_SECONDS - time.monotonic())
            self._soon.clear()
            began = time.monotonic()
            found += [self._items.get_nowait() for _ in range(self._items.qsize())]
            items = [item for item in found if item is not None]
            is_last = len(items) < len(found)
            for start in range(0, len(items), MOST_TOGETHER):
                some = items[start : start + MOST_TOGETHER]
                for step, waiting in (
                    (self._write, [item.future for item in some if item.future and item.want]),
                    (self._follow, [item.future for item in some if item.future and not item.want]),
                ):
                    if not self.failure:
                        self.failure = step(some)
                    _settle(waiting, self.failure)


def _settle(futures: Sequence[asyncio.Future[None]], failure: str) -> None:
    """Tells those who wait, in their own thread."""

    def tell() -> None:
        for future in futures:
            if future.done():  # whoever waited has given up
                continue
            if failure:
                future.set_exception(PotstillError(failure))
                future.exception()  # seen, also where nobody asks: flush and close say it too
            else:
                future.set_result(None)

    if futures:
        with contextlib.suppress(RuntimeError):  # nobody is left to be told: the loop has ended
            futures[0].get_loop().call_soon_threadsafe(tell)
