"""Head and loss in one, without logits for all positions at once.

Shape letters of this file:
    N  positions that carry loss     H  hidden width     V  rows of the student's head
    R  rank of a LoRA update on the head

Logits [N, V] are most of what a small model's training holds in memory. Here they exist for a
slice of positions at a time: head, loss, and at once the loss's gradient by logits, from which
follow the gradients of hidden states and head. The slice's buffer is then used again. What
lives until the backward pass are those gradients; the backward pass multiplies them by a number.

The gradient of the head is summed over slices in float32 whatever the number format of the
matrix products: in bf16 a sum of many slices would lose its last bits.

Within a slice, everything but the matrix products runs on a few rows at a time, so that their
dozen passes read a cache and not memory.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.config import LossConfig
from potstill.errors import VocabMismatch
from potstill.train.head import Head
from potstill.train.rows import Recipe, block_loss
from potstill.train.sparse import refuse_sampled
from potstill.train.targets import Sampled, Target, TeacherHidden, TeacherLogits

SLICE_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
"""Memory for the logits of a slice, the teacher's included. Wider slices make better matrix
products and fewer passes over the head's gradient."""

BLOCKS = {"cpu": 16, "cuda": 4}
"""Blocks of rows that a slice is worked on in. On a CPU a few of them fit its cache."""


class HeadLoss(NamedTuple):
    """The loss of all positions, and what it is made of."""

    total: Tensor
    """Sum over positions of sft_weight * sft + (1 - sft_weight) * divergence; nats. The only
    one that carries a gradient: positions cannot be weighted afterwards."""

    sft_N: Tensor
    """Cross entropy with the token that was said, float32."""

    divergence_N: Tensor | None
    """The divergence with its temperature factor, float32; None without a teacher."""


def head_loss(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    loss: LossConfig,
    target: Target | None = None,
    *,
    num_shared: int | None = None,
    slice_bytes: int | None = None,
) -> HeadLoss:
    """The training loss of hidden states, and its gradients for the backward pass.

    Args:
        hidden_NH: Last hidden states at the positions that predict `labels_N`.
        labels_N: The tokens that were said, int64.
        loss: Kind, knobs, temperature, and the share of cross entropy.
        target: What is known of the teacher; None: cross entropy alone.
        num_shared: Tokens of the tokenizer that both models share; padding rows of either
            head beyond them take no part in the divergence. The whole head by default.
        slice_bytes: Memory for the logits of a slice; SLICE_BYTES of the device by default.

    Raises:
        VocabMismatch: If a head or the teacher's logits are narrower than `num_shared`.
        ConfigError: If the divergence cannot be had from such targets.
    """
    assert target is None or loss.kind != "sft", "cross entropy alone has no use for a teacher"
    shared = _shared_width(head, target, num_shared)
    if isinstance(target, Sampled):
        refuse_sampled(loss.kind)
    inner_NR = up_VR = None
    if head.low_rank is not None:
        inner_NR, up_VR = head.low_rank.inner(hidden_NH), head.low_rank.up_VR
    tensors = (hidden_NH, head.weight_VH, head.bias_V, inner_NR, up_VR)
    has_graph = torch.is_grad_enabled()
    wanted = tuple(has_graph and x is not None and x.requires_grad for x in tensors)
    device = hidden_NH.device.type
    slice_bytes = slice_bytes or SLICE_BYTES.get(device, SLICE_BYTES["cuda"])
    dtype = head.weight_VH.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    work = _Work(head, labels_N, loss, target, shared, dtype, wanted, slice_bytes)
    found = _Fused.apply(work, *tensors)
    return HeadLoss(found[0], found[1], None if target is None else found[2])


