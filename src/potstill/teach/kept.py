"""Probabilities that came with the answers, as targets: told by an endpoint, or kept by weights
of this machine while they answered. What fits needs no second look at the answer.

Shape letters of this file:
    N  loss positions of a row, the end token among them
    M  positions that were told: N, or N - 1 without the end token
    K  tokens told at each position, most probable first; at most k of them are kept

Most endpoints do not tell the end token. Where an answer ended by itself and only that position
is missing, it is kept as certain: the teacher did end there, though how surely is not known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from potstill.config import LogprobsMode
from potstill.data.render import Rendered
from potstill.errors import VocabMismatch
from potstill.models.logprobs import LogprobArrays, logprob_arrays
from potstill.targets.codec import Row, topk_row
from potstill.targets.pieces import ids_by_bytes
from potstill.targets.store import TargetSettings, TargetWriter, content_key
from potstill.types import Logprobs, Message, Response

Misfit = Literal[
    "not_kept",
    "too_few",
    "other_temperature",
    "processed",
    "other_prompt",
    "other_vocabulary",
    "other_text",
    "other_tokens",
    "cut",
]
"""Why probabilities that came with an answer are not the targets of a row; `TEXTS` says it."""

TEXTS: dict[Misfit, str] = {
    "not_kept": "came without log-probabilities",
    "too_few": "came with fewer log-probabilities than loss.targets.k",
    "other_temperature": "were kept at another loss.temperature",
    "processed": "have log-probabilities after the sampling temperature, or nobody says before",
    "other_prompt": "are learned with another prompt than the teacher was asked",
    "other_vocabulary": "are in tokens of another vocabulary",
    "other_text": "are learned as another text than the teacher wrote",
    "other_tokens": "are written with other tokens by the student's tokenizer",
    "cut": "did not end by themselves",
}

_OUTSIDE = -2
"""A token that the student's vocabulary has not."""

_SHARD_POSITIONS = 2**17
_TELL_EVERY = 64


class Lesson(NamedTuple):
    """A row that is learned, and the answer that it was made of."""

    row: Rendered
    text: str
    """What is learned, as text."""

    response: Response | None
    """None where the answer is not there any more."""

    is_as_asked: bool
    """Whether the prompt that is learned is the one that the teacher was asked."""

    prompt: tuple[Message, ...] = ()
    """What is learned to be answered."""


class Source(NamedTuple):
    """What is known of all answers of a teacher."""

    mode: LogprobsMode | None
    """What its log-probabilities are, where they do not say it themselves."""

    is_plain: bool
    """Whether it was sampled at temperature 1 with nothing cut or lowered: then log-probabilities
    are the same before and after."""


class Fitted(NamedTuple):
    """The targets of a row."""

    encoded: Row
    mass_dropped: float
    """Probability of tokens that the student's vocabulary has not, summed over the positions."""


class Kept(NamedTuple):
    """What became of lessons."""

    rows: dict[bytes, Rendered]
    """All, by their keys in the store; equal ones once."""

    misfits: dict[bytes, Misfit]
    """Those whose answers' probabilities are not their targets; the store may have others."""

    texts: dict[bytes, tuple[tuple[Message, ...], str]]
    """Prompt and answer of those."""


Words = Callable[[], dict[bytes, int]]


def words_of(tokenizer: Any) -> dict[bytes, int]:
    """A tokenizer's tokens by their bytes, control tokens by their names; none of an unknown kind.

    Answers that are told in words of an unknown kind fit nowhere, and are scored in another way.
    """
    try:
        return ids_by_bytes(tokenizer, with_control=True)
    except VocabMismatch:
        return {}


