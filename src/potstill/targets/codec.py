"""Top-k probabilities to compact arrays and back.

Shape letters of this file:
    N  positions
    K  tokens kept at each position, most probable first
    V  vocabulary

A position is K token ids (2 bytes each where V <= 65,536, else 4), K log-probabilities
in float16, and the mass of all other tokens in float32: 4 K + 4 or 6 K + 4 bytes.

Where fewer than K tokens are known, the rest of a position repeats its first id with a
log-probability of minus infinity.

Error: a log-probability in float16 is off by at most 2^-11 of itself, so the mass of the
kept tokens would no longer agree with the tail. `decode` scales the kept probabilities so
that kept and tail sum to 1 again. What remains is a KL divergence between what was given
and what comes back below 1e-5 nat a position (tests/targets/test_codec.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FLOOR = -60.0
"""Log-probabilities are not stored below this: exp(-60) is nothing, and float16 would turn
values below -65,504 (a masked token) into infinity."""


class Encoded(NamedTuple):
    """Arrays of one or many positions, as they lie on disk."""

    ids_NK: np.ndarray
    """uint16 or int32."""

    logprobs_NK: np.ndarray
    """float16, nats."""

    tail_N: np.ndarray
    """float32: probability of all tokens that were not kept, in [0, 1]."""


def encode(
    ids_NK: np.ndarray,
    logprobs_NK: np.ndarray,
    *,
    vocab_size: int,
    tail_N: np.ndarray | None = None,
) -> Encoded:
    """Packs the K most probable tokens of each position.

    Args:
        ids_NK: Token ids below `vocab_size`, distinct along K; -1, but not in the first place,
            where fewer than K are known.
        logprobs_NK: Their log-probabilities, nats.
        tail_N: Probability of all other tokens, where it is known better than from rounded
            log-probabilities; follows from them by default.
    """
    assert ids_NK.shape == logprobs_NK.shape, (ids_NK.shape, logprobs_NK.shape)
    assert ids_NK.size == 0 or int(ids_NK.max()) < vocab_size, (int(ids_NK.max()), vocab_size)
    is_known_NK = ids_NK >= 0
    assert is_known_NK[:, :1].all(), "a position without any token"
    logprobs_NK = np.where(is_known_NK, np.maximum(logprobs_NK, FLOOR), -np.inf)
    if tail_N is None:
        tail_N = 1.0 - np.exp(logprobs_NK.astype(np.float64)).sum(-1)
    return Encoded(
        ids_NK=np.where(is_known_NK, ids_NK, ids_NK[:, :1]).astype(
            np.uint16 if vocab_size <= 1 << 16 else np.int32
        ),
        logprobs_NK=logprobs_NK.astype(np.float16),
        tail_N=np.clip(tail_N, 0.0, 1.0).astype(np.float32),
    )


def decode(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Gives back ids [N, K] int64 and log-probabilities [N, K] float32, nats.

    The kept probabilities sum to 1 - tail at each position. Where fewer than K are known, the
    rest has minus infinity.
    """
    logprobs_NK = encoded.logprobs_NK.astype(np.float64)
    kept_N = np.exp(logprobs_NK).sum(-1)
    wanted_N = np.maximum(1.0 - encoded.tail_N.astype(np.float64), np.finfo(np.float64).tiny)
    logprobs_NK += (np.log(wanted_N) - np.log(kept_N))[:, None]
    return encoded.ids_NK.astype(np.int64), logprobs_NK.astype(np.float32)


def bytes_per_position(k: int, vocab_size: int) -> int:
    """What one position takes on disk, headers not counted."""
    return k * ((2 if vocab_size <= 1 << 16 else 4) + 2) + 4
