"""What an endpoint allows in a minute: counted here, and read from the headers of its replies."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_MINUTE = 60.0
_PATTERNS = {
    "requests": ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}"),
    "tokens": ("x-ratelimit-{}-tokens", "anthropic-ratelimit-tokens-{}"),
    "input_tokens": ("anthropic-ratelimit-input-tokens-{}",),
    "output_tokens": ("anthropic-ratelimit-output-tokens-{}",),
}
_HEADERS = {
    kind: [[pattern.format(word) for word in ("limit", "remaining", "reset")] for pattern in some]
    for kind, some in _PATTERNS.items()
}
"""What is limited -> the names of its headers in the manner of each provider."""
KINDS = tuple(_HEADERS)
"""What endpoints limit: requests, all tokens, those of prompts, those of answers."""

_APART = tuple(_HEADERS[kind][0][0] for kind in ("input_tokens", "output_tokens"))

_UNITS = {"d": 86400.0, "h": 3600.0, "m": _MINUTE, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")


class Allowance(NamedTuple):
    """What a server said: so much in each period, and what was left when it said so."""

    limit: float
    period: float
    """Seconds: 1 or 60."""

    remaining: float


class Bucket:
    """An allowance that fills evenly, holds one second's worth, and gives credit.

    Holding one second's worth and no more keeps to the second as well as to the minute: many
    servers count by the second whatever their price list says. What takes more than there is
    puts the bucket into debt, and the next one waits until that is paid; so no request is too
    large, and the average is kept. What was taken and not used may be given back.
    """

    def __init__(self, limit: float, period: float, *, now: float, remaining: float = math.inf):
        self.limit, self.period = limit, period
        self.taken = 0.0
        """All that was ever taken, before anything was given back."""

        self._at = now
        self._level = min(self._most, remaining)

    @property
    def _rate(self) -> float:
        return self.limit / self.period

    @property
    def _most(self) -> float:
        return max(1.0, self._rate)

    def seconds_to(self, amount: float, now: float) -> float:
        """Until so much may be taken; 0 where it may now."""
        self._fill(now)
        short = min(amount, self._most) - self._level
        # A shortage of a millionth is rounding; waiting for it might not move the clock.
        return short / self._rate if short > 1e-6 * self._most else 0.0

    def take(self, amount: float) -> float:
        """Takes it, or a whole period's allowance where it is more; returns what was taken."""
        amount = min(amount, self.limit)
        self._level -= amount
        self.taken += amount
        return amount

    def give_back(self, amount: float, now: float) -> None:
        """Corrects what was taken; less than 0 takes more."""
        self._fill(now)
        self._level = min(self.limit, self._level + amount)

    def agree(self, told: Allowance, *, sent_at: float, taken: float, now: float) -> None:
        """Follows what a server said in reply to a request.

        It is never thought to have more left than it said, plus what has flowed in since the
        request was sent, less what was taken since.

        Args:
            taken: `self.taken` just after that request took its share.
        """
        self._fill(now)
        self.limit, self.period = told.limit, told.period
        left = told.remaining + (now - sent_at) * self._rate - (self.taken - taken)
        self._level = min(self._level, left)

    def _fill(self, now: float) -> None:
        if self._level < self._most:
            added = max(0.0, now - self._at) * self._rate
            self._level = min(self._most, self._level + added)
        self._at = now


def told_allowance(headers: Mapping[str, str], kind: str, wall_clock: float) -> Allowance | None:
    """What a reply's headers say about requests or tokens; None where they say nothing usable.

    A header names no period. The reset is the time until the whole limit is there again, so
    limit, remaining and reset together tell the period of an allowance that fills evenly. One
    whose reset is beyond a minute (Groq's requests are per day) is not for pacing: it is used
    until it is gone, and then the endpoint says so.

    Where prompts and answers have limits of their own, the one for all tokens repeats whichever
    of them is nearer, so it is none for their sum and is passed over.

    Args:
        kind: One of `KINDS`.
        wall_clock: Seconds since 1970, for resets that are dates.
    """
    if kind == "tokens" and any(name in headers for name in _APART):
        return None
    for of_limit, of_remaining, of_reset in _HEADERS[kind]:
        text = headers.get(of_limit)
        limit = _count(text) if text else None  # most endpoints tell none, at every reply
        if limit is None or limit < 1:
            continue
        remaining = _count(headers.get(of_remaining))
        remaining = limit if remaining is None else min(remaining, limit)
        reset = seconds_until(headers.get(of_reset, ""), wall_clock)
        period = _MINUTE
        if reset is not None and reset > 1.1 * _MINUTE:
            return None
        if reset and remaining < limit and reset * limit / (limit - remaining) <= 2:
            period = 1.0
        return Allowance(limit, period, remaining)
    return None


def seconds_until(text: str, wall_clock: float) -> float | None:
    """Reads 1s, 6m0s, 20ms, a bare number of seconds, or a date of RFC 3339; None where it is none.

    Returns:
        Not negative; a date that is past gives 0.
    """
    text = text.strip()
    if (seconds := _count(text)) is not None:
        return seconds
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, date.timestamp() - wall_clock)


def _count(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
