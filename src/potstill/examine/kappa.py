"""Whether two opinions agree, and by how much more than by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.examine.metrics import MeanMetric, estimate
from potstill.types import Estimate, Sample

CHOICES = ("a", "tie", "b")


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of `prediction` and `target`, over a, tie and b.

    (agreement - agreement by chance) / (1 - agreement by chance); 1 is full agreement and 0 what
    two who choose independently come to. Which model is called a is of no account: every pair is
    counted half the other way round, so an opinion that is always on one model's side is worth
    what it hits.

    Source: Cohen (1960), doi:10.1177/001316446002000104.
    """

    name: str = "kappa"
    unit: str = ""
    higher_is_better: bool = True
    signature: str = "Cohen's kappa over: a better, tie, b better; each pair both ways round"

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are the nine cells of one's choice against the other's."""
        rows = np.zeros((len(samples), len(CHOICES) ** 2))
        for row, sample in zip(rows, samples, strict=True):
            ours, theirs = CHOICES.index(sample.prediction), CHOICES.index(sample.target)
            row[3 * ours + theirs] += 0.5
            row[3 * (2 - ours) + 2 - theirs] += 0.5
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        cells = sums.reshape(*sums.shape[:-1], 3, 3)
        n = cells.sum(axis=(-1, -2))
        agreed = np.trace(cells, axis1=-2, axis2=-1) / n
        chance = (cells.sum(axis=-1) * cells.sum(axis=-2)).sum(axis=-1) / n**2
        return np.divide(
            agreed - chance, 1 - chance, out=np.full(np.shape(n), np.nan), where=chance < 1 - 1e-12
        )


AGREEMENT = MeanMetric("agreement", lambda s: float(s.prediction == s.target), "same choice")


def agreements(samples: Sequence[Sample], *, seed: int) -> dict[str, Estimate]:
    """`agreement` (share of equal choices) and `kappa`, each with its interval; {} without samples.

    Args:
        samples: `prediction` is one's choice and `target` the other's: a, tie or b.
    """
    if not samples:
        return {}
    kappa = estimate(Kappa(), samples, seed=seed)
    if kappa.value is None:
        note = "both always say the same one thing, so chance agrees as well"
        kappa = kappa.model_copy(update={"note": note})
    return {"agreement": estimate(AGREEMENT, samples, seed=seed), "kappa": kappa}
