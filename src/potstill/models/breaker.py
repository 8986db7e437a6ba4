"""When an endpoint is left in peace: nearly everything fails, or nothing has come for minutes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

_NUM_RECENT = 50
_RECENT_SECONDS = 120.0
_MOST_FAILURES = 0.95
_BARREN_SECONDS = 300.0
_FIRST_PROBE_SECONDS = 15.0
_LONGEST_PROBE_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 6 * 3600.0


class Breaker:
    """Lets everything through until the endpoint fails for good; then one probe now and then.

    It is paused when 95 % of the last 50 requests failed within 120 seconds, or when requests
    failed and no answer came for 300. Probes follow after 15 seconds, 30, and so on up to five
    minutes. The first answer, of a probe or of a request that was still open, ends the pause.

    Being refused for speed (429) shows that the endpoint lives, so it counts for the second
    rule only.
    """

    def __init__(self, clock: Callable[[], float]):
        self.reason = ""
        """Why it is paused; empty while it is not."""

        self._clock = clock
        self._recent: deque[tuple[float, bool]] = deque(maxlen=_NUM_RECENT)
        self._last_answer = -math.inf
        self._failing_since = math.inf
        self._paused_since = 0.0
        self._interval = 0.0
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def is_paused(self) -> bool:
        """Whether nothing but a probe goes through."""
        return bool(self.reason)

    @property
    def has_given_up(self) -> bool:
        """Whether it has been paused for hours, so that nobody should wait for the next probe."""
        has_lasted = self._clock() - self._paused_since >= _LONGEST_PAUSE_SECONDS
        return self.is_paused and has_lasted and self.seconds_to_probe() > 0

    def seconds_to_probe(self) -> float:
        """Until a request may go through: 0 where it may now, infinity while a probe is out."""
        if not self.is_paused:
            return 0.0
        return math.inf if self._is_probing else max(0.0, self._probe_at - self._clock())

    def probe_starts(self) -> None:
        """The next one waits for the outcome of this one."""
        self._is_probing = True

    def probe_ends(self) -> None:
        """It has an outcome, or was cancelled."""
        self._is_probing = False

    def answered(self) -> None:
        """Something came back that was no sign of trouble."""
        now = self._clock()
        self._last_answer, self._failing_since = now, math.inf
        if self.is_paused:
            self.reason = ""
            self._recent.clear()
        self._recent.append((now, True))

    def failed(
        self,
        reason: str,
        sent_at: float,
        *,
        is_busy: bool = False,
        is_probe: bool = False,
        told_seconds: float = 0.0,
    ) -> None:
        """A request failed, or was refused for speed.

        Args:
            told_seconds: How long the endpoint wants to be left in peace; no probe is earlier.
        """
        now = self._clock()
        if self._failing_since == math.inf:
            self._failing_since = max(sent_at, self._last_answer)
        if not is_busy:
            self._recent.append((now, False))
        if not self.is_paused:
            self.reason = self._why_to_pause(reason, now)
            self._paused_since, self._interval = now, _FIRST_PROBE_SECONDS
        elif is_probe:
            self._interval = min(2 * self._interval, _LONGEST_PROBE_SECONDS)
        else:
            return  # sent before the pause; it says nothing new
        self._probe_at = now + max(self._interval, told_seconds)

    def _why_to_pause(self, reason: str, now: float) -> str:
        barren = now - self._failing_since
        if barren >= _BARREN_SECONDS:
            return f"no answer has come for {barren:,.0f} seconds; the last time: {reason}"
        num_failed = sum(not is_good for _, is_good in self._recent)
        is_full = len(self._recent) == _NUM_RECENT
        if (
            is_full
            and num_failed >= _MOST_FAILURES * _NUM_RECENT
            and now - self._recent[0][0] <= _RECENT_SECONDS
        ):
            return (
                f"{num_failed} of the last {_NUM_RECENT} requests failed; the last time: {reason}"
            )
        return ""