def keep(
    lessons: Iterable[Lesson],
    writer: TargetWriter,
    *,
    source: Source,
    tokenizer: Any,
    on_progress: Callable[[int], None] | None = None,
) -> Kept:
    """Puts the probabilities that came with the answers into a store, as far as they fit.

    Args:
        tokenizer: The student's; compares tokens that are known by their bytes.
        on_progress: Called with the rows that were looked at.
    """
    words = functools.cache(lambda: words_of(tokenizer))
    ends = frozenset(tokenizer.all_special_ids)
    found, fits = Kept({}, {}, {}), set[bytes]()
    pending: dict[bytes, Fitted] = {}
    num_positions = 0
    for number, lesson in enumerate(lessons, start=1):
        key = content_key(lesson.row.ids, lesson.row.loss_mask)
        found.rows[key] = lesson.row
        if key in fits:
            continue
        fit = fitted(lesson, writer.settings, source=source, words=words, ends=ends)
        if not isinstance(fit, Fitted):
            found.misfits[key] = fit
            found.texts[key] = (lesson.prompt, lesson.text)
            continue
        fits.add(key)
        found.misfits.pop(key, None)
        found.texts.pop(key, None)
        if key not in writer:
            pending[key] = fit
            num_positions += len(fit.encoded.ids_NK)
        if num_positions >= _SHARD_POSITIONS:
            _write(writer, pending)
            num_positions = 0
        if on_progress is not None and number % _TELL_EVERY == 0:
            on_progress(number)
    _write(writer, pending)
    return found


def fitted(
    lesson: Lesson,
    settings: TargetSettings,
    *,
    source: Source,
    words: Words,
    ends: frozenset[int] = frozenset(),
) -> Fitted | Misfit:
    """The targets of a row from the probabilities of its answer, or why they are not.

    Told tokens are the row's where they are the same ids, one by one: of one vocabulary by
    its fingerprint, or of one that nobody named but that spells the answer with the very same
    numbers. Tokens known by their bytes are those of the student's pieces with the same bytes.

    Args:
        words: The student's tokens by their bytes.
        ends: Control tokens of the student: any of them may have ended the answer.
    """
    response, told = lesson.response, lesson.response and lesson.response.logprobs
    if response is None or told is None:
        return "not_kept"
    if misfit := _unfit(told, settings, source):
        return misfit
    if not lesson.is_as_asked:
        return "other_prompt"
    arrays = _in_own_ids(told, settings, words)
    learned_N = np.array(lesson.row.ids)[np.array(lesson.row.loss_mask, dtype=bool)]
    has_end = told.has_end or (told.has_end is None and int(arrays.sampled_N[-1]) in ends)
    if not _is_same(arrays.sampled_N, learned_N, has_end=has_end):
        is_other = bool(response.reasoning) or response.text.strip() != lesson.text.strip()
        return "other_text" if is_other else "other_tokens"
    is_end_told = len(arrays.sampled_N) == len(learned_N)
    if not is_end_told and response.finish_reason != "stop":
        return "cut"
    return _targets(arrays, settings, told.mass_dropped, None if is_end_told else learned_N[-1])


def scored_targets(arrays: LogprobArrays, settings: TargetSettings) -> Fitted | Misfit:
    """The targets of a row whose own tokens were scored, its end token among them."""
    return _targets(_known_alone(arrays, settings), settings, 0.0, None)


def _unfit(told: Logprobs, settings: TargetSettings, source: Source) -> Misfit | None:
    """What can be said without comparing tokens."""
    if settings.kind != "topk" or settings.temperatures != (told.temperature,):
        return "other_temperature"
    if (told.mode or source.mode) != "raw" and not source.is_plain:
        return "processed"
    if told.k < settings.k:
        return "too_few"
    named = told.vocab_fingerprint
    if not told.tokens and named is not None and named != settings.vocab_fingerprint:
        return "other_vocabulary"
    return None


def _in_own_ids(told: Logprobs, settings: TargetSettings, words: Words) -> LogprobArrays:
    """With the student's ids; -1 stays where nothing was told, and others are `_OUTSIDE`."""
    arrays = logprob_arrays(told)
    if not told.tokens:
        return _known_alone(arrays, settings)
    table = np.array([words().get(bytes.fromhex(token), _OUTSIDE) for token in told.tokens])
    ids_NK = np.where(arrays.ids_NK < 0, -1, table[arrays.ids_NK])
    # Where bytes are not told, tokens that are no whole letters are all spelled alike.
    is_again_NK = _is_again(ids_NK) & (ids_NK >= 0)
    return arrays._replace(
        sampled_N=np.where(arrays.sampled_N < 0, _OUTSIDE, table[arrays.sampled_N]),
        ids_NK=np.where(is_again_NK, _OUTSIDE, ids_NK),
    )


