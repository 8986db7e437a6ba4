"""Character n-grams of folded texts, as sorted numbers: what near-duplicates are counted in.

Characters do for every script; words would need spaces.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

NEAR = 0.8
"""Jaccard similarity of character 5-grams from which two texts are near-duplicates."""

NGRAM = 5
FEWEST_NGRAMS = 20
"""Texts with fewer 5-grams of their own are compared exactly only."""

TEMPLATE_SHARE = 0.05
TEMPLATE_ROWS = 5
"""A 5-gram in more than 5 % of the rows, and in more than 5 rows, belongs to the template."""


def ngrams(folded: str) -> np.ndarray:
    """Sorted distinct 64-bit hashes of a folded text's character 5-grams."""
    points = np.frombuffer(folded.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(points) < NGRAM:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(len(points) - NGRAM + 1, dtype=np.uint64)
    for offset in range(NGRAM):  # a polynomial modulo 2^64; 21-bit code points do not collide
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + points[offset : offset + len(hashes)]
    return np.unique(hashes)


def template_ngrams(folded: Iterable[str]) -> np.ndarray:
    """Sorted n-grams that stand in many of the texts."""
    pending: list[np.ndarray] = []
    size = num_texts = 0
    keys, totals = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    for text in folded:
        pending.append(ngrams(text))
        num_texts += 1
        size += len(pending[-1])
        if size > 2_000_000:
            keys, totals = _add_counts(keys, totals, pending)
            pending, size = [], 0
    keys, totals = _add_counts(keys, totals, pending)
    return keys[totals > max(TEMPLATE_ROWS, TEMPLATE_SHARE * num_texts)]


def without(own: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """The n-grams of a text that are not the template's."""
    return own[~np.isin(own, templates, assume_unique=True)] if len(templates) else own


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared n-grams over all n-grams of two texts, in [0, 1]; 0 where both have none."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def _add_counts(
    keys: np.ndarray, totals: np.ndarray, pending: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    if not pending:
        return keys, totals
    new, num = np.unique(np.concatenate(pending), return_counts=True)
    merged, inverse = np.unique(np.concatenate([keys, new]), return_inverse=True)
    sums = np.bincount(inverse, weights=np.concatenate([totals, num]), minlength=len(merged))
    return merged, sums.astype(np.int64)
