"""What a loss may know of the teacher at the loss positions of one batch.

Shape letters of this file:
    N  positions that carry loss     V  the teacher's vocabulary     H  the teacher's width
    K  entries kept at each position

Each loss with each of these is exact, a bound, an approximation, or refused:

    loss                    logits    TopK             Sampled
    forward KL              exact     lower bound      unbiased, plus the teacher's entropy
    reverse KL, JSD, skew   exact     lower bound      refused
    total variation         exact     lower bound      refused
    adaptive KL             exact     approximation    refused

All but the last are f-divergences: merging outcomes never raises one, so K tokens and one
bucket for all others give a lower bound, equal to the loss at K = V. That bound also has a
gradient for every token outside the K: whatever mass the student puts there counts as mass of
the bucket. It cannot tell those tokens apart, so in the bucket the student keeps its own
ratios; a reverse KL that could would need the teacher at the student's favourite tokens.
Adaptive KL weighs two such bounds, but its weight sees the bucket as one outcome.

A sample tells which tokens were drawn, not how probable each one is to the teacher. That
suffices where the loss is linear in the teacher's probabilities (forward KL), nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from potstill.train.head import Head


class TopK(NamedTuple):
    """The most probable tokens of the softened teacher, softmax(logits / loss.temperature)."""

    ids_NK: Tensor
    """int64, distinct along K; where fewer than K are known, the rest repeat another id."""

    logprobs_NK: Tensor
    """float32, nats; minus infinity where there is no token. All tokens that are not kept
    together have 1 - sum(exp(logprobs))."""


class Sampled(NamedTuple):
    """Tokens drawn from the softened teacher, weighted so that each token's mean is right.

    With n draws from the teacher each weight is 1 / n. With an exact head, its tokens weigh
    their probabilities, and each of n draws from the rest weighs the rest's mass / n.

    Source: Anshumann et al. (2025), "Sparse Logit Sampling: Accelerating Knowledge
        Distillation in LLMs" (random sampling KD). arXiv:2503.16870.
    """

    ids_NK: Tensor
    """int64. May repeat along K; -1 where there is none."""

    weights_NK: Tensor
    """float32, 0 where there is no id. Their sum is 1, their mean over draws the teacher's
    probability of the token."""


class TeacherLogits(NamedTuple):
    """The teacher's logits, not softened; any float dtype."""

    logits_NV: Tensor


class TeacherHidden(NamedTuple):
    """The teacher's last hidden states and its head: logits are made slice by slice."""

    hidden_NH: Tensor
    head: Head


Target = TopK | Sampled | TeacherLogits | TeacherHidden
