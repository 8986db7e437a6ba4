"""Asks the teacher what the student was asked, behind its back, and counts where they differ."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from potstill.errors import PotstillError
from potstill.protocols import ChatModel, Task
from potstill.serve.watching import Exchange
from potstill.tasks.agreement import same_answer
from potstill.tasks.options import comparable
from potstill.types import Record, Response, Sampling

_MOST_OPEN = 8
"""More answers of the teacher than these are not waited for; they are counted as skipped."""


class Shadow:
    """Asks the teacher too, for a share of the chats, once the user has the answer: a `Watcher`.

    Args:
        share: Of the requests, in [0, 1].
        task: Reads what both say; without one, the texts themselves are compared, but for case,
            punctuation at the ends and spaces.
        on_outcome: Told `agreed`, `disagreed`, `failed` or `skipped`.
        draw: Random numbers in [0, 1).
    """

    def __init__(
        self,
        teacher: ChatModel,
        *,
        share: float,
        on_outcome: Callable[[str], None],
        task: Task | None = None,
        draw: Callable[[], float] = random.random,
    ):
        self._teacher, self._share, self._task = teacher, share, task
        self._on_outcome, self._draw = on_outcome, draw
        self._open: set[asyncio.Task[None]] = set()

    def saw(self, exchange: Exchange, seconds: float, first_seconds: float | None) -> None:
        """Asks the teacher the first of what was asked, if the exchange is one of the share."""
        if not exchange.asked.is_chat or self._draw() >= self._share:
            return
        response = exchange.responses[0]
        if response.model != exchange.model or len(self._open) >= _MOST_OPEN:
            self._on_outcome("skipped")  # the teacher's own answer, or one too many
            return
        record, sampling = exchange.asked.parts[0]
        asking = asyncio.create_task(self._compare(record, sampling, response))
        self._open.add(asking)
        asking.add_done_callback(self._open.discard)

    async def close(self) -> None:
        """Gives up what is not answered yet, and closes the teacher."""
        for asking in self._open:
            asking.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._teacher.close()

    async def _compare(self, record: Record, sampling: Sampling, response: Response) -> None:
        try:
            other = await self._teacher.respond(record, sampling)
        except PotstillError:
            self._on_outcome("failed")
            return
        except asyncio.CancelledError:
            self._on_outcome("skipped")
            raise
        if other.finish_reason == "error":
            self._on_outcome("failed")
            return
        ours, theirs = (self._key(record, text) for text in (response.text, other.text))
        self._on_outcome("agreed" if ours and ours == theirs else "disagreed")

    def _key(self, record: Record, text: str) -> str:
        return same_answer(record, text, self._task) if self._task else comparable(text)
