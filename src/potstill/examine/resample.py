"""Resampling: how far a number would move if the test set had been drawn again.

Everything is done on sums. A metric is a function of the column sums of its rows, so a
resample is one row of integer weights and all resamples are one matrix product. The same
seed and the same number of units give the same resamples, for every model and metric.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from potstill.types import Sample

NUM_RESAMPLES = 10_000
LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
FEW_RECORDS = 50
"""Independent answers below which no interval is to be trusted."""

MOST_DRAWS = 100_000_000
"""Answers drawn for one number, all resamples together; a few seconds."""

FEWEST_RESAMPLES = 1_000
CELLS_AT_ONCE = 2_000_000

Value = Callable[[np.ndarray], np.ndarray]
"""[..., d] sums to [...] values."""


def unit_ids(samples: Sequence[Sample]) -> np.ndarray:
    """Number of the unit that each sample is drawn with, [n] int64, counted from 0.

    A unit is the sample's group where it has one, else its record: the turns of one
    conversation are not independent answers.
    """
    seen: dict[tuple[str, str], int] = {}
    keys = [("group", s.group) if s.group else ("record", s.record_id) for s in samples]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def sum_by_unit(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Adds up the rows of each unit: [n, d] to [num_units, d]."""
    if len(units) == 0:
        return rows
    sums = np.zeros((int(units.max()) + 1, rows.shape[1]))
    np.add.at(sums, units, rows)
    return sums


def affordable(num_units: int, num_resamples: int = NUM_RESAMPLES) -> int:
    """How many resamples a set of this size gets: all that are wanted up to 10,000 units.

    The bounds of an interval then rest on fewer resamples, at least 1,000; the interval's
    method says how many.
    """
    return min(num_resamples, max(FEWEST_RESAMPLES, MOST_DRAWS // max(1, num_units)))


def resampled_sums(
    rows: np.ndarray, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """Column sums of bootstrap resamples: [n, d] rows to [num_resamples, d]."""
    n = len(rows)
    rng = np.random.default_rng(seed)
    sums = np.empty((num_resamples, rows.shape[1]))
    step = max(1, CELLS_AT_ONCE // n)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = weights.astype(np.float64) @ rows
    return sums


def swapped_sums(
    differences: np.ndarray, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """What a random half of the units adds when two models swap their rows: [n, d] to [R, d]."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    sums = np.empty((num_resamples, differences.shape[1]))
    step = max(1, CELLS_AT_ONCE // n)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        swaps = rng.integers(0, 2, size=(size, n)).astype(np.float64)
        sums[start : start + size] = swaps @ differences
    return sums


@functools.lru_cache(maxsize=10_000)
def wilson(num_right: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, at 95 %.

    Source: Wilson (1927), doi:10.1080/01621459.1927.10502953, as scipy computes it.
    """
    from scipy.stats import binomtest

    ends = binomtest(round(num_right), n).proportion_ci(LEVEL, method="wilson")
    return float(ends.low), float(ends.high)


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Exact two-sided p of McNemar's test: right only in a against right only in b."""
    from scipy.stats import binomtest

    n = num_only_a + num_only_b
    return float(binomtest(num_only_a, n).pvalue) if n else 1.0


def paired_error(num_only_a: float, num_only_b: float, n: int) -> tuple[float, float]:
    """Centre and standard error of the difference of two paired proportions.

    Half an answer is added to each of the four cells (both right, only a, only b, none), so
    two models that agree on every one of n answers do not count as surely equal.

    Source: Agresti and Min (2005), Statistics in Medicine 24, 729-740: "Wald + 2".
    """
    total = n + 2
    a, b = (num_only_a + 0.5) / total, (num_only_b + 0.5) / total
    return a - b, math.sqrt((a + b - (a - b) ** 2) / total)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; resamples without a value are left out."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bca_interval(unit_rows: np.ndarray, value: Value, resampled: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated interval, at 95 %.

    Args:
        unit_rows: [n, d], one row for each unit that is drawn.
        value: The metric on sums.
        resampled: [R] values of the resamples.

    Source: Efron (1987), doi:10.1080/01621459.1987.10478410; acceleration by jackknife.
    """
    normal = NormalDist()
    total = unit_rows.sum(axis=0)
    found = float(value(total))
    finite = resampled[np.isfinite(resampled)]
    below = float(np.mean(finite < found) + np.mean(finite == found) / 2)
    edge = 1 / (2 * len(finite))
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))
    left_out = value(total - unit_rows)
    pull = np.nanmean(left_out) - left_out
    spread = float(np.nansum(pull**2)) ** 1.5
    acceleration = float(np.nansum(pull**3)) / (6 * spread) if spread > 0 else 0.0
    ends = []
    for z in (-Z, Z):
        shifted = bias + z
        ends.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(finite, ends)
    return float(low), float(high)
