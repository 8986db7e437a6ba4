"""Losses against a teacher of whom only some probabilities were kept.

Shape letters of this file:
    N  positions that carry loss     V  vocabulary     K  entries kept at each position
    O  outcomes: the K tokens and, where K < V, one bucket for all others

`train.targets` says for each loss what comes of it: exact, a bound, or refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import ConfigError
from potstill.train.losses import ABSENT, Measure, RowLoss, Share
from potstill.train.targets import Sampled, TopK

SMALLEST_TAIL = 2.0**-24
"""Less than this cannot be seen in 1 - sum(p) with p in float32. A bucket is never emptier:
reverse KL would charge an infinite price for what is only a rounding."""


def topk(
    logits_NV: Tensor, target: TopK, labels_N: Tensor, measure: Measure, share: Share | None
) -> RowLoss:
    """A divergence over K tokens and one bucket for all others.

        sum over outcomes of the divergence's terms,   p' = 1 - sum_k p_k,   q' = 1 - sum_k q_k

    The stored p_k are those of the softened teacher: the temperature was applied at capture
    and is not applied again. A merged tail cannot be softened later, so training at another
    temperature than the capture's is refused (`targets.store`).

    Args:
        logits_NV: The student's, already divided by the temperature.
        target: Ids below V; distinct along K but for places without a token.
    """
    ids_NK, K = target.ids_NK, target.ids_NK.shape[-1]
    is_known_NK = target.logprobs_NK > -torch.inf
    kept_NK = logits_NV.gather(-1, ids_NK).masked_fill(~is_known_NK, ABSENT)
    label_N1 = logits_NV.gather(-1, labels_N[:, None])
    log_p_NO = target.logprobs_NK.to(logits_NV.dtype)
    lse_N1 = kept_NK.logsumexp(-1, keepdim=True)
    log_q_NO, tail_NV, mass_N1 = kept_NK, None, None
    if K < logits_NV.shape[-1] or not is_known_NK.all():
        # 1 - sum(q_k) would be rounding noise for a confident student; the tail's own
        # log-sum-exp is exact, and its terms are the tail's gradient but for a factor.
        tail_NV = logits_NV.scatter(-1, ids_NK, ABSENT)
        largest_N1 = tail_NV.amax(-1, keepdim=True)
        mass_N1 = tail_NV.sub_(largest_N1).exp_().sum(-1, keepdim=True)
        tail_lse_N1 = largest_N1 + mass_N1.log()
        lse_N1 = torch.logaddexp(lse_N1, tail_lse_N1)
        log_q_NO = torch.cat([kept_NK, tail_lse_N1], -1)
        rest_N1 = 1 - target.logprobs_NK.double().exp().sum(-1, keepdim=True)
        rest_N1 = rest_N1.clamp_min(SMALLEST_TAIL).log().to(log_p_NO.dtype)
        log_p_NO = torch.cat([log_p_NO, rest_N1], -1)
    log_q_NO = log_q_NO - lse_N1
    value_N, slope_NO = measure(log_p_NO.clamp(min=ABSENT), log_q_NO)
    label_N = (label_N1 - lse_N1)[:, 0]
    if share is None:
        return RowLoss(value_N, label_N, None)
    slope_NO = slope_NO * share.soft
    slope_NO = slope_NO - log_q_NO.exp() * (slope_NO.sum(-1, keepdim=True) - share.hard)
    if tail_NV is None:
        gradient_NV = torch.zeros_like(logits_NV)
    else:  # within the bucket, each token by its share in it
        gradient_NV = tail_NV.mul_(slope_NO[:, K:] / mass_N1)
    return RowLoss(value_N, label_N, gradient_NV.scatter_add_(-1, ids_NK, slope_NO[:, :K]))


def sampled(logits_NV: Tensor, target: Sampled, labels_N: Tensor, share: Share | None) -> RowLoss:
    """Cross entropy with tokens that the teacher drew: sum_k w_k (-log q_k).

    Its mean over draws is KL(p || q) + H(p): the gradient is unbiased for forward KL's, and the
    value lies above it by the teacher's entropy, which the drawn tokens do not tell.

    Args:
        logits_NV: The student's, already divided by the temperature.

    Source: Anshumann et al. (2025), arXiv:2503.16870.
    """
    ids_NK = target.ids_NK.clamp_min(0)
    weights_NK = target.weights_NK.to(logits_NV.dtype) * (target.ids_NK >= 0)
    log_q_NV = logits_NV.log_softmax(-1)
    value_N = -(weights_NK * log_q_NV.gather(-1, ids_NK)).sum(-1)
    label_N = log_q_NV.gather(-1, labels_N[:, None])[:, 0]
    if share is None:
        return RowLoss(value_N, label_N, None)
    pull_N1 = weights_NK.sum(-1, keepdim=True) * share.soft + share.hard
    gradient_NV = log_q_NV.exp_().mul_(pull_N1)
    return RowLoss(value_N, label_N, gradient_NV.scatter_add_(-1, ids_NK, -share.soft * weights_NK))


def refuse_sampled(kind: str) -> None:
    """Sampled targets serve forward KL alone.

    Raises:
        ConfigError: For any other divergence.
    """
    if kind not in ("sft", "forward_kl"):
        raise ConfigError(
            f"loss.kind: {kind} needs the probability of each token, and sampled targets only "
            f"tell which tokens were drawn; use loss.kind: forward_kl, or loss.targets.kind: topk"
        )
