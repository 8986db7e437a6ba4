"""The teacher's probabilities as few bytes, and back.

Shape letters of this file:
    N  positions of a row
    K  most tokens told at a position of the row
    M  tokens of all positions of the row, in order
    B  buckets of token ids
    T  temperatures
    V  vocabulary

Three things are told of each position: which tokens, a number for each (how far its logit
lies above the lowest of the kept ones, or how often it was drawn), and for the k largest the
mass of all others at each temperature.

- Which tokens: the vocabulary, common tokens first, is cut into B buckets of 2^w places, narrow
  where tokens are often kept and wide elsewhere (`targets.buckets`). How many tokens fall into
  each bucket is written in unary, and each one's place in its bucket in w bits, ascending. With
  equal buckets this is the code of Elias (1974, Journal of the ACM 21) and Fano (1971).
- Numbers: after Rice (1979, JPL publication 79-22), the low bits as they are and the rest in
  unary. One split of the bits serves a row.
- Mass of the others: log(tail / kept), 16 bits a temperature.

Logits are rounded to steps of an eighth of the lowest temperature. An error that is even in
plus or minus half a step s costs s^2 / 24 temperature^2 nat where mass is spread over many
tokens: at most 6.5e-4 nat on average, and less where few tokens have it. Temperatures
share one set of rounded logits: at each of them, the kept tokens share what the tail leaves
in proportion to exp(logit / temperature), so kept and tail sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from potstill.targets.bits import num_bytes, pack_fields, pack_unary, unpack_fields, unpack_unary
from potstill.targets.buckets import Buckets

FLOOR = -60.0
"""Logits further below the largest are stored as this: exp(-60) is nothing, and a masked
token is infinitely far below."""

STEPS = 8
"""Steps of a rounded logit to a temperature's unit."""

ODDS_STEPS = 256
"""Steps of log(tail / kept) to a nat: an error of 1/512 at most, 1.6e-7 nat of KL."""

NO_TAIL = -32768
"""The code of an empty tail, where the whole vocabulary is kept."""


class TopK(NamedTuple):
    """The most probable tokens of N positions at one temperature."""

    ids_NK: np.ndarray
    """int64, in no order. Where a position has fewer than K, its first id again."""

    logprobs_NK: np.ndarray
    """float32, nats; minus infinity where an id stands again."""


class Drawn(NamedTuple):
    """Tokens of N positions that were drawn from the teacher's probabilities."""

    ids_NK: np.ndarray
    """int64, in no order; -1 where a position has fewer than K different ones."""

    weights_NK: np.ndarray
    """float32, share of the draws: they sum to 1 at each position, and their expectation is
    the teacher's probability of the token."""


class Row(NamedTuple):
    """What is to be stored of N positions, of either kind."""

    ids_NK: np.ndarray
    """Distinct along K; -1 where a position has fewer than K, never at all of them."""

    values_NK: np.ndarray
    """Logits (float, up to a constant of the position), or how often drawn (int, >= 1)."""

    log_odds_NT: np.ndarray = np.zeros((0, 0))
    """log(probability of all other tokens / of these) at each temperature; minus infinity
    where there are no others. Not looked at for draws."""


