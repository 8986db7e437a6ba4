"""Divergences of the student (q) from the teacher (p), with their slopes.

Shape letters of this file:
    N  positions that carry loss: batch and time flattened, prompt and padding removed
    O  outcomes: all tokens, or K tokens and one bucket for all others
    V  vocabulary

A divergence takes log-probabilities over the same outcomes, [N, O] each, and gives its value
per position, [N] in nats, and its slope: the derivative by log q_o as if each were free, up to
a multiple of q. Softmax takes that multiple away (`dense` below, `train.sparse`), so a gradient
by logits needs no graph. No loss masks, averages or applies a weight: the loop sums over N and
divides once by the loss positions of the whole optimizer step.

Temperature T softens both distributions, softmax(logits / T), and value and gradient are
multiplied by T^2 (total variation: T), which keeps the size of the gradient: the logits' share
in a softened loss shrinks so. It is unrelated to `generation.temperature`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.config import LossConfig

ABSENT = -1e30
"""Log-probability of what cannot happen. Finite, so that 0 * ABSENT is 0."""

_FAR = 30.0
"""Beyond this log-ratio one of two mixed probabilities is below the last bit of the other."""


class Divergence(NamedTuple):
    value_N: Tensor
    slope_NO: Tensor


Measure = Callable[[Tensor, Tensor], Divergence]
"""(log p [N, O], log q [N, O]) to a divergence."""


def forward_kl(log_p_NO: Tensor, log_q_NO: Tensor) -> Divergence:
    """KL(p || q) = sum_o p (log p - log q). Non-negative, 0 where they agree.

    Source: Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
        section 2. arXiv:1503.02531.
    """
    p_NO = log_p_NO.exp()
    return Divergence((p_NO * (log_p_NO - log_q_NO)).sum(-1), p_NO.neg_())


def reverse_kl(log_p_NO: Tensor, log_q_NO: Tensor) -> Divergence:
    """KL(q || p) = sum_o q (log q - log p). Non-negative, 0 where they agree.

    Source: Gu et al. (2024), "MiniLLM: Knowledge Distillation of Large Language Models",
        section 2.1. arXiv:2306.08543.
    """
    terms_NO = log_q_NO.exp() * (log_q_NO - log_p_NO)
    return Divergence(terms_NO.sum(-1), terms_NO)


def jsd(log_p_NO: Tensor, log_q_NO: Tensor, *, beta: float, normalized: bool = True) -> Divergence:
    """Generalised Jensen-Shannon divergence.

        raw          beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q
        normalized   raw / (beta (1 - beta))

    The raw form shrinks to nothing towards both ends, JSD(0.01) is about 0.01 KL, while at the
    ends themselves it is defined as the whole KL: beta = 0 forward, beta = 1 reverse. The
    normalized form tends to those KLs, so that beta can be moved without retuning weights.

    Args:
        beta: In [0, 1].

    Source: Agarwal et al. (2024), "On-Policy Distillation of Language Models: Learning from
        Self-Generated Mistakes", section 3. arXiv:2306.13649. The division is our own.
    """
    if beta in (0.0, 1.0):
        return (forward_kl if beta == 0.0 else reverse_kl)(log_p_NO, log_q_NO)
    gap_NO = log_p_NO - log_q_NO
    m_by_q_NO = _log_mixed(gap_NO, beta)
    m_by_p_NO = _log_mixed(gap_NO.neg_(), 1 - beta)
    share_p, share_q = (1 / (1 - beta), 1 / beta) if normalized else (beta, 1 - beta)
    slope_NO = log_q_NO.exp().mul_(m_by_q_NO).mul_(-share_q)
    of_p_N = log_p_NO.exp().mul_(m_by_p_NO).sum(-1)
    return Divergence(slope_NO.sum(-1) - share_p * of_p_N, slope_NO)


def skew_forward_kl(log_p_NO: Tensor, log_q_NO: Tensor, *, alpha: float) -> Divergence:
    """KL(p || alpha p + (1 - alpha) q). Between 0 and -log alpha; forward KL at alpha = 0.

    Source: Ko et al. (2024), "DistiLLM: Towards Streamlined Distillation for Large Language
        Models", section 3.1. arXiv:2402.03898.
    """
    if alpha == 0.0:
        return forward_kl(log_p_NO, log_q_NO)
    m_by_p_NO = _log_mixed(log_q_NO - log_p_NO, 1 - alpha)
    value_N = -(log_p_NO.exp().mul_(m_by_p_NO)).sum(-1)
    return Divergence(value_N, (log_q_NO - m_by_p_NO).exp_().mul_(alpha - 1))


def skew_reverse_kl(log_p_NO: Tensor, log_q_NO: Tensor, *, alpha: float) -> Divergence:
    """KL(q || (1 - alpha) p + alpha q). Between 0 and -log alpha; reverse KL at alpha = 0.

    Source: Ko et al. (2024), as `skew_forward_kl`; arXiv:2503.07067 for its use beside it.
    """
    if alpha == 0.0:
        return reverse_kl(log_p_NO, log_q_NO)
    m_by_q_NO = _log_mixed(log_p_NO - log_q_NO, 1 - alpha)
    q_NO = log_q_NO.exp()
    value_N = -(q_NO * m_by_q_NO).sum(-1)
    q_by_m_NO = m_by_q_NO.neg().exp_().mul_(-alpha)
    return Divergence(value_N, q_by_m_NO.sub_(m_by_q_NO).mul_(q_NO))


def adaptive_kl(log_p_NO: Tensor, log_q_NO: Tensor, *, head_mass: float = 0.5) -> Divergence:
    """w KL(p || q) + (1 - w) KL(q || p), w by where the two differ.

    The head is the fewest most probable outcomes of the teacher that reach `head_mass`
    together; w is the head's share in sum_o |p - q|: forward KL fits the head first, reverse
    KL the tail. w is a weight and carries no gradient.

    Source: Wu et al. (2025), "Rethinking Kullback-Leibler Divergence in Knowledge Distillation
        for Large Language Models", section 4. arXiv:2404.02657.
    """
    p_NO = log_p_NO.exp()
    gap_NO = log_q_NO.exp().sub_(p_NO).abs_()
    top = p_NO.topk(min(64, p_NO.shape[-1]), dim=-1)
    if (top.values.sum(-1) < head_mass).any():  # rare, and sorting all of V is slow
        top = p_NO.sort(dim=-1, descending=True)
    is_head_NK = top.values.cumsum(-1) - top.values < head_mass
    head_N = (gap_NO.gather(-1, top.indices) * is_head_NK).sum(-1)
    w_N = head_N / gap_NO.sum(-1).clamp_min(torch.finfo(p_NO.dtype).tiny)
    forward, reverse = forward_kl(log_p_NO, log_q_NO), reverse_kl(log_p_NO, log_q_NO)
    value_N = w_N * forward.value_N + (1 - w_N) * reverse.value_N
    slope_NO = forward.slope_NO.mul_(w_N[:, None])
    return Divergence(value_N, slope_NO.add_(reverse.slope_NO.mul_(1 - w_N[:, None])))


def total_variation(log_p_NO: Tensor, log_q_NO: Tensor) -> Divergence:
    """1/2 sum_o |p - q|. In [0, 1]; no unit.

    Source: Wen et al. (2023), "f-Divergence Minimization for Sequence-Level Knowledge
        Distillation", section 3. arXiv:2307.15190.
    """
    q_NO = log_q_NO.exp()
    gap_NO = q_NO - log_p_NO.exp()
    return Divergence(gap_NO.abs().sum(-1) / 2, gap_NO.sign_().mul_(q_NO).div_(2))


def measure_of(loss: LossConfig) -> Measure:
    """The divergence that a config asks for, with its knobs."""
    knobs = {
        "jsd": {"beta": loss.beta, "normalized": loss.normalized},
        "skew_forward_kl": {"alpha": loss.alpha},
        "skew_reverse_kl": {"alpha": loss.alpha},
    }
    found: dict[str, Measure] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": jsd,
        "skew_forward_kl": skew_forward_kl,
        "skew_reverse_kl": skew_reverse_kl,
        "adaptive_kl": adaptive_kl,
        "total_variation": total_variation,
    }
    return functools.partial(found[loss.kind], **knobs.get(loss.kind, {}))


def temperature_factor(kind: str, temperature: float) -> float:
    """What value and gradient are multiplied by: T^2, or T for total variation."""
    return temperature if kind == "total_variation" else temperature**2


class Share(NamedTuple):
    """What a gradient by logits is made of: soft * divergence + hard * q.

    `hard` is the part of cross entropy that has the divergence's softmax in it; its other
    part is -1 at the label.
    """

    soft: float
    hard: float


class RowLoss(NamedTuple):
    """A loss on rows of logits."""

    value_N: Tensor
    label_logprob_N: Tensor
    """log q of the token that was said."""

    gradient_NV: Tensor | None
    """None where no `Share` was asked for."""


def dense(
    logits_NV: Tensor, told_NV: Tensor, labels_N: Tensor, measure: Measure, share: Share | None
) -> RowLoss:
    """A divergence from the teacher's logits; both already divided by the temperature.

    Args:
        told_NV: The teacher's; -inf is a token that cannot come.
    """
    log_q_NV = logits_NV.log_softmax(-1)
    log_p_NV = told_NV.log_softmax(-1).clamp_(min=ABSENT)
    value_N, slope_NV = measure(log_p_NV, log_q_NV)
    label_N = log_q_NV.gather(-1, labels_N[:, None])[:, 0]
    if share is None:
        return RowLoss(value_N, label_N, None)
    if share.soft != 1.0:
        slope_NV.mul_(share.soft)
    pull_N1 = slope_NV.sum(-1, keepdim=True) - share.hard
    return RowLoss(value_N, label_N, slope_NV.addcmul_(log_q_NV.exp_(), pull_N1, value=-1))


def cross_entropy(logits_NV: Tensor, labels_N: Tensor, *, weight: float | None) -> RowLoss:
    """-log q of the token that was said. Nats, non-negative.

    Args:
        weight: Of its gradient; None for no gradient. Of that gradient, -weight at the label
            is not in yet.
    """
    if weight is None:
        label_N = logits_NV.gather(-1, labels_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
        return RowLoss(-label_N, label_N, None)
    log_q_NV = logits_NV.log_softmax(-1)
    label_N = log_q_NV.gather(-1, labels_N[:, None])[:, 0]
    gradient_NV = log_q_NV.exp_()
    return RowLoss(-label_N, label_N, gradient_NV if weight == 1.0 else gradient_NV.mul_(weight))


def _log_mixed(gap_NO: Tensor, share: float) -> Tensor:
    """log((1 - share) + share e^gap), accurate to the last bits for any gap and share in (0, 1).

    With gap = log p - log q this is log m - log q for m = share p + (1 - share) q. A small
    share needs log1p: what is left after a division by it must not be rounding.
    """
    near_NO = gap_NO.clamp(max=_FAR)
    beyond_NO = (gap_NO - near_NO).clamp_(max=-ABSENT)
    if share <= 0.5:
        return near_NO.expm1_().mul_(share).log1p_().add_(beyond_NO)
    return near_NO.exp_().mul_(share).add_(1 - share).log_().add_(beyond_NO)
