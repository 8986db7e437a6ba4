"""How token ids are cut into buckets, so that common ones take few bits.

Shape letters of this file:
    V  vocabulary     B  buckets

Tokens are put in an order in which neighbours are about as common: by the power of two of how
often each is kept in the shard, and by id among those of one class. The order is then cut into
buckets of 2^w places. An id costs w bits, and a bucket one bit at every position.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from potstill.targets.bits import MAX_WIDTH


class Buckets(NamedTuple):
    """An order of all tokens, and the buckets that it is cut into."""

    classes_V: np.ndarray
    """uint8: how common each token is, as a power of two; larger ones come first."""

    widths_B: np.ndarray
    """uint8: a bucket has 2^w places; the buckets follow one another from the first place."""

    starts_B: np.ndarray
    """int64: first place of each bucket."""

    ids_V: np.ndarray
    """int64: the token at each place."""

    places_V: np.ndarray
    """int64: the place of each token."""


def make_buckets(classes_V: np.ndarray, widths_B: np.ndarray) -> Buckets:
    """Buckets with what follows from their classes and widths."""
    sizes_B = 1 << widths_B.astype(np.int64)
    ids_V = _order(classes_V)
    return Buckets(classes_V, widths_B, np.cumsum(sizes_B) - sizes_B, ids_V, np.argsort(ids_V))


def write_classes(classes_V: np.ndarray) -> bytes:
    """Classes as few bytes."""
    return zlib.compress(classes_V.tobytes(), 9)


def read_classes(table: bytes) -> np.ndarray:
    """The classes that `write_classes` wrote."""
    return np.frombuffer(zlib.decompress(table), np.uint8)


def fit_buckets(ids: np.ndarray, num_positions: int, vocab_size: int) -> Buckets:
    """The order and the buckets that make these ids shortest.

    Where few positions do not pay for the table of classes, tokens stay in the order of their
    ids: byte-pair encoders number their pieces by how common they are.

    Args:
        ids: All ids that will be written, in any order and shape.
    """
    counts_V = np.bincount(ids.ravel(), minlength=vocab_size)
    tried = []
    for classes_V in (np.zeros(vocab_size, np.uint8), np.frexp(counts_V)[1].astype(np.uint8)):
        counts = counts_V[_order(classes_V)] / max(1, num_positions)
        widths_B, bits = _cut(counts.tolist())
        cost = num_positions * bits + 8 * len(write_classes(classes_V))
        tried.append((cost, classes_V, widths_B))
    _, classes_V, widths_B = min(tried, key=lambda one: one[0])
    return make_buckets(classes_V, widths_B)


def _order(classes_V: np.ndarray) -> np.ndarray:
    return np.argsort(-classes_V.astype(np.int64), kind="stable")


def _cut(counts: list[float]) -> tuple[np.ndarray, float]:
    """The widths [B] of the cheapest buckets, and the bits that they take at a position.

    Exact, by dynamic programming from the last place down.

    Args:
        counts: How often the token at each place is kept at a position, on average.
    """
    num = len(counts)
    below = [0.0, *np.cumsum(counts).tolist()]
    cost, choice = [0.0] * (num + 1), [0] * num
    sizes = [(w, 1 << w) for w in range(min(MAX_WIDTH, max(1, num - 1).bit_length()) + 1)]
    for start in range(num - 1, -1, -1):
        best, seen = float("inf"), below[start]
        for width, size in sizes:
            end = min(start + size, num)
            found = 1.0 + width * (below[end] - seen) + cost[end]
            if found < best:
                best, choice[start] = found, width
            if end == num:
                break
        cost[start] = best
    widths, start = [], 0
    while start < num:
        widths.append(choice[start])
        start += 1 << choice[start]
    return np.array(widths, np.uint8), cost[0] + below[num]
