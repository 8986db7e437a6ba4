"""Who may send now: first come, first served, as fast as the endpoint allows and no faster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from potstill.errors import TeacherRefused
from potstill.models.breaker import Breaker
from potstill.models.limits import KINDS, Bucket, told_allowance

log = logging.getLogger(__name__)

START = 20
_LESS, _MORE = 0.8, 1.05
_CUT_SECONDS = 15.0


@dataclass(slots=True)
class Slot:
    """The right to have one request open."""

    sent_at: float
    is_probe: bool
    took: dict[str, float]
    """Bucket -> what was taken from it."""

    taken: dict[str, float] = field(default_factory=dict)
    """Bucket -> all that had been taken from it by then."""


class Admission:
    """Bounds the requests that are open, and those of a second and a minute; stops at outages.

    How many may be open at once begins with 20, grows by 5 % with every round of answers (as
    many as may be open) in which nothing failed, and shrinks to 80 % when the endpoint says 429,
    at most once in 15 seconds or the time that it asks for.

    Args:
        host: What messages call the endpoint.
        most: Never more requests open than this.
        start: How many may be open at first.
        requests_per_minute, tokens_per_minute: The endpoint's limits; learned from the headers
            of its replies where None.
    """

    def __init__(
        self,
        host: str,
        *,
        most: int,
        start: int = START,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ):
        self.host = host
        self.limit = float(min(start, most))
        """How many requests may be open; a whole number once it is rounded down."""

        self.num_open = 0
        self.breaker = Breaker(clock)
        self._most = most
        self._clock, self._wall_clock, self._sleep = clock, wall_clock, sleep
        given = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets = {
            kind: Bucket(limit, 60.0, now=clock()) for kind, limit in given.items() if limit
        }
        self._learned = [
            kind for kind in KINDS if not given[kind if kind == "requests" else "tokens"]
        ]
        self._num_clean = 0
        self._cut_until = -math.inf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line = asyncio.Lock()
        self._changed: asyncio.Future[None] | None = None

    @contextlib.asynccontextmanager
    async def slot(self, tokens: float, new_tokens: float = 0.0) -> AsyncIterator[Slot]:
        """Waits for the right to send, and gives it back at the end.

        Args:
            tokens: How many the request may cost, prompt and answer.
            new_tokens: Of these, the answer's.

        Raises:
            TeacherRefused: If nothing has gone through for hours.
        """
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._line = asyncio.get_running_loop(), asyncio.Lock()
        needs = _parts(tokens, new_tokens) | {"requests": 1.0}
        # The lock is handed on in the order of arrival, so that whoever holds it is first.
        async with self._line:
            while seconds := self._seconds_to_wait(needs):
                await self._wait(seconds)
            slot = self._take(needs)
        try:
            yield slot
        finally:
            self.num_open -= 1
            if slot.is_probe:
                self.breaker.probe_ends()
            if self._changed is not None and not self._changed.done():
                self._changed.set_result(None)

    def learn(self, slot: Slot, headers: Mapping[str, str]) -> None:
        """Reads the endpoint's limits from a reply; those that were given win."""
        for kind in self._learned:
            told = told_allowance(headers, kind, self._wall_clock())
            if told is None:
                continue
            now, bucket = self._clock(), self._buckets.get(kind)
            if bucket is None:
                self._buckets[kind] = Bucket(
                    told.limit, told.period, now=now, remaining=told.remaining
                )
            elif kind in slot.taken:
                bucket.agree(told, sent_at=slot.sent_at, taken=slot.taken[kind], now=now)

    def answered(self, slot: Slot, num_tokens: int | None, num_new_tokens: int = 0) -> None:
        """The request went through.

        Args:
            num_tokens: What it really cost, prompt and answer; None where that is not known.
            num_new_tokens: Of these, the answer's.
        """
        if self.breaker.is_paused:
            log.warning("%s answers again", self.host)
            self.limit = min(self.limit, float(START))  # the whole crowd at once might end it
        self.breaker.answered()
        self._settle(slot, num_tokens, num_new_tokens)
        self._num_clean += 1
        if self._num_clean >= self.limit:
            self._num_clean = 0
            self.limit = min(float(self._most), self.limit * _MORE)

    def refused_for_speed(self, slot: Slot, reason: str, told_seconds: float) -> None:
        """The endpoint said 429, and perhaps how long to wait."""
        self._settle(slot, 0)
        now = self._clock()
        if now >= self._cut_until:
            self.limit = max(1.0, self.limit * _LESS)
            self._cut_until = now + max(_CUT_SECONDS, told_seconds)
        self._trouble(slot, reason, told_seconds, is_busy=True)

    def failed(self, slot: Slot, reason: str, told_seconds: float = 0.0) -> None:
        """The endpoint did not answer, or not as it should."""
        self._trouble(slot, reason, told_seconds, is_busy=False)

    def _trouble(self, slot: Slot, reason: str, told_seconds: float, *, is_busy: bool) -> None:
        self._num_clean = 0
        was_paused = self.breaker.is_paused
        self.breaker.failed(
            reason,
            slot.sent_at,
            is_busy=is_busy,
            is_probe=slot.is_probe,
            told_seconds=told_seconds,
        )
        if self.breaker.is_paused and not was_paused:
            log.warning("%s is paused: %s", self.host, self.breaker.reason)

    def _settle(self, slot: Slot, num_tokens: int | None, num_new_tokens: int = 0) -> None:
        if num_tokens is None:
            return
        for kind, used in _parts(num_tokens, num_new_tokens).items():
            if kind in slot.took:
                self._buckets[kind].give_back(slot.took[kind] - used, self._clock())

    def _seconds_to_wait(self, needs: Mapping[str, float]) -> float:
        """0 to send now, infinity until something changes."""
        breaker = self.breaker
        if breaker.has_given_up:
            raise TeacherRefused(
                f"{self.host} was tried for hours in vain: {breaker.reason}. All answers so far "
                f"are kept; run the same command again once it is well"
            )
        if seconds := breaker.seconds_to_probe():
            return seconds
        if self.num_open >= int(self.limit) and not breaker.is_paused:
            return math.inf
        now = self._clock()
        return max(
            (bucket.seconds_to(needs[kind], now) for kind, bucket in self._buckets.items()),
            default=0.0,
        )

    async def _wait(self, seconds: float) -> None:
        """Until a request ends, or so many seconds are over."""
        self._changed = asyncio.get_running_loop().create_future()
        if seconds == math.inf:
            await self._changed
            return
        timer = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({self._changed, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    def _take(self, needs: Mapping[str, float]) -> Slot:
        took = {kind: bucket.take(needs[kind]) for kind, bucket in self._buckets.items()}
        slot = Slot(
            sent_at=self._clock(),
            is_probe=self.breaker.is_paused,
            took=took,
            taken={kind: bucket.taken for kind, bucket in self._buckets.items()},
        )
        self.num_open += 1
        if slot.is_probe:
            self.breaker.probe_starts()
        return slot


def _parts(tokens: float, new_tokens: float) -> dict[str, float]:
    """Tokens as the limits count them."""
    return {
        "tokens": tokens,
        "input_tokens": tokens - new_tokens,
        "output_tokens": new_tokens,
    }
