"""From a batch to summed losses: backbone, head at the loss positions only, divergence.

Shape letters of this file:
    B  rows       T  tokens of a row, padding included       H  hidden width
    N  loss positions of the batch, row by row               V  vocabulary
    K  teacher tokens kept per position

The loss mask belongs to the *label*: where it is 1, the token itself is to be learnt, and the
hidden state one position earlier predicts it. All of it happens inside one module's forward,
so that a wrapper for several devices sees the whole computation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from potstill.config import LossConfig
from potstill.errors import TrainError
from potstill.models.longrope import hidden_states
from potstill.targets.align import shared_logits
from potstill.train.losses import cross_entropy, forward_kl_topk, soft_cross_entropy


class LossSums(NamedTuple):
    """Sums over the loss positions of one batch, nats."""

    loss: Tensor
    """What is minimised; carries the gradient."""

    sft: Tensor
    forward_kl: Tensor | None
    """None where it is not known: from text alone, and from draws."""


class TeacherTargets(NamedTuple):
    """The teacher's probabilities at the loss positions of one batch."""

    ids_NK: Tensor
    values_NK: Tensor
    """Log-probabilities, or for `sampled` weights."""

    num_shared: int
    """Tokens of the shared tokenizer; the student's padding rows beyond are cut off."""

    kind: str = "topk"


class Objective(nn.Module):
    """The training loss of one model."""

    def __init__(self, model: nn.Module, loss: LossConfig):
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(
        self,
        ids_BT: Tensor,
        loss_mask_BT: Tensor,
        attention_BT: Tensor | None,
        targets: TeacherTargets | None,
    ) -> LossSums:
        """Summed losses of one batch.

        Args:
            attention_BT: None where all padding stands on the right: causal attention
                never looks there, and attention without a mask is a tenth faster.
        """
        # The last token predicts nothing: it is never an input.
        is_label_BT = loss_mask_BT[:, 1:].bool()
        hidden_BTH = hidden_states(
            self.model,
            ids_BT[:, :-1],
            is_label_BT,
            None if attention_BT is None else attention_BT[:, :-1],
        )
        logits_NV = head_logits(self.model, hidden_BTH[is_label_BT])
        labels_N = ids_BT[:, 1:][is_label_BT]
        weight = 1.0 if targets is None else self.loss.sft_weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            sft = cross_entropy(logits_NV, labels_N).sum()
        if targets is None:
            return LossSums(sft, sft.detach(), None)
        shared_NV, _ = shared_logits(logits_NV, targets.num_shared)
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight < 1):
            is_sampled = targets.kind == "sampled"
            divergence = soft_cross_entropy if is_sampled else forward_kl_topk
            soft = divergence(
                shared_NV, targets.ids_NK, targets.values_NK, temperature=self.loss.temperature
            ).sum()
        total = weight * sft + (1 - weight) * soft
        return LossSums(total, sft.detach(), None if is_sampled else soft.detach())


def head_logits(model: nn.Module, hidden_NH: Tensor) -> Tensor:
    """Logits [N, V] of hidden states, with what some families do after the head:

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma bends
    large values with `final_logit_softcapping`. `check_head` finds families that do more.
    """
    config = model.config
    logits_NV = model.get_output_embeddings()(hidden_NH)
    if scale := getattr(config, "logit_scale", None):
        logits_NV = logits_NV * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


@torch.no_grad()
def check_head(model: nn.Module, ids: list[int]) -> None:
    """Compares the logits made here with the model's own, on a few tokens.

    Raises:
        TrainError: If they differ: this family treats its logits in a way not known here,
            and training would minimise the loss of another model.
    """
    training = model.training
    model.eval()
    ids_BT = torch.tensor([ids[:8]], device=model.device)
    own_NV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    here_NV = head_logits(model, hidden_BTH[0]).float()
    model.train(training)
    tolerance = 1e-3 * max(1.0, own_NV.abs().max().item())
    difference = (own_NV - here_NV).abs().max().item()
    if not difference <= tolerance:
        raise TrainError(
            f"{type(model).__name__} changes its logits after the head in a way this version "
            f"does not know (they differ by {difference:.3g}); choose a student of a family "
            f"such as Llama, Qwen, Gemma, Phi or Granite"
        )
