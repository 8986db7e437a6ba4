"""The log-probabilities of an answer: out of an endpoint's JSON, into few bytes, and back.

Weights of this machine keep them while they answer (`models.decode`), in the same form.

Shape letters of this file:
    N  positions of the answer
    K  tokens told at each position, most probable first

300 positions of 20 tokens are 431 KB of JSON and 26 KB here: 4 K + 8 bytes a position, or
6 K + 8 where an id does not fit into 16 bits.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from potstill.types import Logprobs

FLOOR = -60.0
"""Values are not kept below this: exp(-60) is nothing, and servers write -9999 for "none"."""

_ID_PREFIX = "token_id:"
_UNTOLD_16 = 0xFFFF
_LOGPROB = operator.itemgetter("logprob")
_NUMBERS = (int, float)


class LogprobArrays(NamedTuple):
    """`Logprobs` as arrays."""

    sampled_N: np.ndarray
    """int32: the tokens of the answer; -1 where one is not known."""

    ids_NK: np.ndarray
    """int32; -1 where fewer than K were told."""

    logprobs_NK: np.ndarray
    """float16, nats; minus infinity where fewer than K were told."""

    tail_N: np.ndarray
    """float32: probability of all tokens that were not told, in [0, 1]."""


class Capture(NamedTuple):
    """What weights of this machine keep of their probabilities while they answer."""

    k: int
    """How many, of the most probable tokens at each position; the vocabulary at most."""

    temperature: float = 1.0
    """They are those of softmax(logits / temperature). Not what is sampled from."""


def read_logprobs(tree: Any, k: int, *, mode: str | None = None) -> Logprobs | None:
    """Reads `choice.logprobs` of a chat completion; None where it holds none.

    Servers add the sampled token to the k largest, or tell more than was asked; so entries are
    ranked again and cut at k. Token ids are kept where the server tells them: llama.cpp as
    `id`, vLLM as the token's text when asked to. Elsewhere ids count a table of the tokens' bytes.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: If it has another form.
    """
    content = tree.get("content") if isinstance(tree, dict) else None
    if not content:
        return None
    # A token that is new gets the next number.
    table: defaultdict[bytes, int] = defaultdict()
    table.default_factory = table.__len__
    ids_of = _reader(content[0], table)
    sampled = ids_of(content)
    rows = [_ranked(position.get("top_logprobs") or (), k) for position in content]
    told = list(itertools.chain.from_iterable(rows))
    ids_NK = np.full((len(rows), k), -1, "<i4")
    logprobs_NK = np.full((len(rows), k), -np.inf)
    lengths = np.array([len(row) for row in rows])
    is_told_NK = np.arange(k) < lengths[:, None]
    ids_NK[is_told_NK] = ids_of(told)
    logprobs_NK[is_told_NK] = list(map(_LOGPROB, told))
    np.clip(logprobs_NK, FLOOR, 0.0, out=logprobs_NK, where=is_told_NK)
    tail_N = np.clip(1.0 - np.exp(logprobs_NK).sum(-1), 0.0, 1.0)
    arrays = LogprobArrays(np.array(sampled, "<i4"), ids_NK, logprobs_NK, tail_N)
    return pack_logprobs(arrays, tokens=tuple(token.hex() for token in table), mode=mode)


def pack_logprobs(arrays: LogprobArrays, **facts: Any) -> Logprobs:
    """The arrays as few bytes.

    Args:
        arrays: Of any type of number.
        facts: The other fields of `Logprobs`.

    Raises:
        OverflowError: If a token id does not fit into 32 bits.
    """
    ids_NK = arrays.ids_NK
    if ids_NK.size and ids_NK.max() < _UNTOLD_16:
        ids = np.where(ids_NK < 0, _UNTOLD_16, ids_NK).astype("<u2").tobytes()
    else:
        ids = ids_NK.astype("<i4").tobytes()
    return Logprobs(
        k=ids_NK.shape[-1],
        sampled=arrays.sampled_N.astype("<i4").tobytes(),
        ids=ids,
        values=arrays.logprobs_NK.astype("<f2").tobytes(),
        tail=arrays.tail_N.astype("<f4").tobytes(),
        **facts,
    )


def logprob_arrays(logprobs: Logprobs) -> LogprobArrays:
    """The arrays that were packed."""
    num_entries = len(logprobs.values) // 2
    if len(logprobs.ids) == 2 * num_entries:
        ids = np.frombuffer(logprobs.ids, "<u2").astype("<i4")
        ids[ids == _UNTOLD_16] = -1
    else:  # also whatever was written before ids could be short
        ids = np.frombuffer(logprobs.ids, "<i4")
    return LogprobArrays(
        sampled_N=np.frombuffer(logprobs.sampled, "<i4"),
        ids_NK=ids.reshape(-1, logprobs.k),
        logprobs_NK=np.frombuffer(logprobs.values, "<f2").reshape(-1, logprobs.k),
        tail_N=np.frombuffer(logprobs.tail, "<f4"),
    )


def chosen_logprobs(arrays: LogprobArrays) -> np.ndarray:
    """The log-probability of each token of the answer: [N] float64, nats.

    Minus infinity where it is not among those that were told.
    """
    is_chosen_NK = arrays.ids_NK == arrays.sampled_N[:, None]
    logprobs_NK = arrays.logprobs_NK.astype(np.float64)
    return np.where(is_chosen_NK, logprobs_NK, -np.inf).max(axis=-1, initial=-np.inf)


def num_told(logprobs: Logprobs | None) -> int:
    """Most tokens that were told at one position; 0 where there are none at all."""
    return 0 if logprobs is None else int((logprob_arrays(logprobs).ids_NK >= 0).sum(-1).max())


def _reader(
    first: dict[str, Any], table: defaultdict[bytes, int]
) -> Callable[[Iterable[dict[str, Any]]], list[int]]:
    """What finds the numbers of entries' tokens, in the manner of the answer's first entry."""
    if isinstance(first.get("id"), int):
        id_of = operator.itemgetter("id")
        return lambda entries: list(map(id_of, entries))
    if first["token"].startswith(_ID_PREFIX):
        return lambda entries: [int(entry["token"].removeprefix(_ID_PREFIX)) for entry in entries]
    return lambda entries: [table[_token_bytes(entry)] for entry in entries]


def _token_bytes(entry: dict[str, Any]) -> bytes:
    data = entry.get("bytes")
    return bytes(data) if isinstance(data, list) else entry["token"].encode()


def _ranked(entries: Sequence[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    told = [entry for entry in entries if isinstance(entry["logprob"], _NUMBERS)]
    told.sort(key=_LOGPROB, reverse=True)
    return told[:k]