class _Work(NamedTuple):
    """All that is no input of the graph."""

    head: Head
    labels_N: Tensor
    loss: LossConfig
    target: Target | None
    num_shared: int
    dtype: torch.dtype
    """Of matrix products."""

    wanted: tuple[bool, ...]
    """Which of hidden states, weights, bias, inner and up get a gradient."""

    slice_bytes: int


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, hidden_NH: Tensor, *parameters: Tensor | None) -> Any:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            slices = _Slices(work, hidden_NH, *parameters)
            total, sft_N, divergence_N = slices.run()
        ctx.gradients = slices.gradients
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden_NH, *parameters)]
        ctx.mark_non_differentiable(sft_N, divergence_N)
        return total, sft_N, divergence_N

    @staticmethod
    def backward(ctx: Any, by_total: Tensor, *_: Any) -> Any:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradient of a fused loss can be taken once: it is scaled in place; "
                "compute the loss again"
            )
        scaled = [
            None if gradient is None else gradient.mul_(by_total).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return None, *scaled


class _Slices:
    """One pass over all positions."""

    def __init__(
        self,
        work: _Work,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        inner_NR: Tensor | None,
        up_VR: Tensor | None,
    ):
        self.work, self.hidden_NH, self.inner_NR = work, hidden_NH, inner_NR
        self.weight_VH = weight_VH.to(work.dtype)
        self.bias_V = None if bias_V is None else bias_V.to(work.dtype)
        self.up_VR = None if up_VR is None else up_VR.to(work.dtype)
        self.exact = torch.promote_types(work.dtype, torch.float32)
        tensors = (hidden_NH, weight_VH, bias_V, inner_NR, up_VR)
        self.gradients = [
            # Positions are written once, in the format of the products; parameters are sums.
            x.new_zeros(x.shape, dtype=work.dtype if place in (0, 3) else self.exact)
            if is_wanted
            else None
            for place, (x, is_wanted) in enumerate(zip(tensors, work.wanted, strict=True))
        ]
        N, row_bytes = len(hidden_NH), len(weight_VH) * work.dtype.itemsize
        if isinstance(work.target, TeacherHidden):
            teacher_VH = work.target.head.weight_VH
            row_bytes += len(teacher_VH) * teacher_VH.dtype.itemsize
        most = max(1, min(N, work.slice_bytes // row_bytes))
        self.size = math.ceil(N / math.ceil(N / most)) if N else 1
        blocks = BLOCKS.get(hidden_NH.device.type, BLOCKS["cuda"])
        self.block = max(1, work.slice_bytes // (blocks * len(weight_VH) * self.exact.itemsize))

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, cross entropy [N] and divergence [N]; fills `gradients`."""
        work, N = self.work, len(self.hidden_NH)
        weight = 1.0 if work.target is None else work.loss.sft_weight
        sft_N = self.hidden_NH.new_zeros(N, dtype=self.exact)
        divergence_N = torch.zeros_like(sft_N)
        raw = _Buffer(self.size, self.weight_VH)
        teacher = work.target.head if isinstance(work.target, TeacherHidden) else None
        told = None if teacher is None else _Buffer(self.size, teacher.weight_VH)
        recipe = Recipe(work.loss, work.head, teacher, work.num_shared, any(work.wanted))
        for start in range(0, N, self.size):
            rows = slice(start, min(N, start + self.size))
            hidden_NH = self.hidden_NH[rows].to(work.dtype)
            inner_NR = None if self.inner_NR is None else self.inner_NR[rows].to(work.dtype)
            raw_NV = raw.product(hidden_NH, self.bias_V, inner_NR, self.up_VR)
            target = _rows_of(work.target, rows)
            if told is not None:
                target = TeacherLogits(_raw_logits(told, target))
            for first in range(0, len(raw_NV), self.block):
                part = slice(first, min(len(raw_NV), first + self.block))
                where = slice(start + part.start, start + part.stop)
                found = block_loss(
                    raw_NV[part], work.labels_N[where], _rows_of(target, part), recipe
                )
                sft_N[where] = found.sft_N
                if found.divergence_N is not None:
                    divergence_N[where] = found.divergence_N
                if found.gradient_NV is not None:
                    raw_NV[part] = found.gradient_NV
            self._spread(raw_NV, rows, hidden_NH, inner_NR)
        total = (weight * sft_N + (1 - weight) * divergence_N).sum()
        return total, sft_N, divergence_N

    def _spread(
        self, gradient_NV: Tensor, rows: slice, hidden_NH: Tensor, inner_NR: Tensor | None
    ) -> None:
        """From the gradient by raw logits to those of all that made them."""
        of_hidden, of_weight, of_bias, of_inner, of_up = self.gradients
        if of_hidden is not None:
            torch.mm(gradient_NV, self.weight_VH, out=of_hidden[rows])
        if of_weight is not None:
            _add_product(of_weight, gradient_NV, hidden_NH)
        if of_bias is not None:
            of_bias.add_(gradient_NV.sum(0, dtype=self.exact))
        if of_inner is not None:
            torch.mm(gradient_NV, self.up_VR, out=of_inner[rows])
        if of_up is not None:
            _add_product(of_up, gradient_NV, inner_NR)


def _add_product(sum_VH: Tensor, left_NV: Tensor, right_NH: Tensor) -> None:
    """sum += left^T right, the sum in its own number format."""
    if sum_VH.dtype == left_NV.dtype:
        sum_VH.addmm_(left_NV.T, right_NH)
        return
    for part, columns_NV in zip(sum_VH.split(8192), left_NV.split(8192, dim=1), strict=True):
        part.add_(torch.mm(columns_NV.T, right_NH))


class _Buffer:
    """Room for the raw logits of one slice, in the number format of its weights."""

    def __init__(self, size: int, weight_VH: Tensor):
        self.weight_VH = weight_VH
        self.room_NV = weight_VH.new_empty((size, len(weight_VH)))

    def product(
        self,
        hidden_NH: Tensor,
        bias_V: Tensor | None,
        inner_NR: Tensor | None,
        up_VR: Tensor | None,
    ) -> Tensor:
        """hidden W^T + bias + inner up^T; valid until the next call."""
        raw_NV = self.room_NV[: len(hidden_NH)]
        if bias_V is None:
            torch.mm(hidden_NH, self.weight_VH.T, out=raw_NV)
        else:  # one rounding less than adding the bias afterwards
            torch.addmm(bias_V, hidden_NH, self.weight_VH.T, out=raw_NV)
        if inner_NR is not None:
            raw_NV.addmm_(inner_NR, up_VR.T)
        return raw_NV


def _raw_logits(room: _Buffer, target: TeacherHidden) -> Tensor:
    """The teacher's raw logits of a slice."""
    head, hidden_NH = target.head, target.hidden_NH.to(target.head.weight_VH.dtype)
    if head.low_rank is None:
        return room.product(hidden_NH, head.bias_V, None, None)
    inner_NR = head.low_rank.inner(hidden_NH)
    return room.product(hidden_NH, head.bias_V, inner_NR, head.low_rank.up_VR)


def _rows_of(target: Target | None, rows: slice) -> Target | None:
    """The same target for some of its positions."""
    if target is None:
        return None
    if isinstance(target, TeacherHidden):
        return target._replace(hidden_NH=target.hidden_NH[rows])
    return type(target)(*(x[rows] for x in target))


def _shared_width(head: Head, target: Target | None, num_shared: int | None) -> int:
    """How many rows of the heads take part in the divergence."""
    widths = {"student": len(head.weight_VH)}
    if isinstance(target, TeacherHidden):
        widths["teacher"] = len(target.head.weight_VH)
    elif isinstance(target, TeacherLogits):
        widths["teacher"] = target.logits_NV.shape[-1]
    if num_shared is None and len(set(widths.values())) > 1:
        raise VocabMismatch(
            f"the student has logits for {widths['student']:,} tokens and the teacher for "
            f"{widths['teacher']:,}; with one tokenizer, say how many tokens it has "
            f"(num_shared); with two, learn from the teacher's text (loss.kind: sft)"
        )
    wanted = widths["student"] if num_shared is None else num_shared
    for who, width in widths.items():
        if width < wanted:
            raise VocabMismatch(
                f"the {who} has logits for {width:,} tokens but the tokenizer has {wanted:,}; "
                f"the folder mixes two models, or tokens were added without resizing the head"
            )
    return wanted
