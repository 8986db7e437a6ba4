"""What a student keeps of its teacher: the same answers, like words, and a share of its quality.

Fidelity is not quality: a student that repeats its teacher's mistakes agrees with it and is
wrong. Each is a number of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.examine.answers import answer_text, exactly_equal
from potstill.examine.compare import join
from potstill.examine.metrics import MeanMetric, estimate, rows_of
from potstill.examine.overlap import rouge_l
from potstill.examine.resample import (
    NUM_RESAMPLES,
    affordable,
    percentile_interval,
    resampled_sums,
    sum_by_unit,
    unit_ids,
)
from potstill.protocols import Metric
from potstill.types import Estimate, Sample

Samples = Sequence[Sample]


def agreement(samples: Samples, teacher: Samples, *, seed: int) -> Estimate:
    """Share of answers that are the teacher's, right or wrong. Not the same as accuracy.

    Case, punctuation and Unicode form do not count.
    """
    ours, theirs = join(samples, teacher)
    said = {(s.record_id, s.turn): s.prediction for s in theirs}

    def same(sample: Sample) -> float:
        other = said[(sample.record_id, sample.turn)]
        if sample.prediction is None or other is None:
            return 0.0
        return float(sample.prediction == other or exactly_equal(sample.prediction, other))

    rule = "same answer as the teacher; an unreadable one agrees with nothing"
    return estimate(MeanMetric("agreement", same, rule), ours, seed=seed)


def likeness(samples: Samples, teacher: Samples, *, seed: int) -> Estimate:
    """Mean ROUGE-L F1 of the answers with the teacher's, where the teacher gave one."""
    ours, theirs = join(samples, teacher)
    pairs = [
        one.model_copy(update={"references": (answer_text(other),)})
        for one, other in zip(ours, theirs, strict=True)
        if answer_text(other).strip()
    ]
    if not pairs:
        return Estimate(value=None, n=0, method="none", note="the teacher answered nothing")
    found = estimate(rouge_l, pairs, seed=seed)
    signature = f"{rouge_l.signature}; the teacher's answer is the reference"
    return found.model_copy(update={"signature": signature})


def retention(
    metric: Metric,
    student: Samples,
    teacher: Samples,
    baseline: Samples | None,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Estimate]:
    """How much of the teacher the student keeps, and how much of the gap it closes.

    `of_teacher` is student / teacher, `gap_recovered` (student - baseline) / (teacher -
    baseline). Neither is clipped: above 1 the student is better than its teacher.
    """
    models = join(student, teacher, *([baseline] if baseline is not None else []))
    units = unit_ids(models[0])
    rows = [sum_by_unit(rows_of(metric, samples), units) for samples in models]
    width = rows[0].shape[1]
    num_resamples = affordable(len(rows[0]), num_resamples)
    sums = resampled_sums(np.hstack(rows), seed=seed, num_resamples=num_resamples)
    drawn = [metric.value(sums[:, i * width : (i + 1) * width]) for i in range(len(rows))]
    values = [float(metric.value(unit_rows.sum(axis=0))) for unit_rows in rows]
    about = {
        "n": len(models[0]),
        "method": f"bootstrap-percentile, {num_resamples:,} paired resamples, seed {seed}",
        "signature": f"on {metric.name}",
    }
    found = {"of_teacher": _ratio(values[0], values[1], drawn[0], drawn[1], about)}
    if baseline is None:
        return found
    gap = drawn[1] - drawn[2]
    is_known = bool(np.isfinite(gap).any())
    if not is_known or not percentile_interval(gap)[0] > 0:
        reason = (
            f"the teacher does not surely beat the baseline ({values[1]:.3f} and {values[2]:.3f}): "
            "there is no gap to recover"
        )
        found["gap_recovered"] = Estimate(value=None, note=reason, **about)
        return found
    found["gap_recovered"] = _ratio(
        values[0] - values[2], values[1] - values[2], drawn[0] - drawn[2], gap, about
    )
    return found


def _ratio(
    top: float, bottom: float, tops: np.ndarray, bottoms: np.ndarray, about: dict[str, Any]
) -> Estimate:
    if not bottom > 0:
        what = "zero" if bottom == 0 else "not known"
        return Estimate(value=None, note=f"the teacher's value is {what}", **about)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = tops / bottoms
    ratios = ratios[np.isfinite(ratios)]
    if len(np.unique(ratios)) < 2:
        note = "every resample has the same value, so nothing is known of the doubt"
        return Estimate(value=top / bottom, **{**about, "method": "none"}, note=note)
    low, high = percentile_interval(ratios)
    return Estimate(value=top / bottom, low=low, high=high, **about)
