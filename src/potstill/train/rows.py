"""The loss of a few rows of logits: softening, divergence, cross entropy, and their gradient.

Shape letters of this file:
    N  positions, a few of a slice     V  vocabulary
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.config import LossConfig
from potstill.train.head import Head
from potstill.train.losses import (
    RowLoss,
    Share,
    cross_entropy,
    dense,
    measure_of,
    temperature_factor,
)
from potstill.train.sparse import sampled, topk
from potstill.train.targets import Sampled, TeacherLogits, TopK


class Recipe(NamedTuple):
    """How logits become a loss."""

    loss: LossConfig
    head: Head
    teacher: Head | None
    """What bends the teacher's raw logits; None where they are logits already."""

    num_shared: int
    """Tokens that both models share; padding rows beyond have no part in the divergence."""

    with_gradient: bool


class BlockLoss(NamedTuple):
    """The loss of a few rows."""

    sft_N: Tensor
    divergence_N: Tensor | None
    gradient_NV: Tensor | None
    """By raw logits."""


def block_loss(
    raw_NV: Tensor, labels_N: Tensor, target: TopK | Sampled | TeacherLogits | None, recipe: Recipe
) -> BlockLoss:
    """Cross entropy and divergence of rows of raw logits, and the gradient of their mixture.

        (1 - w) * divergence + w * cross entropy,    w = sft_weight, or 1 without a teacher

    Args:
        raw_NV: What the matrix product gave, any float dtype; computed in float32 at least.
    """
    head, loss = recipe.head, recipe.loss
    logits_NV = head.bend(_exact(raw_NV))
    weight = 1.0 if target is None else loss.sft_weight
    divergence_N = gradient_NV = sft_N = None
    if target is not None:
        factor = temperature_factor(loss.kind, loss.temperature)
        # At T = 1 and one width both parts have the same softmax: it is computed once.
        is_same = loss.temperature == 1.0 and recipe.num_shared == logits_NV.shape[-1]
        share = None
        if recipe.with_gradient and weight < 1:
            soft = (1 - weight) * factor / loss.temperature
            share = Share(soft, weight if is_same else 0.0)
        found = _divergence(logits_NV, labels_N, target, recipe, share)
        divergence_N, gradient_NV = factor * found.value_N, found.gradient_NV
        if is_same and (gradient_NV is not None or not recipe.with_gradient):
            sft_N = -found.label_logprob_N
    if sft_N is None:
        hard_weight = weight if recipe.with_gradient and weight > 0 else None
        plain = cross_entropy(logits_NV, labels_N, weight=hard_weight)
        sft_N = plain.value_N
        gradient_NV = _sum(gradient_NV, plain.gradient_NV, logits_NV.shape[-1])
    if gradient_NV is not None:
        if weight > 0:
            at_label_N1 = gradient_NV.new_full((len(labels_N), 1), -weight)
            gradient_NV.scatter_add_(-1, labels_N[:, None], at_label_N1)
        gradient_NV = head.unbend_(gradient_NV, logits_NV)
    return BlockLoss(sft_N, divergence_N, gradient_NV)


def _divergence(
    logits_NV: Tensor,
    labels_N: Tensor,
    target: TopK | Sampled | TeacherLogits,
    recipe: Recipe,
    share: Share | None,
) -> RowLoss:
    """The divergence of a few rows over what both models share, softened."""
    measure, temperature = measure_of(recipe.loss), recipe.loss.temperature
    own_NV = _softened(logits_NV[:, : recipe.num_shared], temperature)
    if isinstance(target, TopK):
        return topk(own_NV, target, labels_N, measure, share)
    if isinstance(target, Sampled):
        return sampled(own_NV, target, labels_N, share)
    teacher = recipe.teacher
    told_NV = _exact(target.logits_NV[:, : recipe.num_shared])
    told_NV = _softened(told_NV if teacher is None else teacher.bend(told_NV), temperature)
    return dense(own_NV, told_NV, labels_N, measure, share)


def _softened(logits_NV: Tensor, temperature: float) -> Tensor:
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def _exact(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(soft_NV: Tensor | None, hard_NV: Tensor | None, width: int) -> Tensor | None:
    """The sum of what is there; padding rows have no part in `soft_NV`."""
    if soft_NV is None:
        return hard_NV
    if hard_NV is None:
        return F.pad(soft_NV, (0, width - soft_NV.shape[-1]))
    hard_NV[:, : soft_NV.shape[-1]] += soft_NV
    return hard_NV
