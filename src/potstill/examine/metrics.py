"""Metrics: answers to rows of numbers, rows to sums, sums to one value with its interval.

A metric is any object with the shape of `protocols.Metric`. Three attributes are read where
it has them: `is_mean` (rows are (value, 1) pairs and the metric is their mean), `scale` (its
largest value, 1 by default) and `signature_for(samples)` (the rule, where it depends on the
test set). A function from one sample to a number, or None where the sample does not count, is
a metric too: the mean of its numbers.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.answers import answer_text, exactly_equal
from potstill.examine.resample import (
    FEW_RECORDS,
    NUM_RESAMPLES,
    affordable,
    bca_interval,
    percentile_interval,
    resampled_sums,
    sum_by_unit,
    unit_ids,
    wilson,
)
from potstill.protocols import BUILTIN, Metric, resolve
from potstill.tasks.words import token_f1, words
from potstill.types import METRIC_ALIASES, Estimate, Sample, metric_name


@dataclass(frozen=True)
class MeanMetric:
    """The mean over answers of one number; answers whose number is None do not count."""

    name: str
    of: Callable[[Sample], float | None]
    signature: str
    higher_is_better: bool = True
    unit: str = ""
    is_mean: bool = True

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        rows = np.zeros((len(samples), 2))
        for row, sample in zip(rows, samples, strict=True):
            number = self.of(sample)
            if number is not None:
                row[:] = (number, 1.0)
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class RatioMetric:
    """A ratio of two sums over all answers."""

    name: str
    of: Callable[[Sample], tuple[float, float]]
    signature: str
    higher_is_better: bool = True
    unit: str = ""

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        return np.array([self.of(s) for s in samples], dtype=np.float64).reshape(-1, 2)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class MacroF1:
    """F1 of each class, averaged over the classes that the references hold.

    A class that a resample does not hold is left out of that resample's average.
    """

    name: str = "macro_f1"
    unit: str = ""
    higher_is_better: bool = True
    signature: str = "mean F1 over the classes of the references; no answer is a miss"

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are (true positive, false positive, false negative) for each class."""
        classes = {name: i for i, name in enumerate(classes_of(samples))}
        rows = np.zeros((len(samples), 3 * len(classes)))
        for row, sample in zip(rows, samples, strict=True):
            if sample.target is None:
                continue
            expected = classes[sample.target]
            if sample.prediction == sample.target:
                row[3 * expected] = 1.0
                continue
            row[3 * expected + 2] = 1.0
            if sample.prediction in classes:
                row[3 * classes[sample.prediction] + 1] = 1.0
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        hits, false, missed = counts[..., 0], counts[..., 1], counts[..., 2]
        f1 = _ratio(2 * hits, 2 * hits + false + missed)
        present = (hits + missed) > 0
        return _ratio(np.where(present, f1, 0.0).sum(axis=-1), present.sum(axis=-1))


def classes_of(samples: Sequence[Sample]) -> list[str]:
    """The answers that occur as references, sorted."""
    return sorted({s.target for s in samples if s.target is not None})


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom != 0)


def _best(score: Callable[[str, str], float]) -> Callable[[Sample], float | None]:
    """Scores the prediction against its best reference; no prediction is 0."""

    def of(sample: Sample) -> float | None:
        if not sample.references:
            return None
        if sample.prediction is None:
            return 0.0
        return max(score(sample.prediction, reference) for reference in sample.references)

    return of


def _lengths(sample: Sample) -> tuple[float, float]:
    if not sample.references:
        return 0.0, 0.0
    return float(len(words(answer_text(sample)))), float(len(words(sample.references[0])))


accuracy = MeanMetric("accuracy", lambda s: s.correct, "the task's rule for a right answer")
exact_match = MeanMetric(
    "exact_match",
    _best(lambda answer, reference: float(exactly_equal(answer, reference))),
    "same as a reference; case, punctuation, English articles and Unicode form do not count",
)
f1 = MeanMetric(
    "f1",
    _best(token_f1),
    "word F1 with the best reference; case, punctuation and English articles do not count",
)
macro_f1 = MacroF1()
length_ratio = RatioMetric(
    "length_ratio", _lengths, "words of all answers / words of all first references"
)


def get_metric(name: str) -> Metric:
    """The metric of a name, an alias such as `bleu_score`, or "module:attribute".

    Raises:
        ConfigError: If there is none; the message names the nearest.
    """
    ours = metric_name(name)
    known = BUILTIN["metric"]
    if ":" not in ours and ours not in known:
        near = difflib.get_close_matches(name.casefold(), [*known, *METRIC_ALIASES], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f'no metric is called {name!r}; {hint} Your own is "module:attribute"')
    found = resolve("metric", ours)
    if inspect.isclass(found):
        found = found()
    if inspect.isfunction(found):
        said = (inspect.getdoc(found) or "").partition("\n")[0]
        return MeanMetric(found.__name__, found, f"{name}: {said}".rstrip(": ."))
    missing = [
        attribute
        for attribute in ("name", "unit", "higher_is_better", "signature", "rows", "value")
        if not hasattr(found, attribute)
    ]
    if missing:
        raise ConfigError(
            f"metric {name!r} has no {', '.join(missing)}; write a function from a sample to a "
            f"number, or an object as protocols.Metric says"
        )
    return found


