"""From a batch to summed losses: backbone, head at the loss positions only, divergence.

Shape letters of this file:
    B  rows       T  tokens of a row, padding included       H  hidden width
    N  loss positions of the batch, row by row               V  vocabulary

The loss mask belongs to the *label*: where it is 1, the token itself is to be learnt, and the
hidden state one position earlier predicts it. All of it happens inside one module's forward,
so that a wrapper for several devices sees the whole computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from potstill.config import LossConfig
from potstill.errors import TrainError
from potstill.models.longrope import hidden_states
from potstill.models.packed import packed_states
from potstill.train.fused import head_loss
from potstill.train.head import head_of
from potstill.train.targets import Sampled, Target


class LossSums(NamedTuple):
    """Sums over the loss positions of one batch, nats."""

    loss: Tensor
    """What is minimised; carries the gradient."""

    sft: Tensor
    divergence: Tensor | None
    name: str | None = None
    """Of the divergence, in metrics: `forward_kl`, `jsd`, … or `soft_cross_entropy`."""

    matched: Mapping[str, Tensor] = MappingProxyType({})
    """Terms between the layers (`train.beside`), not weighted; none by default."""


class TeacherTargets(NamedTuple):
    """What is known of the teacher at the loss positions of one batch."""

    target: Target
    num_shared: int
    """Tokens of the shared tokenizer; the student's padding rows beyond are cut off."""


class Objective(nn.Module):
    """The training loss of one model."""

    takes_packed = True
    """Whether `forward` takes the positions of packed documents."""

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
        position_BT: Tensor | None = None,
    ) -> LossSums:
        """Summed losses of one batch.

        Args:
            attention_BT: None where all padding stands on the right: causal attention
                never looks there, and attention without a mask is a tenth faster.
            position_BT: Positions of documents packed one behind the other in one row, each
                from 0; None where every row is one document.
        """
        hidden_NH, labels_N = states_at_labels(
            self.model, ids_BT, loss_mask_BT, attention_BT, position_BT
        )
        found = head_loss(
            hidden_NH,
            head_of(self.model),
            labels_N,
            self.loss,
            None if targets is None else targets.target,
            num_shared=None if targets is None else targets.num_shared,
        )
        sft = found.sft_N.sum()
        if targets is None:
            return LossSums(found.total, sft, None)
        name = divergence_name(self.loss, targets.target)
        return LossSums(found.total, sft, found.divergence_N.sum(), name)


def states_at_labels(
    model: nn.Module,
    ids_BT: Tensor,
    loss_mask_BT: Tensor,
    attention_BT: Tensor | None = None,
    position_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] that predict the labels, and the labels [N], row by row.

    The last token of a document predicts nothing: it is never an input. So a packed document
    goes through the very computation that it would go through alone.
    """
    is_label_BT = loss_mask_BT[:, 1:].bool()
    if position_BT is None:
        attention_BT = None if attention_BT is None else attention_BT[:, :-1]
        hidden_BTH = hidden_states(model, ids_BT[:, :-1], is_label_BT, attention_BT)
        return hidden_BTH[is_label_BT], ids_BT[:, 1:][is_label_BT]
    goes_on_BT = position_BT[:, 1:] != 0
    hidden_1TH = packed_states(
        model, ids_BT[:, :-1][goes_on_BT][None], position_BT[:, :-1][goes_on_BT][None]
    )
    is_label_T = is_label_BT[goes_on_BT]
    return hidden_1TH[0, is_label_T], ids_BT[:, 1:][goes_on_BT][is_label_T]


def divergence_name(loss: LossConfig, target: Target) -> str:
    """What the divergence is called in metrics.

    From sampled targets only its cross entropy is known, which is another quantity.
    """
    return "soft_cross_entropy" if isinstance(target, Sampled) else loss.kind


def mean_figures(sums: Sequence[LossSums], num_loss: int) -> dict[str, float]:
    """Means over the loss positions of a step, by their names in metrics; {} without batches."""
    if not sums:
        return {}
    means = {
        "loss_nats": sum(part.loss.item() for part in sums) / num_loss,
        "sft_nats": sum(part.sft.item() for part in sums) / num_loss,
    }
    if all(part.divergence is not None for part in sums):
        means[f"{sums[0].name}_nats"] = sum(part.divergence.item() for part in sums) / num_loss
    for name in sums[0].matched:
        means[name] = sum(part.matched[name].item() for part in sums) / num_loss
    return means


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
    here_NV = head_of(model).logits(hidden_BTH[0]).float()
    model.train(training)
    tolerance = 1e-3 * max(1.0, own_NV.abs().max().item())
    difference = (own_NV - here_NV).abs().max().item()
    if not difference <= tolerance:
        raise TrainError(
            f"{type(model).__name__} changes its logits after the head in a way this version "
            f"does not know (they differ by {difference:.3g}); choose a student of a family "
            f"such as Llama, Qwen, Gemma, Phi or Granite"
        )
