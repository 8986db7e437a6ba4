"""Gathers what is to be written, and a thread that writes it, many pieces together."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence

from potstill.errors import PotstillError
from potstill.teach.entries import Entries, Wants

MOST_TOGETHER = 256
"""Pieces that are written together at most."""

_GATHER_SECONDS = 0.075


class Group:
    """Outcomes and wishes that are written together: the event loop's until it is handed over."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self.lines = bytearray()
        """Of the outcomes, one after the other: one object, and not hundreds."""

        self.outcomes = Entries()
        """What the index notes of them; their places are counted from the first line."""

        self.wants = Wants()
        """These, and outcomes that are there already."""

        self.cost = 0.0
        self.written = loop.create_future()
        """Done once the lines are on the disk."""

        self.followed: list[asyncio.Future[None]] = []
        """Done once all else is, too; somebody waits for these."""

    @property
    def is_full(self) -> bool:
        return len(self.outcomes) >= MOST_TOGETHER


class Writer:
    """Writes in the order in which it was given things, at most 256 or 75 ms of them at once.

    The event loop only gathers; files and database are this thread's, so that a slow disk holds
    up nobody who asks. Hundreds of pieces go from one thread to the other, and back, as one.

    Args:
        write: Writes a group, all or nothing of it. Returns why it could not; empty where it could.
        follow: Does what need not be done before outcomes count, and is called after those who
            wait for them were told; those who wait for everything are told after it.
    """

    def __init__(self, write: Callable[[Group], str], follow: Callable[[Group], str]):
        self.failure = ""
        """Why nothing is written any more; empty while it is."""

        self._write, self._follow = write, follow
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: Group | None = None
        self._is_due = False
        self._num_away = 0
        self._began = 0.0
        # None ends the thread.
        self._groups: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_on, name="ledger", daemon=True)

    def start(self) -> None:
        """From now on what is handed over is written."""
        self._thread.start()

    def group(self) -> Group:
        """What is being gathered, by the event loop alone. Whoever makes it full hands it over."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # an earlier one has ended, and tells nothing more
            self.hand_over()
            self._loop, self._num_away = loop, 0
        if self._open is None:
            self._open = Group(loop)
            # Not long after the one before: others come meanwhile.
            loop.call_at(self._began + _GATHER_SECONDS, self._end, self._open)
        return self._open

    def hand_over(self) -> None:
        """Waits for no more company."""
        group, self._open, self._is_due = self._open, None, False
        if group is not None:
            self._num_away += 1
            self._began = group.loop.time()
            self._groups.put(group)

    def finish(self) -> None:
        """Returns when everything is written, and ends the thread."""
        self.hand_over()
        self._groups.put(None)
        self._thread.join()

    def _end(self, group: Group) -> None:
        """The time of a group is over; while the disk is busy it takes in more."""
        self._is_due = group is self._open
        if self._is_due and not self._num_away:
            self.hand_over()

    def _came_back(self) -> None:
        self._num_away -= 1
        if self._is_due and not self._num_away:
            self.hand_over()

    def _write_on(self) -> None:
        while (group := self._groups.get()) is not None:
            if not self.failure:
                self.failure = self._write(group)
            _tell(group, [group.written], self.failure, self._came_back)
            if not self.failure:
                self.failure = self._follow(group)
            _tell(group, group.followed, self.failure)


def _tell(
    group: Group,
    futures: Sequence[asyncio.Future[None]],
    failure: str,
    and_then: Callable[[], None] = lambda: None,
) -> None:
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
        and_then()

    if futures:
        with contextlib.suppress(RuntimeError):  # nobody is left to be told: the loop has ended
            group.loop.call_soon_threadsafe(tell)