def rows_of(metric: Metric, samples: Sequence[Sample]) -> np.ndarray:
    """The metric's rows, [n, d] finite numbers, whoever wrote the metric.

    Raises:
        DataError: If the metric fails on these answers, or gives anything else.
    """
    try:
        rows = np.asarray(metric.rows(samples), dtype=np.float64)
    except PotstillError:
        raise
    except Exception as error:
        raise DataError(
            f"metric {metric.name!r} failed on the answers: {type(error).__name__}: {error}"
        ) from error
    if rows.ndim != 2 or len(rows) != len(samples):
        raise DataError(
            f"metric {metric.name!r} gave rows of shape {rows.shape} for {len(samples)} answers; "
            f"it must give [{len(samples)}, d]"
        )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise DataError(
            f"metric {metric.name!r} gave {rows[broken[0]].tolist()} for record "
            f"{samples[broken[0]].record_id}, and for {len(broken) - 1} more; a record that does "
            f"not count is a row of zeros (None from a function), and not NaN"
        )
    return rows


def signature_of(metric: Metric, samples: Sequence[Sample]) -> str:
    """The exact rule behind the metric on this test set."""
    depends = getattr(metric, "signature_for", None)
    return depends(samples) if depends else metric.signature


def count_failures(samples: Sequence[Sample]) -> int:
    """Answers that did not come, were cut, or could not be read."""
    return sum(
        bool(s.error) or s.finish_reason in ("length", "error") or s.prediction is None
        for s in samples
    )


def estimate(
    metric: Metric, samples: Sequence[Sample], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """The metric over a test set, with a 95 % interval.

    Wilson's interval for shares of right answers, BCa bootstrap for other means, percentile
    bootstrap for numbers of a whole corpus. Where units of resampling hold several samples
    (turns of a conversation, rows of a customer), whole units are drawn.

    Raises:
        DataError: If there is nothing to average. A silent 0.0 would read as a model that
            fails, not as a test set that is empty.
    """
    if not samples:
        raise DataError(f"{metric.name} of zero answers is undefined; is the test set empty?")
    rows = rows_of(metric, samples)
    used = np.flatnonzero(rows.any(axis=1))
    about = {
        "unit": metric.unit,
        "n": len(used),
        "n_error": count_failures(samples),
        "signature": signature_of(metric, samples),
        "higher_is_better": metric.higher_is_better,
    }
    value = float(metric.value(rows.sum(axis=0)))
    if not math.isfinite(value):
        needed = getattr(metric, "needs", "such as a reference")
        note = f"no answer has what this metric needs: {needed}"
        return Estimate(value=None, method="none", note=note, **about)
    if len(used) == 0:  # a count of nothing, such as BLEU without one common word
        used = np.arange(len(samples))
    units = unit_ids([samples[i] for i in used])
    low, high, method, note = _interval(metric, rows[used], units, seed, num_resamples)
    return Estimate(value=value, low=low, high=high, method=method, note=note, **about)


def _interval(
    metric: Metric, rows: np.ndarray, units: np.ndarray, seed: int, num_resamples: int
) -> tuple[float | None, float | None, str, str]:
    """Both ends of the interval, how it was made, and what to know of it."""
    n, num_units = len(rows), int(units.max()) + 1
    clustered = num_units < n
    is_mean = getattr(metric, "is_mean", False)
    is_share = is_mean and bool(np.isin(rows[:, 0], (0.0, 1.0)).all())
    notes = [f"{n} answers in {num_units} groups"] if clustered else []
    if num_units < FEW_RECORDS:
        what = "groups" if clustered else "answers"
        notes.append(f"only {num_units} {what}: no interval is to be trusted below {FEW_RECORDS}")
    note = "; ".join(notes)
    if is_share and not clustered:
        return *wilson(rows[:, 0].sum(), n), "wilson", note
    if num_units < 2:
        return None, None, "none", "one independent answer has no interval"
    unit_rows = sum_by_unit(rows, units)
    if is_share and len(np.unique(rows[:, 0])) == 1:
        # Resamples of equal answers are all equal; Wilson's interval of as many groups is not.
        return *wilson(rows[0, 0] * num_units, num_units), "wilson, groups", note
    num_resamples = affordable(num_units, num_resamples)
    values = metric.value(resampled_sums(unit_rows, seed=seed, num_resamples=num_resamples))
    if np.shape(values) != (num_resamples,):
        raise DataError(
            f"metric {metric.name!r} gave values of shape {np.shape(values)} for "
            f"{num_resamples:,} resamples; value() must turn [..., d] sums into [...] values"
        )
    if not np.isfinite(values).any() or np.nanmax(values) == np.nanmin(values):
        notes.append("every resample has the same value, so nothing is known of the doubt")
        return None, None, "none", "; ".join(notes)
    how = f"{num_resamples:,} resamples, seed {seed}" + (", groups" if clustered else "")
    if is_mean:
        return *bca_interval(unit_rows, metric.value, values), f"bootstrap-bca, {how}", note
    return *percentile_interval(values), f"bootstrap-percentile, {how}", note