def _known_alone(arrays: LogprobArrays, settings: TargetSettings) -> LogprobArrays:
    """With ids beyond the student's vocabulary as `_OUTSIDE`."""
    ids_NK = np.where(arrays.ids_NK < settings.vocab_size, arrays.ids_NK, _OUTSIDE)
    return arrays._replace(ids_NK=ids_NK)


def _is_again(ids_NK: np.ndarray) -> np.ndarray:
    """Where an id stands that stood further to the left already: bool [N, K]."""
    order_NK = np.argsort(ids_NK, axis=-1, kind="stable")
    sorted_NK = np.take_along_axis(ids_NK, order_NK, -1)
    is_again_NK = np.zeros(ids_NK.shape, dtype=bool)
    np.put_along_axis(is_again_NK, order_NK[:, 1:], sorted_NK[:, 1:] == sorted_NK[:, :-1], -1)
    return is_again_NK


def _is_same(sampled_M: np.ndarray, learned_N: np.ndarray, *, has_end: bool) -> bool:
    """Whether the tokens are those of the row, with the end token or without it."""
    if has_end:
        # Any end token will do: what is learned is the row's own, at the same place.
        return np.array_equal(sampled_M[:-1], learned_N[:-1])
    return np.array_equal(sampled_M, learned_N) or np.array_equal(sampled_M, learned_N[:-1])


def _targets(
    arrays: LogprobArrays, settings: TargetSettings, dropped: float, certain_end: int | None
) -> Fitted | Misfit:
    """The k largest in the student's vocabulary, of a distribution over this vocabulary alone."""
    is_told_MK, is_own_MK = arrays.ids_NK != -1, arrays.ids_NK >= 0
    if is_told_MK.sum(-1).max(initial=0) < settings.k or not is_own_MK.any(-1).all():
        return "too_few"
    p_MK = np.exp(arrays.logprobs_NK.astype(np.float64))
    outside_M = np.where(is_told_MK & ~is_own_MK, p_MK, 0.0).sum(-1)
    order_MK = np.argsort(~is_own_MK, axis=-1, kind="stable")  # own ones first, as they were ranked
    ids_MK = np.take_along_axis(np.where(is_own_MK, arrays.ids_NK, -1), order_MK, -1)
    own_MK = np.take_along_axis(np.where(is_own_MK, p_MK, 0.0), order_MK, -1)
    tail_M = arrays.tail_N.astype(np.float64) + own_MK[:, settings.k :].sum(-1)
    own_M = np.maximum(1.0 - outside_M, np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore"):
        logprobs_MK = np.log(own_MK[:, : settings.k] / own_M[:, None])
    ids_MK, tail_M = ids_MK[:, : settings.k], tail_M / own_M
    if certain_end is not None:
        more = np.full((1, settings.k - 1), -1)
        ids_MK = np.vstack([ids_MK, np.hstack([[[certain_end]], more])])
        logprobs_MK = np.vstack([logprobs_MK, np.zeros((1, settings.k))])
        tail_M = np.append(tail_M, 0.0)
    (temperature,) = settings.temperatures
    encoded = topk_row(ids_MK, logprobs_MK, tail_N=tail_M, temperature=temperature)
    return Fitted(encoded, dropped + float(outside_M.sum()))


def _write(writer: TargetWriter, pending: dict[bytes, Fitted]) -> None:
    """Moves what is pending into a shard."""
    if pending:
        dropped = sum(fit.mass_dropped for fit in pending.values())
        rows = [fit.encoded for fit in pending.values()]
        writer.write(list(pending), rows, mass_dropped=dropped)
        pending.clear()
