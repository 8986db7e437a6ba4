"""Whether two models speak of the same tokens, and the tokens they share.

Models of one family share a tokenizer but may pad their output layers to different widths
(Qwen2.5: 151,936 and 152,064 rows for 151,665 tokens). The rows beyond the tokenizer mean
nothing; they are cut off before the softmax, so that no probability is spent on them.

Two tokenizers that share pieces are mapped by the pieces' bytes. Where they cut an answer
into the same pieces, what the teacher says of a piece holds for the student's token of the
same bytes; pieces that only one of them has are cut off like padding.

Shape letters of this file:
    N  positions     V  the teacher's vocabulary, padding included     S  shared tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from potstill.data.render import Rendered, end_token_ids
from potstill.errors import VocabMismatch
from potstill.targets.pieces import ids_by_bytes

WAY_OUT = (
    "learn from the teacher's text (loss.kind: sft), or take a student of the teacher's family"
)

LEAST_SHARED = 0.5
"""Share of the smaller vocabulary that must be in the larger: with less, hardly an answer is
cut alike, and that shall be said before the teacher is asked for any."""


class SharedTokens(NamedTuple):
    """The tokens that two tokenizers have in common: places of one and the same piece."""

    teacher_S: np.ndarray
    """int64, distinct."""

    student_S: np.ndarray
    """int64, distinct."""


def check_same_vocabulary(teacher: str, student: str) -> None:
    """Compares two vocabulary fingerprints.

    Raises:
        VocabMismatch: If they differ. Widths are not compared: equal widths can hold
            different tokens, and different widths the same.
    """
    if teacher != student:
        raise VocabMismatch(
            f"teacher (vocabulary {teacher[:12]}) and student (vocabulary {student[:12]}) use "
            f"different tokenizers, so probabilities cannot be passed on; learn from the "
            f"teacher's text (loss.kind: sft) or take both from one model family"
        )


def shared_tokens(teacher_tokenizer: Any, student_tokenizer: Any) -> SharedTokens:
    """The tokens of equal bytes in two tokenizers, and the tokens that end a turn.

    Of several tokens with the same bytes the first counts: SentencePiece has its byte tokens
    before the pieces, but never uses one where there is a piece, so a piece goes before them.

    Raises:
        VocabMismatch: If a tokenizer's pieces cannot be told, or too few are shared.
    """
    teacher, student = (ids_by_bytes(one) for one in (teacher_tokenizer, student_tokenizer))
    ends = (end_token_ids(teacher_tokenizer)[0], end_token_ids(student_tokenizer)[0])
    pairs = [(teacher[piece], id_) for piece, id_ in student.items() if piece in teacher]
    # A token that ends turns has no other counterpart, even if it was declared as plain text.
    pairs = [pair for pair in pairs if pair[0] != ends[0] and pair[1] != ends[1]]
    smaller = min(len(teacher), len(student))
    if len(pairs) < LEAST_SHARED * smaller:
        raise VocabMismatch(
            f"teacher and student share {len(pairs):,} pieces, and the smaller of the two "
            f"vocabularies has {smaller:,}; {WAY_OUT}"
        )
    teacher_S, student_S = np.array([*pairs, ends], np.int64).T
    return SharedTokens(teacher_S, student_S)


def check_same_pieces(
    teacher_rows: Sequence[Rendered], student_rows: Sequence[Rendered], shared: SharedTokens
) -> None:
    """Compares how two tokenizers cut the same answers: token by token, the end token too.

    Args:
        teacher_rows: The same records in the same order, each in its own model's template.

    Raises:
        VocabMismatch: If one answer is cut in two ways, or has a piece that is not shared.
    """
    assert len(teacher_rows) == len(student_rows), (len(teacher_rows), len(student_rows))
    counterpart = dict(zip(shared.student_S.tolist(), shared.teacher_S.tolist(), strict=True))
    other = []
    for number, (theirs, ours) in enumerate(zip(teacher_rows, student_rows, strict=True)):
        if [counterpart.get(id_) for id_ in learned(ours)] != learned(theirs):
            other.append(number)
    if other:
        raise VocabMismatch(
            f"{len(other):,} of {len(student_rows):,} answers are cut into other pieces by the "
            f"student's tokenizer than by the teacher's (the first is row {other[0]:,}, counted "
            f"from 0), so its probabilities cannot be passed on token by token; {WAY_OUT}"
        )


def learned(row: Rendered) -> list[int]:
    """The tokens of a row that carry loss."""
    return [id_ for id_, carries in zip(row.ids, row.loss_mask, strict=True) if carries]


def shared_logits(
    logits_NV: Tensor, num_shared: int, columns_S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of the shared tokens, and the probability mass of what is cut off.

    Args:
        logits_NV: V may exceed `num_shared` by padding rows.
        num_shared: Number of tokens in the model's tokenizer.
        columns_S: The tokens of it that are shared; all, in their order, by default.

    Returns:
        [N, S] logits, and the dropped mass [N] in [0, 1], float32.

    Raises:
        VocabMismatch: If the head is narrower than the tokenizer.
    """
    width = logits_NV.shape[-1]
    if width < num_shared:
        raise VocabMismatch(
            f"the model has logits for {width:,} tokens but its tokenizer has {num_shared:,}; "
            f"the folder mixes two models, or tokens were added without resizing the head"
        )
    if columns_S is not None:
        logits_NV = logits_NV.float()
        logits_NS = logits_NV[:, columns_S]
        others_N = logits_NV.index_fill(1, columns_S, -torch.inf).logsumexp(-1)
        return logits_NS, torch.sigmoid(others_N - logits_NS.logsumexp(-1))
    if width == num_shared:
        return logits_NV, logits_NV.new_zeros(logits_NV.shape[0], dtype=torch.float32)
    logits_NV = logits_NV.float()
    head_N = logits_NV[:, :num_shared].logsumexp(-1)
    tail_N = logits_NV[:, num_shared:].logsumexp(-1)
    return logits_NV[:, :num_shared], torch.sigmoid(tail_N - head_N)
