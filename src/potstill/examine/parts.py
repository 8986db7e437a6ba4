"""A test set in parts: precision, recall and F1 of each class, and a metric on each slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from potstill.examine.metrics import MeanMetric, classes_of, estimate
from potstill.examine.resample import (
    affordable,
    percentile_interval,
    resampled_sums,
    sum_by_unit,
    unit_ids,
)
from potstill.protocols import Metric
from potstill.types import Estimate, Sample

SLICE_FIELDS = ("label", "source", "language")
MAX_SLICES = 12
"""Values of one field that have a slice of their own; rarer ones go together."""

MIN_FOR_QUARTERS = 40
CLASS_RESAMPLES = 2_000
F1_RULE = "harmonic mean of precision and recall, scikit-learn"
QUARTERS = ("lowest", "second", "third", "highest")


def class_estimates(samples: Sequence[Sample], *, seed: int) -> dict[str, dict[str, Estimate]]:
    """Precision, recall and F1 of each class; `n` is what the estimate is a share of.

    The values are scikit-learn's; an answer that could not be read is a class of its own.
    """
    known = [s for s in samples if s.target is not None]
    names = classes_of(known)
    if not names:
        return {}
    from sklearn.metrics import precision_recall_fscore_support

    truth = [s.target for s in known]
    said = [unreadable(names) if s.prediction is None else s.prediction for s in known]
    scores = precision_recall_fscore_support(truth, said, labels=names, zero_division=0.0)
    units = unit_ids(known)
    found = {}
    for name, f1 in zip(names, scores[2], strict=True):
        answered = [s for s in known if s.prediction == name]
        wanted = [s for s in known if s.target == name]
        found[name] = {
            "precision": _share("right of the answers that say it", answered, seed),
            "recall": _share("said of the answers that should", wanted, seed),
            "f1": _f1(float(f1), name, known, units, seed, len(wanted)),
        }
    return found


def unreadable(names: Sequence[str]) -> str:
    """A name for answers that could not be read, which no class has."""
    name = "unreadable"
    while name in names:
        name += "_"
    return name


def _share(rule: str, samples: Sequence[Sample], seed: int) -> Estimate:
    """Share of these answers that are their target, whole groups drawn where there are some."""
    if not samples:
        note = "this class was never answered"
        return Estimate(value=None, n=0, method="none", signature=rule, note=note)
    right = MeanMetric("share", lambda s: float(s.prediction == s.target), rule)
    return estimate(right, samples, seed=seed, num_resamples=CLASS_RESAMPLES)


def _f1(
    value: float, name: str, samples: Sequence[Sample], units: np.ndarray, seed: int, n: int
) -> Estimate:
    said = np.array([s.prediction == name for s in samples], dtype=np.float64)
    wanted = np.array([s.target == name for s in samples], dtype=np.float64)
    rows = sum_by_unit(np.stack([said * wanted, said + wanted], axis=1), units)
    num_resamples = affordable(len(rows), CLASS_RESAMPLES)
    sums = resampled_sums(rows, seed=seed, num_resamples=num_resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 2 * sums[:, 0] / sums[:, 1]
    drawn = drawn[np.isfinite(drawn)]
    if len(np.unique(drawn)) < 2:
        note = "every resample has the same value, so nothing is known of the doubt"
        return Estimate(value=value, n=n, method="none", signature=F1_RULE, note=note)
    low, high = percentile_interval(drawn)
    method = f"bootstrap-percentile, {num_resamples:,} resamples, seed {seed}"
    return Estimate(value=value, low=low, high=high, n=n, method=method, signature=F1_RULE)


def slice_estimates(
    metric: Metric, samples: Sequence[Sample], *, fields: Sequence[str], seed: int
) -> dict[str, dict[str, Estimate]]:
    """The metric on parts of the test set: by field, turn and length of the prompt."""
    found = {}
    for name, members in (slices(samples, fields) | _by_turn(samples)).items():
        part = estimate(metric, members, seed=seed)
        found[name] = {metric.name: part}
    return found


def slices(
    samples: Sequence[Sample], fields: Sequence[str], *, by_length: bool = True
) -> dict[str, list[Sample]]:
    """Parts of the answers by metadata field, and by quarters of the prompts' length.

    `label` is the field of that name, else the right answer. A field of numbers is cut into
    quarters where it has many values; of any other, values beyond the commonest go together.
    """
    parts: dict[str, list[Sample]] = {}
    for field in fields:
        parts |= _by_value(field, [(s, field_value(s, field)) for s in samples])
    if by_length and len(samples) >= MIN_FOR_QUARTERS:
        lengths = [float(sum(len(m.content) for m in s.prompt)) for s in samples]
        names = ("shortest", "second", "third", "longest")
        parts |= _quarters("prompt length", samples, lengths, names)
    return parts


def _by_turn(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """First turns of conversations, second ones and later ones, where there are any but first."""
    if not any(sample.turn for sample in samples):
        return {}
    parts = {
        "first": [sample for sample in samples if sample.turn == 0],
        "second": [sample for sample in samples if sample.turn == 1],
        "later": [sample for sample in samples if sample.turn > 1],
    }
    return {f"turn: {name}": members for name, members in parts.items() if members}


def field_value(sample: Sample, field: str) -> object:
    """What a sample has under a field of its metadata; None where it has nothing plain."""
    value = sample.metadata.get(field)
    if value is None and field == "label":
        value = sample.target
    return value if isinstance(value, str | int | float | bool) else None


def _by_value(field: str, pairs: Sequence[tuple[Sample, object]]) -> dict[str, list[Sample]]:
    valued = [(sample, value) for sample, value in pairs if value is not None and value != ""]
    counts = Counter(str(value) for _, value in valued)
    numbers = [value for _, value in valued if isinstance(value, int | float)]
    if len(counts) > MAX_SLICES and len(numbers) == len(valued) >= MIN_FOR_QUARTERS:
        return _quarters(field, [sample for sample, _ in valued], numbers, QUARTERS)
    if len(counts) < 2 or 2 * len(counts) > len(valued):
        return {}  # one part is no part, and parts of one answer each say nothing
    num_own = len(counts) if len(counts) <= MAX_SLICES else MAX_SLICES - 1
    own = sorted(name for name, _ in counts.most_common(num_own))
    parts: dict[str, list[Sample]] = {name: [] for name in own}
    rest: list[Sample] = []
    for sample, value in valued:
        parts.get(str(value), rest).append(sample)
    named = {f"{field}: {name}": members for name, members in parts.items()}
    return {**named, f"{field}: {len(counts) - num_own:,} others": rest} if rest else named


def _quarters(
    what: str, samples: Sequence[Sample], numbers: Sequence[float], names: Sequence[str]
) -> dict[str, list[Sample]]:
    cuts = np.quantile(numbers, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(cuts, numbers, side="left")
    parts = {
        f"{what}: {name} quarter": [s for s, q in zip(samples, quarter, strict=True) if q == i]
        for i, name in enumerate(names)
    }
    return {name: members for name, members in parts.items() if members}