def topk_row(
    ids_NK: np.ndarray,
    logprobs_NK: np.ndarray,
    *,
    tail_N: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Row:
    """A row of log-probabilities, for a store of the temperature they were taken at alone.

    Args:
        ids_NK: -1 where fewer than K are known.
        logprobs_NK: Nats, of softmax(logits / temperature).
        tail_N: Probability of all others; follows from the log-probabilities by default.
    """
    logprobs_NK = np.where(ids_NK >= 0, logprobs_NK, -np.inf).astype(np.float64)
    kept_N = np.exp(logprobs_NK).sum(-1)
    tail_N = np.clip(1 - kept_N if tail_N is None else tail_N, 0, None)
    with np.errstate(divide="ignore"):
        log_odds_N = np.log(tail_N) - np.log(kept_N)
    return Row(ids_NK, temperature * logprobs_NK, log_odds_N[:, None])


class Code(NamedTuple):
    """How the rows of a shard are written."""

    buckets: Buckets
    step: float
    """Nats between two rounded logits; 0 for draws, which are counted and not rounded."""

    temperatures: tuple[float, ...]


class Written(NamedTuple):
    """One row as bytes, and how many of them tell what."""

    data: bytes
    ids: int
    values: int
    tail: int


def ordered(row: Row, code: Code) -> Row:
    """The same row with the tokens of each position as they are written, absent ones last."""
    places_V = code.buckets.places_V
    places_NK = np.where(row.ids_NK < 0, len(places_V), places_V[np.maximum(row.ids_NK, 0)])
    order_NK = np.argsort(places_NK, axis=-1)
    ids_NK, values_NK = (np.take_along_axis(a, order_NK, -1) for a in (row.ids_NK, row.values_NK))
    return Row(ids_NK, values_NK, row.log_odds_NT)


def write_row(row: Row, code: Code) -> Written:
    """One row, as `ordered` gave it, as bytes."""
    told_NK = row.ids_NK >= 0
    assert told_NK[:, :1].all(), "a position without any token"
    places_M = code.buckets.places_V[row.ids_NK[told_NK]]
    starts_B, widths_B = code.buckets.starts_B, code.buckets.widths_B
    buckets_M = np.searchsorted(starts_B, places_M, side="right") - 1
    num_positions, num_buckets = len(told_NK), len(starts_B)
    odds_shape = (num_positions, len(code.temperatures))
    assert not code.step or row.log_odds_NT.shape == odds_shape, (row.log_odds_NT.shape, odds_shape)
    cells_M = buckets_M + np.repeat(np.arange(num_positions), told_NK.sum(-1)) * num_buckets
    counts = np.bincount(cells_M, minlength=num_positions * num_buckets)
    numbers_M = _numbers(row.values_NK, told_NK, code.step)[told_NK]
    split = min(range(16), key=lambda bits: int((numbers_M >> bits).sum()) + bits * len(numbers_M))
    lows_M = np.full(len(numbers_M), split)
    tail = _odds_codes(row.log_odds_NT).tobytes() if code.step else b""
    ids = pack_unary(counts)
    ids += pack_fields(places_M - starts_B[buckets_M], widths_B[buckets_M])
    values = pack_fields(numbers_M & ((1 << split) - 1), lows_M) + pack_unary(numbers_M >> split)
    data = bytes([split]) + tail + ids + values
    return Written(data, ids=len(ids), values=1 + len(values), tail=len(tail))


def read_row(
    data: np.ndarray, num_positions: int, code: Code, temperature: float | None
) -> TopK | Drawn:
    """One row out of the bytes (uint8) that `write_row` made of it.

    Args:
        temperature: One of the code's; None for draws.
    """
    split, at = int(data[0]), 1
    num_temperatures = len(code.temperatures) if code.step else 0
    odds_NT = data[at : at + 2 * num_positions * num_temperatures].view("<i2")
    at += odds_NT.nbytes
    widths_B, num_buckets = code.buckets.widths_B, len(code.buckets.widths_B)
    counts, used = unpack_unary(data[at:], num_positions * num_buckets)
    at += used
    buckets_M = np.repeat(np.tile(np.arange(num_buckets), num_positions), counts)
    widths_M = widths_B[buckets_M]
    places_M = code.buckets.starts_B[buckets_M] + unpack_fields(data[at:], widths_M)
    ids_M = code.buckets.ids_V[places_M]
    at += num_bytes(widths_M)
    lows_M = np.full(len(ids_M), split)
    numbers_M = unpack_fields(data[at:], lows_M)
    at += num_bytes(lows_M)
    numbers_M += unpack_unary(data[at:], len(ids_M))[0] << split
    num_N = counts.reshape(num_positions, num_buckets).sum(-1)
    told_NK = np.arange(num_N.max(initial=0))[None] < num_N[:, None]
    if not code.step:
        return _drawn(ids_M, numbers_M + 1, told_NK)
    place = code.temperatures.index(temperature)
    log_odds_N = _log_odds(odds_NT.reshape(num_positions, num_temperatures)[:, place])
    return _topk(ids_M, numbers_M * (code.step / temperature), told_NK, log_odds_N)


def joined(rows: Sequence[TopK] | Sequence[Drawn]) -> TopK | Drawn:
    """The positions of several rows, one after the other."""
    width = max(row.ids_NK.shape[1] for row in rows)
    if isinstance(rows[0], Drawn):
        padded = [(_widened(ids, width, -1), _widened(weights, width, 0)) for ids, weights in rows]
        return Drawn(*map(np.concatenate, zip(*padded, strict=True)))
    padded = [
        (_widened(ids, width, ids[:, :1]), _widened(logprobs, width, -np.inf))
        for ids, logprobs in rows
    ]
    return TopK(*map(np.concatenate, zip(*padded, strict=True)))


def error_nats(row: Row, found: TopK, code: Code, temperature: float) -> np.ndarray:
    """KL(what was given || what came back) at each position [N], float64.

    Over the kept tokens and one bucket for all others, at one temperature.

    Args:
        row: As `ordered` gave it.
    """
    width = found.ids_NK.shape[1]
    told_NK = row.ids_NK[:, :width] >= 0
    assert np.array_equal(found.ids_NK[told_NK], row.ids_NK[:, :width][told_NK]), "other ids"
    logits_NK = np.where(told_NK, row.values_NK[:, :width], -np.inf) / temperature
    log_odds_N = row.log_odds_NT[:, code.temperatures.index(temperature)].astype(np.float64)
    log_p_NK = _shares(logits_NK.astype(np.float64), log_odds_N)
    p_NK, log_q_NK = np.exp(log_p_NK), found.logprobs_NK.astype(np.float64)
    ratio_NK = np.subtract(log_p_NK, log_q_NK, out=np.zeros_like(p_NK), where=p_NK > 0)
    tail_p_N = np.exp(-np.logaddexp(0.0, -log_odds_N))
    tail_q_N = np.clip(1 - np.exp(log_q_NK).sum(-1), 1e-12, 1)
    # Read back in float32, a tail below a millionth is rounding noise.
    is_tail_N = tail_p_N > 1e-6
    ratio_N = np.log(tail_p_N, out=np.zeros_like(tail_p_N), where=is_tail_N) - np.log(
        tail_q_N, out=np.zeros_like(tail_q_N), where=is_tail_N
    )
    return (p_NK * ratio_NK).sum(-1) + tail_p_N * ratio_N


def _widened(array_NK: np.ndarray, width: int, filler: Any) -> np.ndarray:
    num, own = array_NK.shape
    if own == width:
        return array_NK
    filling = np.broadcast_to(np.asarray(filler, array_NK.dtype), (num, width - own))
    return np.concatenate([array_NK, filling], axis=1)


def _numbers(values_NK: np.ndarray, told_NK: np.ndarray, step: float) -> np.ndarray:
    """Whole numbers from 0 on: steps above the lowest kept logit, or draws beyond the first."""
    if not step:
        return values_NK.astype(np.int64) - 1
    values_NK = np.where(told_NK, values_NK, -np.inf).astype(np.float64)
    values_NK = np.maximum(values_NK - values_NK.max(-1, keepdims=True), FLOOR)
    lowest_N1 = np.where(told_NK, values_NK, np.inf).min(-1, keepdims=True)
    return np.rint((values_NK - lowest_N1) / step).astype(np.int64)


def _odds_codes(log_odds_NT: np.ndarray) -> np.ndarray:
    is_empty_NT = np.isneginf(log_odds_NT)
    codes_NT = np.clip(np.rint(np.where(is_empty_NT, 0, log_odds_NT) * ODDS_STEPS), -32767, 32767)
    return np.where(is_empty_NT, NO_TAIL, codes_NT).astype("<i2")


def _log_odds(codes_N: np.ndarray) -> np.ndarray:
    return np.where(codes_N == NO_TAIL, -np.inf, codes_N.astype(np.float64) / ODDS_STEPS)


def _shares(logits_NK: np.ndarray, log_odds_N: np.ndarray) -> np.ndarray:
    """Log-probabilities of the kept tokens, which share 1 / (1 + exp(log odds of the tail))."""
    highest_N1 = logits_NK.max(-1, keepdims=True)
    lse_N = np.log(np.exp(logits_NK - highest_N1).sum(-1)) + highest_N1[:, 0]
    return logits_NK - (lse_N + np.logaddexp(0.0, log_odds_N))[:, None]


def _topk(
    ids_M: np.ndarray, logits_M: np.ndarray, told_NK: np.ndarray, log_odds_N: np.ndarray
) -> TopK:
    if told_NK.all():
        ids_NK, logits_NK = ids_M.reshape(told_NK.shape), logits_M.reshape(told_NK.shape)
    else:
        ids_NK, logits_NK = np.zeros(told_NK.shape, np.int64), np.full(told_NK.shape, -np.inf)
        ids_NK[told_NK], logits_NK[told_NK] = ids_M, logits_M
        ids_NK = np.where(told_NK, ids_NK, ids_NK[:, :1])
    return TopK(ids_NK, _shares(logits_NK, log_odds_N).astype(np.float32))


def _drawn(ids_M: np.ndarray, counts_M: np.ndarray, told_NK: np.ndarray) -> Drawn:
    ids_NK, counts_NK = np.full(told_NK.shape, -1, np.int64), np.zeros(told_NK.shape)
    ids_NK[told_NK], counts_NK[told_NK] = ids_M, counts_M
    return Drawn(ids_NK, (counts_NK / counts_NK.sum(-1, keepdims=True)).astype(np.float32))
