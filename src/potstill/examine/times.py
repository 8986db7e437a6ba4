"""From timed calls to estimates: medians and slow ends, rates, ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.examine.measured import ENOUGH_FOR, TIMES
from potstill.examine.resample import NUM_RESAMPLES, percentile_interval
from potstill.types import Estimate

FEW_CALLS = 30
"""Timed calls below which a note says that their interval is not to be trusted."""

ALONE = "one request at a time"
NO_STREAM = "this model does not stream its answers, so its first token cannot be timed"


@dataclass(frozen=True)
class Call:
    """One timed answer."""

    seconds: float
    num_new_tokens: int
    first_seconds: float | None = None
    """Until the first piece of the answer; None where it did not come in pieces."""

    num_prompt_tokens: int = 0
    joules: float | None = None

    @property
    def token_seconds(self) -> float | None:
        """What each token after the first took; None where there is none, or nobody knows."""
        if self.first_seconds is None or self.num_new_tokens < 2:
            return None
        return (self.seconds - self.first_seconds) / (self.num_new_tokens - 1)


def times(
    calls: Sequence[Call], *, seed: int, note: str = "", how: str = ALONE
) -> dict[str, Estimate]:
    """`latency`, `ttft` and `tpot`: medians, and their slow ends where the calls are enough.

    Args:
        how: Under what circumstances; part of every signature.
    """
    of: dict[str, list[float | None]] = {
        "latency": [call.seconds for call in calls],
        "ttft": [call.first_seconds for call in calls],
        "tpot": [call.token_seconds for call in calls],
    }
    missing = {
        "latency": "no answer came",
        "ttft": NO_STREAM,
        "tpot": NO_STREAM
        if all(call.first_seconds is None for call in calls)
        else "no answer has two tokens or more, or nobody counted them",
    }
    found: dict[str, Estimate] = {}
    for name, values in of.items():
        known = [value for value in values if value is not None]
        found |= quantiles(name, known, seed=seed, note=note, missing=missing[name], how=how)
    return found


def quantiles(
    name: str,
    values: Sequence[float],
    *,
    seed: int,
    note: str = "",
    missing: str = "",
    how: str = ALONE,
) -> dict[str, Estimate]:
    """Median and slow ends of a time: `name`, `name.p95`, `name.p99`.

    What there are too few calls for is null and says so.
    """
    about: dict[str, Any] = {"n": len(values), "signature": f"{TIMES[name]}, {how}"}
    about |= {"unit": "seconds", "higher_is_better": False}
    if not values:
        empty = Estimate(value=None, note=missing, **{**about, "method": "none"})
        return {name + end: empty for end in ("", *ENOUGH_FOR)}
    seconds = np.array(values, dtype=np.float64)
    drawn = _drawn(len(seconds), seed)
    few = f"fewer than {FEW_CALLS} calls: no interval is to be trusted"
    notes = "; ".join(part for part in (note, few if len(seconds) < FEW_CALLS else "") if part)
    shown = {**about, "method": _method(seed)}
    found = {name: _quantile(seconds, drawn, 0.5, notes, shown)}
    for end, (quantile, enough) in ENOUGH_FOR.items():
        if len(seconds) >= enough:
            found[name + end] = _quantile(seconds, drawn, quantile, note, shown)
        else:
            reason = f"needs {enough:,} calls, there are {len(seconds):,}"
            found[name + end] = Estimate(value=None, note=reason, **{**about, "method": "none"})
    return found


def throughput(calls: Sequence[Call], *, seed: int, note: str = "") -> dict[str, Estimate]:
    """`tokens_per_second` of one request at a time; nothing where nobody counted tokens."""
    tokens = np.array([call.num_new_tokens for call in calls], dtype=np.float64)
    if tokens.sum() == 0:
        return {}
    seconds = np.array([call.seconds for call in calls])
    drawn = _drawn(len(calls), seed)
    low, high = percentile_interval(tokens[drawn].sum(axis=1) / seconds[drawn].sum(axis=1))
    rate = Estimate(
        value=float(tokens.sum() / seconds.sum()),
        low=low,
        high=high,
        n=len(calls),
        unit="tokens/s",
        note=note,
        method=_method(seed),
        signature="answer tokens / e2e seconds, prompt included in the time",
    )
    return {"tokens_per_second": rate}


def energy(calls: Sequence[Call], *, seed: int, source: str) -> dict[str, Estimate]:
    """`energy`, the mean of an answer in joules; nothing where it was not measured."""
    joules = np.array([call.joules for call in calls if call.joules is not None])
    if len(joules) == 0:
        return {}
    low, high = percentile_interval(joules[_drawn(len(joules), seed)].mean(axis=1))
    found = Estimate(
        value=float(joules.mean()),
        low=low,
        high=high,
        n=len(joules),
        unit="J",
        method=_method(seed),
        signature=f"mean energy while one answer is made, all of: {source}",
        higher_is_better=False,
    )
    return {"energy": found}


def lengths(calls: Sequence[Call]) -> dict[str, Any]:
    """How long prompts and answers were, in the engine's tokens; nothing of what is not known."""
    found: dict[str, Any] = {}
    for name, values in (
        ("prompt_tokens", [call.num_prompt_tokens for call in calls]),
        ("answer_tokens", [call.num_new_tokens for call in calls]),
    ):
        if any(values):
            found[name] = {
                "least": min(values),
                "median": int(np.median(values)),
                "most": max(values),
            }
    return found


def median_seconds(seconds: Sequence[float], *, note: str, seed: int) -> Estimate:
    """The median of answers that were timed while others were on their way."""
    times = np.array(seconds, dtype=np.float64)
    about = {"n": len(times), "unit": "seconds", "higher_is_better": False}
    about |= {"signature": "e2e of one request, monotonic clock", "method": _method(seed)}
    return _quantile(times, _drawn(len(times), seed), 0.5, note, about)


def ratio_of_medians(
    ours: Sequence[float], theirs: Sequence[float], *, reference: str, seed: int
) -> Estimate:
    """Median time over median time; both are drawn together, since they were measured together."""
    ours_R, theirs_R = np.array(ours), np.array(theirs)
    drawn = _drawn(len(ours_R), seed)
    ratios = np.median(ours_R[drawn], axis=1) / np.median(theirs_R[drawn], axis=1)
    low, high = percentile_interval(ratios)
    return Estimate(
        value=float(np.median(ours_R) / np.median(theirs_R)),
        low=low,
        high=high,
        n=len(ours_R),
        unit="x",
        method=_method(seed),
        higher_is_better=False,
        note=f"median time / median time of {reference}, measured in alternation",
    )


def _quantile(
    seconds: np.ndarray, drawn: np.ndarray, quantile: float, note: str, about: dict[str, Any]
) -> Estimate:
    low, high = percentile_interval(np.quantile(seconds[drawn], quantile, axis=1))
    value = float(np.quantile(seconds, quantile))
    return Estimate(value=value, low=low, high=high, note=note, **about)


def _drawn(n: int, seed: int) -> np.ndarray:
    """Which calls each resample holds, [R, n]; fewer resamples of long series."""
    num_resamples = max(500, min(NUM_RESAMPLES, 2_000_000 // n))
    return np.random.default_rng(seed).integers(0, n, size=(num_resamples, n))


def _method(seed: int) -> str:
    return f"bootstrap-percentile, seed {seed}"
