"""How far the asking is: rate, money, failures by reason, time left."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from potstill.models.failures import Failure
from potstill.types import Noun

_WINDOW_SECONDS = 30.0
_MARK_SECONDS = 1.0


class Asking(Noun):
    """Where the asking of one input is, at one moment."""

    requested: int
    answered: int
    """Answers that are there, those from earlier runs counted."""

    reused: int = 0
    """Of the answered: came in an earlier run."""

    failed: int = 0
    reasons: dict[str, int] = {}
    """`models.failures.Failure` -> how often, in this run."""

    in_flight: int = 0
    retries: int = 0
    answers_per_second: float = 0.0
    tokens_per_second: float = 0.0
    """Tokens of answers. Both rates are of the last half minute."""

    cost: float | None = None
    """What all answers cost so far; None where no price is known."""

    projected_cost: float | None = None
    """What they will have cost, if the rest costs as much a piece as what came in this run."""

    num_unused: int = 0
    """Asked for in this run, and of no use: cut, withheld, empty, failed or cancelled."""

    num_unused_tokens: int = 0
    """Of prompts and answers of these, as the provider counted them."""

    unused_cost: float | None = None
    num_unread: int = 0
    """Attempts that brought nothing to read and may have been paid for, retried ones among them."""

    seconds: float = 0.0
    seconds_left: float | None = None
    """None while nothing has come to reckon it from."""

    state: str = "running"
    """Or until when the teacher is paused, and why."""

    is_stopping: bool = False
    """Nothing more is asked; answers that are on their way are waited for."""

    @property
    def text(self) -> str:
        """All of it that is not done, wanted or time, in a few words."""
        parts = []
        if self.is_stopping:
            parts.append(f"stopping: {self.in_flight} on their way")
        if self.state != "running":
            parts.append(self.state)
        if self.answers_per_second:
            parts.append(f"{self.answers_per_second:,.1f}/s")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.retries:
            parts.append(f"{self.retries:,} retries")
        if self.failed:
            some = ", ".join(f"{kind.replace('_', ' ')} {n:,}" for kind, n in self.reasons.items())
            parts.append(f"{self.failed:,} failed" + (f" ({some})" if some else ""))
        if self.cost is not None:
            about = "" if self.projected_cost is None else f" of about {self.projected_cost:.2g}"
            unused = f", {self.unused_cost:.2g} unused" if self.unused_cost else ""
            parts.append(f"cost {self.cost:.4f}{about}{unused}")
        return ", ".join(parts)


class Meter:
    """Counts what comes in, and says how fast."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._started = clock()
        self.num_answers = 0
        self.num_tokens = 0
        self.reasons: Counter[str] = Counter()
        self._marks: deque[tuple[float, int, int]] = deque([(self._started, 0, 0)])

    @property
    def seconds(self) -> float:
        """How long it has been counting."""
        return self._clock() - self._started

    def answered(self, num_tokens: int) -> None:
        """An answer came, of so many tokens."""
        self.num_answers += 1
        self.num_tokens += num_tokens

    def failed(self, reason: Failure, number: int = 1) -> None:
        """So many requests ended without an answer."""
        if number:
            self.reasons[reason.value] += number

    def rates(self) -> tuple[float, float]:
        """Answers and tokens a second, of the last half minute."""
        now = self._clock()
        while len(self._marks) > 1 and self._marks[1][0] <= now - _WINDOW_SECONDS:
            self._marks.popleft()
        then, num_answers, num_tokens = self._marks[0]
        if now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, self.num_answers, self.num_tokens))
        if now <= then:
            return 0.0, 0.0
        span = now - then
        return (self.num_answers - num_answers) / span, (self.num_tokens - num_tokens) / span
