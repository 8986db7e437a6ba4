"""Two models on the same records: the difference, how sure it is, and what follows from it.

All comparisons are paired on (record, turn). "As good as" is non-inferiority: the whole
interval of the difference lies above minus the margin. "Not significant" is not parity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from potstill.errors import DataError
from potstill.examine.metrics import rows_of
from potstill.examine.resample import (
    FEW_RECORDS,
    NUM_RESAMPLES,
    Z,
    affordable,
    mcnemar,
    paired_error,
    percentile_interval,
    resampled_sums,
    sum_by_unit,
    swapped_sums,
    unit_ids,
)
from potstill.protocols import Metric
from potstill.types import Comparison, Sample

ALPHA = 0.05
POWER_Z = NormalDist().inv_cdf(0.8)
MCNEMAR = "mcnemar-exact"
FEW_DISCORDANT = 10
MAX_LISTED = 50

Verdict = Literal["better", "worse", "non_inferior", "inconclusive"]
Samples = Sequence[Sample]


@dataclass(frozen=True)
class Paired:
    """Two models' rows of one metric on the answers that both have."""

    a: np.ndarray
    b: np.ndarray
    units: np.ndarray
    num_unpaired: int

    is_share: bool
    """Whether the metric is a share of answers: rows are 0 or 1."""

    def unit_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Both models' rows, added up by the unit that they are drawn with."""
        return sum_by_unit(self.a, self.units), sum_by_unit(self.b, self.units)

    @property
    def is_clustered(self) -> bool:
        """Whether a unit holds several answers."""
        return int(self.units.max()) + 1 < len(self.a)


def join(*models: Samples) -> list[list[Sample]]:
    """The answers of several models to the turns that all of them have, in one order.

    Raises:
        DataError: If there is no such turn.
    """
    by_key = [{(s.record_id, s.turn): s for s in samples} for samples in models]
    shared = [key for key in by_key[0] if all(key in other for other in by_key[1:])]
    if not shared:
        raise DataError("the models have no test record in common; were they asked the same set?")
    return [[answers[key] for key in shared] for answers in by_key]


def pair(metric: Metric, samples_a: Samples, samples_b: Samples) -> Paired:
    """Rows of both models on the turns that both answered and that the metric counts."""
    a, b = join(samples_a, samples_b)
    rows_a, rows_b = rows_of(metric, a), rows_of(metric, b)
    used = np.flatnonzero(rows_a.any(axis=1) | rows_b.any(axis=1))
    if len(used) == 0:
        raise DataError(f"{metric.name} counts none of the {len(a)} answers; have they references?")
    missing = max(len(samples_a), len(samples_b)) - len(a)
    rows_a, rows_b = rows_a[used], rows_b[used]
    is_mean = getattr(metric, "is_mean", False)
    is_share = is_mean and bool(np.isin([rows_a[:, 0], rows_b[:, 0]], (0.0, 1.0)).all())
    return Paired(rows_a, rows_b, unit_ids([a[i] for i in used]), missing, is_share)


