"""Training losses on logits.

Shape letters of this file:
    N  positions that carry loss: batch and time flattened, prompt and padding removed
    V  vocabulary
    K  teacher tokens kept per position (top-k targets)

A loss takes student logits [N, V] and returns one value per position: [N], float32, nats.
No loss masks, averages or applies a weight. `train.loop` does each of those once for all of
them: it sums over N and divides by the number of loss positions in the whole optimizer
step, so that gradient accumulation does not change the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1e30
"""Logit of a token that takes no part. Finite, so that a row of nothing else has a gradient."""


def cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """-log q of the token that was said, per position.

    Args:
        student_NV: Student logits. Any float dtype; computed in float32.
        labels_N: Token ids, int64.

    Returns:
        [N], float32, nats. Non-negative.
    """
    return F.cross_entropy(student_NV.float(), labels_N, reduction="none")


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) between softened distributions, per position.

        T^2 * sum_v p_v (log p_v - log q_v)    p = softmax(teacher / T)
                                               q = softmax(student / T)

    Gradients of softened targets shrink as 1 / T^2. The factor T^2 undoes that, so the
    weight of this term needs no retuning when the temperature changes.

    Args:
        student_NV: Student logits. Any float dtype; computed in float32.
        teacher_NV: Teacher logits over the same vocabulary. Gets no gradient.
        temperature: T > 0; 1.0 leaves both distributions as they are. Unrelated to the
            temperature the teacher sampled at (`generation.temperature`).

    Returns:
        [N], float32, nats. Non-negative; 0 where the distributions agree.

    Raises:
        ValueError: If the shapes differ or temperature is not positive.

    Source:
        Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network",
        section 2. arXiv:1503.02531.
    """
    if student_NV.shape != teacher_NV.shape:
        raise ValueError(
            f"student logits {tuple(student_NV.shape)} and teacher logits "
            f"{tuple(teacher_NV.shape)} must have the same shape [N, V]; if only V differs, "
            f"the two models do not share a vocabulary and need text distillation "
            f"(loss.kind: sft)"
        )
    _check_temperature(temperature)
    log_q_NV = F.log_softmax(student_NV.float() / temperature, dim=-1)
    log_p_NV = F.log_softmax(teacher_NV.detach().float() / temperature, dim=-1)
    kl_N = F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(-1)
    return temperature**2 * kl_N


def forward_kl_topk(
    student_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """T^2 * KL(teacher || student) over K kept tokens and one bucket for all others.

        T^2 * [ sum_k p_k (log p_k - log q_k) + p' (log p' - log q') ]
        q = softmax(student / T),   p' = 1 - sum_k p_k,   q' = sum of q outside the K

    The stored p_k are those of the *softened* teacher, softmax(teacher / T): T was applied
    when they were captured and is not applied to them again. Here T softens the student and
    scales the result. Passing another T than the capture's would compare two different
    softenings; `targets.store` refuses that, because a merged tail cannot be softened later.

    Merging outcomes can only lower a KL divergence: this is a lower bound of `forward_kl`
    at the same T, and equal to it at K = V.

    Args:
        student_NV: Student logits. Any float dtype; computed in float32.
        ids_NK: Teacher token ids, int64, distinct along K.
        logprobs_NK: Their log-probabilities under the softened teacher, nats. Minus infinity
            where fewer than K are known: the id repeats another one and counts no second time.
        temperature: T > 0, the same as at capture.

    Returns:
        [N], float32, nats. Non-negative up to rounding.
    """
    _check_temperature(temperature)
    z_NV = student_NV.float() / temperature if temperature != 1.0 else student_NV.float()
    is_known_NK = logprobs_NK > -torch.inf
    z_NK = z_NV.gather(-1, ids_NK).masked_fill(~is_known_NK, ABSENT)
    # 1 - sum(q_k) would be rounding noise for a confident student; the tail's own
    # log-sum-exp is exact, and then log(sum of all) needs no second pass over V.
    tail_lse_N = z_NV.scatter(-1, ids_NK, ABSENT).logsumexp(-1)
    lse_N = torch.logaddexp(z_NK.logsumexp(-1), tail_lse_N)
    log_p_NK = logprobs_NK.detach().float()
    p_NK = log_p_NK.exp()
    log_p_NK = log_p_NK.masked_fill(~is_known_NK, 0.0)  # 0 * -inf would be no number
    kl_N = (p_NK * (log_p_NK - (z_NK - lse_N[:, None]))).sum(-1)
    if ids_NK.shape[-1] < student_NV.shape[-1]:
        tail_p_N = (1 - p_NK.sum(-1)).clamp_min(0)
        kl_N = kl_N + torch.special.xlogy(tail_p_N, tail_p_N) - tail_p_N * (tail_lse_N - lse_N)
    return temperature**2 * kl_N


def soft_cross_entropy(
    student_NV: Tensor, ids_NK: Tensor, weights_NK: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """T^2 * -sum_k w_k log q_k over tokens drawn from the teacher, q = softmax(student / T).

    Where the mean of the weights is the teacher's softened probability, the mean of this is
    forward KL plus the teacher's entropy, times T^2: the gradient is unbiased.

    Args:
        student_NV: Student logits. Any float dtype; computed in float32.
        ids_NK: Token ids, int64; -1 where there is none.
        weights_NK: Their weights, 0 where there is no id; they sum to 1.
        temperature: T > 0, the same as at capture.

    Returns:
        [N], float32, nats. Non-negative.

    Source:
        Random sampling knowledge distillation, arXiv:2503.16870.
    """
    _check_temperature(temperature)
    log_q_NV = F.log_softmax(student_NV.float() / temperature, dim=-1)
    log_q_NK = log_q_NV.gather(-1, ids_NK.clamp_min(0))
    return -(temperature**2) * (weights_NK * log_q_NK).sum(-1)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
