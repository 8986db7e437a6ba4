"""QLoRA: the frozen weights in 4 bits while low-rank updates beside them learn.

The linear layers of the backbone are kept as bitsandbytes' NF4, about 4.1 bits a weight with
their scales; the output layer, word vectors and norms stay as they are, so that losses read a
plain head. A layer's weights exist in the number format of the arithmetic only while it
computes. What is saved is a plain model: the weights that were computed with, plus the updates.

Source: Dettmers et al. (2023), "QLoRA: Efficient Finetuning of Quantized LLMs", sections 3 and
4. arXiv:2305.14314.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from potstill.errors import MissingExtra, TrainError
from potstill.models.weights import quiet

BITS = 4.127
"""Of a weight in NF4: one of 16 values, a scale in 8 bits for each 64 weights, and a scale of the
scales in 32 for each 256 of them."""


def to_four_bits(model: Any, device: torch.device, compute: torch.dtype) -> None:
    """Replaces the backbone's linear layers by NF4 ones on `device`, one after the other, in place.

    Args:
        compute: Number format of their matrix products.

    Raises:
        MissingExtra: If bitsandbytes is not installed.
        TrainError: If it does not compute on this device, or the model has no plain layers.
    """
    layers = _linear_layers(model.base_model)
    if not layers:
        raise TrainError(
            f"{type(model).__name__} has no plain linear layers that could be kept in 4 bits; "
            f"use train.adapter: lora"
        )
    four_bit = _four_bit_layer()
    try:
        for name, layer in layers.items():
            model.base_model.set_submodule(name, four_bit(layer, compute).to(device))
    except (RuntimeError, AttributeError) as error:  # its library may be there without this device
        raise TrainError(
            f"bitsandbytes does not compute in 4 bits on {device.type} "
            f"({str(error).splitlines()[0]}); use train.adapter: lora"
        ) from error
    model.is_loaded_in_4bit = True  # peft asks


def is_four_bit(model: Any) -> bool:
    """Whether `to_four_bits` was here."""
    return getattr(model, "is_loaded_in_4bit", False)


@torch.no_grad()
def put_together(model: Any) -> None:
    """Replaces 4-bit layers and the updates beside them by plain float32 layers, in place.

    Adding an update to the 4-bit weights themselves, as peft does, would round most of it away.
    """
    for name, module in list(model.base_model.named_modules()):
        base = getattr(module, "base_layer", None)
        if not hasattr(getattr(base, "weight", None), "quant_state"):
            continue
        update = sum(module.get_delta_weight(adapter).float() for adapter in module.lora_A)
        has_bias = base.bias is not None
        plain = nn.Linear(
            base.in_features, base.out_features, bias=has_bias, device=base.weight.device
        )
        plain.weight.copy_(plain_weights(base) + update)
        if has_bias:
            plain.bias.copy_(base.bias)
        model.base_model.set_submodule(name, plain)
    model.is_loaded_in_4bit = False


def plain_weights(layer: Any) -> torch.Tensor:
    """What a 4-bit layer computes with, float32."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def num_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for: in 4 bits two are in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in backbone.named_modules() if type(m) is nn.Linear}


def _four_bit_layer() -> Any:
    """A function from a plain layer to its 4-bit twin, rounded when it is put on its device."""
    try:
        with quiet():  # it complains of CPU kernels that are not needed
            from bitsandbytes.nn import Linear4bit, Params4bit
    except ModuleNotFoundError:
        raise MissingExtra(
            'train.adapter: qlora needs an extra: pip install "potstill[qlora]"'
        ) from None

    def made(layer: nn.Linear, compute: torch.dtype) -> nn.Module:
        form = {"quant_type": "nf4", "compress_statistics": True}
        found = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=compute, **form
        )
        weights = layer.weight.detach()
        found.weight = Params4bit(weights, requires_grad=False, module=found, **form)
        found.bias = layer.bias
        # Its layout for faster answers on a CPU cannot be trained with, and would stay.
        found.support_avx512bf16_for_cpu = False
        return found

    return made