def compare(
    a: str,
    b: str,
    metric: Metric,
    samples_a: Samples,
    samples_b: Samples,
    *,
    margin: float | None,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Model a minus model b on one metric.

    Args:
        margin: How far a may lie below b and still count as not inferior, in the metric's unit;
            None where that is not asked.
        seed: Start of the random numbers; the same for all comparisons of a report.

    Raises:
        DataError: If the two share no record.
    """
    paired = pair(metric, samples_a, samples_b)
    return compare_paired(
        a, b, metric, paired, margin=margin, seed=seed, num_resamples=num_resamples
    )


def compare_paired(
    a: str,
    b: str,
    metric: Metric,
    paired: Paired,
    *,
    margin: float | None,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """As `compare`, of rows that are paired already."""
    unit_a, unit_b = paired.unit_rows()
    difference = float(metric.value(unit_a.sum(axis=0)) - metric.value(unit_b.sum(axis=0)))
    num_resamples = affordable(len(unit_a), num_resamples)
    low, high, error, method = _interval(metric, paired, seed, num_resamples)
    test, p, discordant = _test(metric, paired, difference, seed, num_resamples)
    n = len(paired.a)
    return Comparison(
        a=a,
        b=b,
        metric=metric.name,
        difference=difference,
        low=low,
        high=high,
        method=method,
        n=n,
        test=test,
        p=p,
        p_holm=p,
        discordant=discordant,
        verdict=verdict(low, high, p, margin, higher_is_better=metric.higher_is_better),
        margin=margin,
        # An exact test of counts needs about half an answer more on each side.
        detectable=None if error is None else (Z + POWER_Z) * error + (test == MCNEMAR) / n,
        note=_note(n, len(unit_a), discordant, paired.num_unpaired),
    )


def _interval(
    metric: Metric, paired: Paired, seed: int, num_resamples: int
) -> tuple[float | None, float | None, float | None, str]:
    """Both ends of the difference's interval, its standard error, and how they were made.

    Where two models agree on every unit, resamples have nothing to tell apart; then the units
    count as pairs of right and wrong that all agree, which is not the same as surely equal.
    """
    unit_a, unit_b = paired.unit_rows()
    num_units = len(unit_a)
    if num_units < 2:
        return None, None, None, "none"
    is_same = bool((unit_a == unit_b).all())
    if is_same or (paired.is_share and not paired.is_clustered):
        a, b = paired.a[:, 0], paired.b[:, 0]
        only_a, only_b = (0, 0) if is_same else (int((a > b).sum()), int((b > a).sum()))
        scale = getattr(metric, "scale", 1.0)
        centre, error = (scale * part for part in paired_error(only_a, only_b, num_units))
        low, high = max(-scale, centre - Z * error), min(scale, centre + Z * error)
        return low, high, error, "agresti-min" + (", no unit differs" if is_same else "")
    sums = resampled_sums(np.hstack([unit_a, unit_b]), seed=seed, num_resamples=num_resamples)
    width = unit_a.shape[1]
    drawn = metric.value(sums[:, :width]) - metric.value(sums[:, width:])
    how = ", groups" if paired.is_clustered else ""
    method = f"bootstrap-percentile, {num_resamples:,} resamples, seed {seed}{how}"
    return *percentile_interval(drawn), float(np.nanstd(drawn)), method


def _test(
    metric: Metric, paired: Paired, difference: float, seed: int, num_resamples: int
) -> tuple[str, float, int | None]:
    """Name of the test, its two-sided p, and how many answers differ where they are 0 or 1."""
    a, b = paired.a[:, 0], paired.b[:, 0]
    discordant = int((a != b).sum()) if paired.is_share else None
    if paired.is_share and not paired.is_clustered:
        return MCNEMAR, mcnemar(int((a > b).sum()), int((b > a).sum())), discordant
    unit_a, unit_b = paired.unit_rows()
    moved = swapped_sums(unit_b - unit_a, seed=seed, num_resamples=num_resamples)
    swapped = metric.value(unit_a.sum(axis=0) + moved) - metric.value(unit_b.sum(axis=0) - moved)
    reached = np.abs(swapped) >= abs(difference) - 1e-12
    p = (1 + int(reached.sum())) / (1 + num_resamples)
    return f"permutation-paired, {num_resamples:,} swaps, seed {seed}", p, discordant


def verdict(
    low: float | None,
    high: float | None,
    p: float | None,
    margin: float | None,
    *,
    higher_is_better: bool = True,
) -> Verdict:
    """What an interval of a - b says about a.

    `better` and `worse` need both the interval and p on their side. A difference that is
    surely within the margin is `non_inferior`, even where it is surely not zero.
    """
    if low is None or high is None:
        return "inconclusive"
    if not higher_is_better:
        low, high = -high, -low
    is_significant = p is not None and p < ALPHA
    if low > 0 and is_significant:
        return "better"
    if margin is not None and low > -margin:
        return "non_inferior"
    if high < 0 and is_significant:
        return "worse"
    return "inconclusive"


def _note(n: int, num_units: int, discordant: int | None, num_unpaired: int) -> str:
    notes = []
    if num_units < FEW_RECORDS:
        what = f"{n} answers" if num_units == n else f"{num_units} independent groups"
        notes.append(f"only {what}: the interval is not to be trusted below {FEW_RECORDS}")
    if discordant is not None and discordant < FEW_DISCORDANT:
        notes.append(f"the two differ on {discordant} answers only: too few for a sure interval")
    if num_unpaired:
        notes.append(f"{num_unpaired} answers of one model have no counterpart")
    return "; ".join(notes)


def holm(comparisons: Sequence[Comparison], metrics: Mapping[str, Metric]) -> list[Comparison]:
    """Corrects the p-values of one pair's metrics for their number, and the verdicts with them.

    Source: Holm (1979), https://www.jstor.org/stable/4615733.
    """
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p)
    corrected = list(comparisons)
    largest = 0.0
    for rank, i in enumerate(order):
        found = comparisons[i]
        largest = max(largest, min(1.0, (len(order) - rank) * found.p))
        better_up = metrics[found.metric].higher_is_better
        corrected[i] = found.model_copy(
            update={
                "p_holm": largest,
                "verdict": verdict(
                    found.low, found.high, largest, found.margin, higher_is_better=better_up
                ),
            }
        )
    return corrected


def compare_all(
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[Metric],
    samples: Mapping[str, Samples],
    *,
    margin: float,
    seed: int,
) -> tuple[Comparison, ...]:
    """Every pair on every metric, Holm-corrected within each pair.

    Args:
        margin: As a share of a metric's scale: 0.02 is 2 points of BLEU, which goes to 100.
    """
    by_name = {metric.name: metric for metric in metrics}
    found: list[Comparison] = []
    for a, b in pairs:
        family = [
            compare(
                a,
                b,
                metric,
                samples[a],
                samples[b],
                margin=margin * getattr(metric, "scale", 1.0),
                seed=seed,
            )
            for metric in metrics
        ]
        found += holm(family, by_name)
    return tuple(found)


def regressions_and_wins(
    samples: Mapping[str, Samples],
    *,
    student: str,
    others: Sequence[str],
    max_listed: int = MAX_LISTED,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int, int]:
    """Where the student is wrong and another is right, and where only the student is right.

    Args:
        others: The first one counts most (the teacher), the last ones least.

    Returns:
        Both lists, cut at `max_listed`, and how many there are of each.
    """
    roles = [student, *(role for role in others if role in samples)]
    if len(roles) == 1:
        return [], [], 0, 0
    lost: list[tuple[int, dict[str, Any]]] = []
    won: list[dict[str, Any]] = []
    for answers in zip(*join(*(samples[role] for role in roles)), strict=True):
        marks = [sample.correct for sample in answers]
        if any(mark is None for mark in marks):
            continue
        right = [role for role, mark in zip(roles, marks, strict=True) if mark >= 0.5]
        if student not in right and right:
            lost.append((roles.index(right[0]), _side_by_side(roles, answers, right)))
        elif right == [student]:
            won.append(_side_by_side(roles, answers, right))
    lost.sort(key=lambda row: row[0])
    return [row for _, row in lost[:max_listed]], won[:max_listed], len(lost), len(won)


def _side_by_side(roles: Sequence[str], answers: Samples, right: list[str]) -> dict[str, Any]:
    first = answers[0]
    return {
        "record_id": first.record_id,
        "turn": first.turn,
        "prompt": [message.model_dump(mode="json") for message in first.prompt],
        "reference": first.references[0] if first.references else first.target or "",
        "answers": {
            role: sample.text or (f"({sample.error})" if sample.error else "")
            for role, sample in zip(roles, answers, strict=True)
        },
        "right": right,
        "cut": [
            role
            for role, sample in zip(roles, answers, strict=True)
            if sample.finish_reason == "length"
        ],
    }


def confusion(samples: Samples) -> dict[str, dict[str, int]]:
    """Reference -> answer -> count; an answer that could not be read is ""."""
    table: dict[str, dict[str, int]] = {}
    for sample in samples:
        if sample.target is not None:
            row = table.setdefault(sample.target, {})
            said = sample.prediction or ""
            row[said] = row.get(said, 0) + 1
    return table
