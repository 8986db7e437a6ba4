"""What is learnt between the layers: distances of hidden states, and attention relations.

Shape letters of this file:
    B  rows        T  places of a row, padding included     R  relation heads
    N  places that are compared, over all rows              H  hidden width
    L  tokens of one document                               D  width of queries, keys or values

A distance returns one value per place, [N] or [L], float32. Nothing is averaged or weighted
here but what the definition of the distance averages; `Places.weights` says what a place counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import ConfigError

ABSENT = -1e30
"""Logit of a token that takes no part. Finite, because 0 * (inf - inf) would not be 0."""

SMALLEST_HEAD = 16
"""Numbers that a relation head keeps at least, as in MiniLMv2's own students."""


def hidden_cosine(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """1 - cos(student, teacher), per place.

    Args:
        teacher_NH: Gets no gradient.

    Returns:
        [N], float32, in [0, 2]; 0 where both point the same way.
    """
    return 1.0 - F.cosine_similarity(student_NH.float(), teacher_NH.detach().float(), dim=-1)


def hidden_mse(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """Mean over H of (student - teacher)^2, per place.

    Args:
        teacher_NH: Gets no gradient.

    Returns:
        [N], float32, not negative, in squared units of the teacher's hidden states.
    """
    return (student_NH.float() - teacher_NH.detach().float()).square().mean(-1)


def relation_kl(
    student_LD: Tensor, teacher_LD: Tensor, *, heads: int, causal: bool = True
) -> Tensor:
    """KL(teacher || student) between relations among the tokens of one document, per token.

        relation of token t in head r:  softmax over s of  x_tr . x_sr / sqrt(D / R)

    where x are the queries, or the keys, or the values of all attention heads side by side, cut
    anew into R relation heads; so neither widths nor head counts of the models need to agree,
    and no attention matrix is asked of the model (flash attention gives none).

    Args:
        student_LD, teacher_LD: Of widths that `heads` divides; the teacher's gets no gradient.
        causal: A token is related to itself and those before it, as in a decoder's attention.
            MiniLMv2's encoders relate all tokens: False.

    Returns:
        [L], float32, nats, not negative: the mean over relation heads.

    Raises:
        ValueError: If the lengths differ or heads does not divide both widths.

    Source:
        Wang et al. (2021), "MiniLMv2: Multi-Head Self-Attention Relation Distillation for
        Compressing Pretrained Transformers", section 3.1. arXiv:2012.15828.
    """
    if len(student_LD) != len(teacher_LD):
        raise ValueError(f"{len(student_LD)} and {len(teacher_LD)} tokens cannot be compared")
    log_q_RLL = _log_relations(student_LD, heads, causal)
    log_p_RLL = _log_relations(teacher_LD.detach(), heads, causal)
    return (log_p_RLL.exp() * (log_p_RLL - log_q_RLL)).sum(-1).mean(0)


def _log_relations(x_LD: Tensor, heads: int, causal: bool) -> Tensor:
    length, width = x_LD.shape
    if width % heads:
        raise ValueError(f"{heads} relation heads do not divide a width of {width}")
    x_RLd = x_LD.float().unflatten(-1, (heads, -1)).transpose(0, 1)
    logits_RLL = x_RLd @ x_RLd.transpose(1, 2) / math.sqrt(width // heads)
    if causal:
        is_later_LL = torch.ones(length, length, dtype=torch.bool, device=x_LD.device).triu(1)
        logits_RLL = logits_RLL.masked_fill(is_later_LL, ABSENT)
    return logits_RLL.log_softmax(-1)


def relation_heads(widths: Sequence[int], wanted: int | None) -> int:
    """How many relation heads vectors of these widths are cut into.

    Raises:
        ConfigError: If the number that is wanted does not divide all of them.
    """
    common = math.gcd(*widths)
    if wanted is None:
        return max(n for n in range(1, common + 1) if common % n == 0 and _is_wide(common // n, n))
    if common % wanted:
        raise ConfigError(
            f"loss.attention.heads: {wanted} does not divide the widths of queries, keys and "
            f"values of teacher and student ({', '.join(map(str, sorted(set(widths))))}); a "
            f"divisor of {common} does"
        )
    return wanted


def _is_wide(width: int, heads: int) -> bool:
    return width >= SMALLEST_HEAD or heads == 1


def layer_pairs(
    layers: Literal["uniform", "last"] | Sequence[tuple[int, int]],
    num_student: int,
    num_teacher: int,
    *,
    key: str = "layers",
) -> list[tuple[int, int]]:
    """Which layer of the student learns from which of the teacher, both counted from 0.

    `uniform` gives layer i of S the layer ceil((i + 1) T / S) of T, counted from 1: the last
    learns from the last, and each has the same number of the teacher's layers behind it.

    Raises:
        ConfigError: If a pair names a layer that does not exist, or a layer of the student twice.
    """
    if layers == "last":
        return [(num_student - 1, num_teacher - 1)]
    if layers == "uniform":
        return [(i, -(-(i + 1) * num_teacher // num_student) - 1) for i in range(num_student)]
    pairs = sorted((student, teacher) for student, teacher in layers)
    for (student, teacher), before in zip(pairs, [None, *pairs], strict=False):
        if student >= num_student or teacher >= num_teacher:
            raise ConfigError(
                f"{key}: [{student}, {teacher}] names a layer that does not exist; the student "
                f"has layers 0 to {num_student - 1}, the teacher 0 to {num_teacher - 1}"
            )
        if before and before[0] == student:
            raise ConfigError(f"{key}: layer {student} of the student stands in two pairs")
    return pairs


class Places(NamedTuple):
    """The places of a batch that can be compared, and the documents they belong to."""

    is_label_BT: Tensor
    """bool; where the next token is to be learnt."""

    is_real_BT: Tensor
    """bool; a token, up to the last one of its document that predicts something learnt."""

    document_BT: Tensor
    """int64, 0, 1, 2 ... over the whole batch. A row is one, unless rows are packed."""

    def weights(self, tokens: Literal["all", "answer"]) -> Tensor:
        """What each place counts, [B, T], float32; all of a document sum to its loss tokens.

        With `answer` every loss position counts 1. With `all` a document's loss tokens are
        spread evenly over its real places, so that the sum over a step, divided by the step's
        loss tokens, does not depend on padding, packing, or how the step is cut up.
        """
        if tokens == "answer":
            return self.is_label_BT.float()
        num_labels_D = self._count(self.is_label_BT)
        num_real_D = self._count(self.is_real_BT)
        share_D = num_labels_D / num_real_D.clamp_min(1)
        return share_D[self.document_BT] * self.is_real_BT

    def documents(self) -> list[Tensor]:
        """Of each document that has any: its real places, [L], counted through the batch."""
        flat = self.is_real_BT.flatten().nonzero().squeeze(-1)
        order = self.document_BT.flatten()[flat]
        found = [flat[order == document] for document in order.unique().tolist()]
        return found

    def _count(self, marks_BT: Tensor) -> Tensor:
        documents_N = self.document_BT.flatten()
        counts_D = torch.zeros(int(documents_N.max()) + 1, device=documents_N.device)
        return counts_D.index_add(0, documents_N, marks_BT.flatten().float())


def find_places(
    is_label_BT: Tensor, *, attention_BT: Tensor | None = None, documents_BT: Tensor | None = None
) -> Places:
    """Which places of a batch are tokens, and which belong together.

    Args:
        is_label_BT: bool. Places behind the last label of a document count as padding: what
            stands there has no part in any loss.
        attention_BT: 0 on padding; None where all of it stands on the right.
        documents_BT: int64, equal where places of a row belong together; None where every row
            is one document.
    """
    num_rows, width = is_label_BT.shape
    device = is_label_BT.device
    if documents_BT is None:
        document_BT = torch.arange(num_rows, device=device)[:, None].expand(num_rows, width)
    else:
        span = int(documents_BT.max() - documents_BT.min()) + 1
        row_B1 = torch.arange(num_rows, device=device)[:, None]
        _, document_BT = (documents_BT + span * row_B1).unique(return_inverse=True)
    place_BT = torch.arange(1, width + 1, device=device).expand(num_rows, width)
    last_D = torch.zeros(int(document_BT.max()) + 1, dtype=torch.int64, device=device)
    last_D = last_D.scatter_reduce(
        0, document_BT.flatten(), (place_BT * is_label_BT).flatten(), "amax"
    )
    is_real_BT = place_BT <= last_D[document_BT]
    if attention_BT is not None:
        is_real_BT = is_real_BT & attention_BT.bool()
    return Places(is_label_BT, is_real_BT, document_BT)
