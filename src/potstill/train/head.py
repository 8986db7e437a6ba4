"""The output layer of a model, as far as a loss needs to know it.

Shape letters of this file:
    N  positions     H  hidden width     V  vocabulary     R  rank of a LoRA update
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import TrainError


class LowRank(NamedTuple):
    """A LoRA update beside a head's weights: adds scale * up (down (dropout (hidden)))."""

    down_RH: Tensor
    up_VR: Tensor
    scale: float
    dropout: nn.Module

    def inner(self, hidden_NH: Tensor) -> Tensor:
        """What `up` is multiplied with, [N, R]."""
        return F.linear(self.dropout(hidden_NH), self.down_RH) * self.scale


class Head(NamedTuple):
    """Hidden states to logits: cap(scale * (hidden W^T + bias)), cap(z) = c tanh(z / c)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    low_rank: LowRank | None = None

    def bend(self, raw_NV: Tensor) -> Tensor:
        """Scale and soft cap; `raw_NV` itself where there is neither."""
        scaled_NV = raw_NV if self.scale == 1.0 else raw_NV * self.scale
        if self.soft_cap is None:
            return scaled_NV
        return (scaled_NV / self.soft_cap).tanh_().mul_(self.soft_cap)

    def unbend_(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Gradient by logits to gradient by raw logits, in place."""
        if self.soft_cap is not None:
            gradient_NV.mul_(1 - (logits_NV / self.soft_cap).square_())
        return gradient_NV if self.scale == 1.0 else gradient_NV.mul_(self.scale)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """All logits at once, with a graph: for a few positions."""
        raw_NV = F.linear(hidden_NH, self.weight_VH, self.bias_V)
        if self.low_rank is not None:
            raw_NV = raw_NV + F.linear(self.low_rank.inner(hidden_NH), self.low_rank.up_VR)
        return self.bend(raw_NV)


def head_of(model: Any) -> Head:
    """The head of a transformers model, with what some families do after it.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma bends large
    values with `final_logit_softcapping`. `objective.check_head` finds families that do more.

    Raises:
        TrainError: If the head is no linear layer with weights of its own.
    """
    config = model.config.get_text_config()
    module, low_rank = model.get_output_embeddings(), None
    if hasattr(module, "lora_A"):
        module, low_rank = module.base_layer, _low_rank(module)
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not weight.is_floating_point():
        raise TrainError(
            f"the output layer of {type(model).__name__} is a {type(module).__name__}, and the "
            f"loss reads the weights of a plain linear layer: keep the head out of quantisation "
            f"and of an adapter's modules_to_save"
        )
    scale = (getattr(config, "logit_scale", None) or 1.0) / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None) or None
    return Head(weight, module.bias, scale, cap, low_rank)


def _low_rank(module: Any) -> LowRank:
    """The one plain LoRA update of a peft layer."""
    names = list(module.active_adapters)
    is_plain = (
        len(names) == 1
        and not module.merged
        and not module.disable_adapters
        and names[0] not in getattr(module, "lora_variant", {})
        and module.lora_B[names[0]].bias is None
    )
    if not is_plain:
        raise TrainError(
            "the head has a LoRA update of a kind that the loss does not follow (several "
            "adapters, a merged or disabled one, DoRA, or one with a bias); use one plain "
            "adapter, or keep the head out of it"
        )
    name = names[0]
    return LowRank(
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        module.scaling[name],
        module.lora_dropout[name],
    )
