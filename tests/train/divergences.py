"""The divergences written out, in float64, for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.config import LossConfig
from potstill.train.head import Head
from potstill.train.rows import BlockLoss, Recipe, block_loss

KINDS = (
    LossConfig(kind="forward_kl", sft_weight=0),
    LossConfig(kind="reverse_kl", sft_weight=0),
    LossConfig(kind="jsd", beta=0.5, sft_weight=0),
    LossConfig(kind="jsd", beta=0.1, sft_weight=0),
    LossConfig(kind="jsd", beta=0.01, sft_weight=0),
    LossConfig(kind="jsd", beta=0.9, sft_weight=0),
    LossConfig(kind="jsd", beta=0.3, normalized=False, sft_weight=0),
    LossConfig(kind="jsd", beta=0, sft_weight=0),
    LossConfig(kind="jsd", beta=1, sft_weight=0),
    LossConfig(kind="skew_forward_kl", alpha=0.1, sft_weight=0),
    LossConfig(kind="skew_reverse_kl", alpha=0.1, sft_weight=0),
    LossConfig(kind="skew_forward_kl", alpha=0.7, sft_weight=0),
    LossConfig(kind="skew_reverse_kl", alpha=0.7, sft_weight=0),
    LossConfig(kind="adaptive_kl", sft_weight=0),
    LossConfig(kind="total_variation", sft_weight=0),
)


def name_of(loss: LossConfig) -> str:
    return f"{loss.kind}-{loss.beta:g}-{loss.alpha:g}-{loss.normalized}"


def at(loss: LossConfig, **changes: object) -> LossConfig:
    """The same loss with other fields."""
    return LossConfig(**{**loss.model_dump(), **changes})


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)


def defined(p: Tensor, q: Tensor, loss: LossConfig) -> Tensor:
    """The divergence of probabilities, without temperature."""
    mixed = loss.beta * p + (1 - loss.beta) * q
    match loss.kind:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jsd" if loss.beta in (0, 1):
            return kl(p, q) if loss.beta == 0 else kl(q, p)
        case "jsd":
            raw = loss.beta * kl(p, mixed) + (1 - loss.beta) * kl(q, mixed)
            return raw / (loss.beta * (1 - loss.beta)) if loss.normalized else raw
        case "skew_forward_kl":
            return kl(p, loss.alpha * p + (1 - loss.alpha) * q)
        case "skew_reverse_kl":
            return kl(q, (1 - loss.alpha) * p + loss.alpha * q)
        case "total_variation":
            return (p - q).abs().sum(-1) / 2
        case "adaptive_kl":
            w = head_share(p, q)
            return w * kl(p, q) + (1 - w) * kl(q, p)
    raise AssertionError(loss.kind)


def head_share(p: Tensor, q: Tensor, head_mass: float = 0.5) -> Tensor:
    """Of the difference between p and q, what lies in the fewest tokens that reach half of p."""
    shares = []
    for of_p, of_q in zip(p, q.detach(), strict=True):
        gap, mass, in_head = (of_p - of_q).abs(), 0.0, 0.0
        for token in of_p.argsort(descending=True).tolist():
            if mass >= head_mass:
                break
            mass, in_head = mass + of_p[token], in_head + gap[token]
        shares.append(in_head / gap.sum())
    return torch.stack(shares)


def softened(student: Tensor, teacher: Tensor, loss: LossConfig) -> Tensor:
    """The definition from logits, with temperature and its factor."""
    p, q = ((x.double() / loss.temperature).softmax(-1) for x in (teacher, student))
    power = 1 if loss.kind == "total_variation" else 2
    return loss.temperature**power * defined(p, q, loss)


def with_labels(student: Tensor, labels: Tensor, divergence_N: Tensor, loss: LossConfig) -> Tensor:
    """Mixed with the cross entropy of the whole head."""
    sft_N = -student.double().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    return loss.sft_weight * sft_N + (1 - loss.sft_weight) * divergence_N


def ours(student, target, loss, labels=None, num_shared=None) -> BlockLoss:
    """The library's loss of rows of logits, with its gradient."""
    labels = torch.zeros(len(student), dtype=torch.int64) if labels is None else labels
    width = student.shape[-1] if num_shared is None else num_shared
    plain = Head(torch.empty(student.shape[-1], 1))
    return block_loss(student, labels, target, Recipe(loss, plain, None, width, True))
