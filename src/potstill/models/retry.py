"""When a request is tried again, and how long that waits."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

MOST_ATTEMPTS = 6
"""Attempts of one request; refusals for being too fast (429) do not count."""

MOST_BUSY_SECONDS = 1800.0
"""How long one request waits on 429 in all, while nobody else is answered either."""

_FREE_RETRIES = 50
_RETRIES_PER_ANSWER = 0.2
_LONGEST_JITTER_SECONDS = 60.0
_LONGEST_TOLD_SECONDS = 600.0

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})


class RetryBudget:
    """Failed requests that may be sent again: 50, or a fifth of the answers where that is more.

    Without it an endpoint that fails half the time is asked, and perhaps paid, six times over.
    """

    def __init__(self) -> None:
        self.num_answers = 0
        self.num_retries = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing may be sent again until more answers have come."""
        return self.num_retries + 1 > max(_FREE_RETRIES, _RETRIES_PER_ANSWER * self.num_answers)


def wait_seconds(
    attempt: int, headers: Mapping[str, str], *, jitter: float, wall_clock: float
) -> float:
    """Seconds until the next attempt: what the server says, else full jitter.

    Args:
        attempt: How many attempts have failed or were refused for speed, from 1.
        jitter: A random number in [0, 1).
        wall_clock: Seconds since 1970, for Retry-After dates.

    Source:
        Full jitter: Brooker (2015), "Exponential Backoff And Jitter", AWS Architecture Blog.
    """
    told = retry_after_seconds(headers, wall_clock)
    if told is not None:
        # A little more than told, so that a crowd does not come back in one instant.
        return told + jitter
    return jitter * min(_LONGEST_JITTER_SECONDS, 2.0**attempt)


def retry_after_seconds(headers: Mapping[str, str], wall_clock: float) -> float | None:
    """What Retry-After asks for, in [0, 600] seconds; None where it says nothing usable."""
    lower = {name.lower(): value for name, value in headers.items()}
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = lower.get(name, "").strip()
        if not text:
            continue
        seconds = _number(text)
        if seconds is not None:
            seconds *= scale
        elif name == "retry-after":
            seconds = _until(text, wall_clock)
        if seconds is not None and not math.isnan(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_TOLD_SECONDS)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _until(text: str, wall_clock: float) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - wall_clock)
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
