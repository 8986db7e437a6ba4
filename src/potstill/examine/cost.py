"""What answers cost: tokens times a dated price, or a machine's price over what it answers.

All amounts are in one currency, the one that the price is in. A thousand requests are the unit,
since one costs too little to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.config import PriceConfig
from potstill.examine.measured import REQUESTS, OneOff
from potstill.examine.resample import percentile_interval, resampled_sums, sum_by_unit
from potstill.types import Estimate

HOUR = 3_600.0
NUM_RESAMPLES = 2_000
"""Resamples for the interval of a mean of tokens."""


def by_tokens(
    tokens: Sequence[tuple[int, int]],
    price: PriceConfig,
    *,
    seed: int,
    units: np.ndarray | None = None,
) -> Estimate:
    """Price of a thousand requests like these, from their tokens.

    Args:
        tokens: Of prompt and answer, for each request.
        units: Number of the unit that each is drawn with; each by itself where None.

    Returns:
        With the interval of the mean; null where nobody counted the tokens.
    """
    if not any(prompt for prompt, _ in tokens):
        reason = "the tokens of its answers were not counted"
        return Estimate(value=None, n=0, method="none", note=reason)
    paid = [(prompt * price.input + answer * price.output) / 1e6 for prompt, answer in tokens]
    rows = np.stack([np.array(paid), np.ones(len(paid))], axis=1)
    rows = rows if units is None else sum_by_unit(rows, units)
    sums = resampled_sums(rows, seed=seed, num_resamples=NUM_RESAMPLES)
    low, high = percentile_interval(REQUESTS * sums[:, 0] / sums[:, 1])
    read = f"prices read {price.as_of}" if price.as_of else "prices without a date"
    return Estimate(
        value=REQUESTS * float(np.mean(paid)),
        low=low,
        high=high,
        n=len(paid),
        method=f"bootstrap-percentile, {NUM_RESAMPLES:,} resamples, seed {seed}",
        signature="tokens of prompts and answers x price of a million tokens, 1,000 requests",
        higher_is_better=False,
        note=f"{price.input:g} and {price.output:g} for a million prompt and answer tokens; {read}",
    )


def by_machine(price_per_hour: float, rate: Estimate, *, how: str, as_of: str | None) -> Estimate:
    """Price of a thousand requests on a machine that answers `rate` of them a second.

    Args:
        how: What the rate is: goodput under load, or one request at a time.
    """
    if not rate.value:
        return Estimate(value=None, n=rate.n, method="none", note=f"no rate is known: {how}")

    def priced(per_second: float | None) -> float | None:
        return REQUESTS * price_per_hour / HOUR / per_second if per_second else None

    read = f"price read {as_of}" if as_of else "price without a date"
    return Estimate(
        value=priced(rate.value),
        low=priced(rate.high),
        high=priced(rate.low),
        n=rate.n,
        method=rate.method,
        signature="price of the machine / requests it answers, 1,000 requests",
        higher_is_better=False,
        note=f"{price_per_hour:g} an hour, {rate.value:.3g} answers a second, {how}; {read}; the "
        f"machine is taken to be busy all the time",
    )


def one_at_a_time(seconds: Sequence[float], *, latency: Estimate) -> Estimate:
    """Answers a second where requests come one after the other, from their mean time."""
    mean = float(np.mean(seconds))
    spread = float(np.std(seconds, ddof=1)) / len(seconds) ** 0.5 if len(seconds) > 1 else 0.0
    slow, fast = mean + 1.96 * spread, mean - 1.96 * spread
    return Estimate(
        value=1 / mean,
        low=1 / slow,
        high=1 / fast if fast > 0 else None,
        n=len(seconds),
        unit="answers/s",
        method="normal interval of the mean time",
        note=latency.note,
    )


def break_even(one_off: OneOff, teacher: Estimate | None, student: Estimate | None) -> Estimate:
    """Requests after which the distillation has paid for itself.

        one-off cost / (teacher's price of a request - student's)

    Returns:
        The ends are reckoned from the far ends of both prices, so they are wide rather than
        narrow; an end is None where the saving may be nothing. Null with the reason where a price
        is missing or there is nothing to save.
    """
    about: dict[str, Any] = {
        "n": 0,
        "unit": "requests",
        "method": "ends of both prices",
        "signature": "one-off cost / (teacher's - student's price of a request)",
        "higher_is_better": False,
    }

    def none(reason: str) -> Estimate:
        return Estimate(value=None, note=reason, **{**about, "method": "none"})

    total = one_off.total
    if total is None:
        return none(one_off.note or "what the distillation cost once is not all known")
    for who, found in (("teacher", teacher), ("student", student)):
        if found is None or found.value is None:
            why = f": {found.note}" if found is not None and found.note else ""
            return none(f"what the {who}'s answers cost is not known{why}")
    assert teacher is not None and student is not None
    assert teacher.value is not None and student.value is not None
    if student.value >= teacher.value:
        return none("the student's answers cost no less than the teacher's: nothing is saved")

    def after(theirs: float | None, ours: float | None) -> float | None:
        if theirs is None or ours is None or theirs <= ours:
            return None
        return total * REQUESTS / (theirs - ours)

    low, high = after(teacher.high, student.low), after(teacher.low, student.high)
    note = "" if high is not None else "by the far ends of both prices, nothing may be saved"
    return Estimate(
        value=after(teacher.value, student.value),
        low=low,
        high=high,
        note=note,
        **{**about, "n": min(teacher.n, student.n)},
    )


def one_off_cost(
    *,
    teacher_cost: float | None,
    stage_seconds: Mapping[str, float],
    machine_price: float | None,
    preparation: float,
    is_teacher_paid: bool,
) -> OneOff:
    """Adds up what the run's own accounting holds.

    Args:
        teacher_cost: What all answers of the teacher cost; None where no price is known.
        stage_seconds: Stages that the distillation needs on this machine -> their time.
        is_teacher_paid: Whether somebody charges for the teacher's answers; weights on this
            machine cost its time, which is among the stages.
    """
    seconds = sum(stage_seconds.values())
    machine = None if machine_price is None else seconds / HOUR * machine_price
    parts: dict[str, float | None] = {"machine": machine, "preparation": preparation}
    if is_teacher_paid:
        parts = {"teacher": teacher_cost, **parts}
    missing = []
    if is_teacher_paid and teacher_cost is None:
        missing.append("the price of the teacher's answers (teacher.price)")
    if machine is None:
        missing.append("the price of this machine (evaluate.cost.machine_price)")
    note = f"not known: {' and '.join(missing)}" if missing else ""
    return OneOff(parts=parts, machine_seconds=seconds, note=note)
