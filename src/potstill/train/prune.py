"""A smaller student cut out of a larger model: which layers stay, and the cut itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.train.student import decoder_layers, layers_name, save_model

MAX_PROMPTS = 64
"""Influence settles after some dozen prompts."""


def choose_layers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    num_layers: int,
    *,
    by: Literal["influence", "even"] = "influence",
) -> tuple[tuple[int, ...], dict[int, float]]:
    """Which layers to keep, in order, and the influence of every layer.

    The influence of a layer is 1 - cos(hidden state before it, hidden state after it), the
    mean over all tokens of the prompts: in [0, 2], near 0 for a layer that changes nothing.
    The first and the last layer always stay. With `even` the layers stand evenly spaced and
    no influence is measured (the dict is empty).

    Args:
        prompts: Rendered prompts, as text or as token ids; at most 64 are read.

    Raises:
        ConfigError: If the model has fewer layers, or fewer than two are wanted.

    Source:
        Men et al. (2024), "ShortGPT: Layers in Large Language Models are More Redundant
        Than You Expect", section 3. arXiv:2403.03853.
    """
    total = len(decoder_layers(model))
    if not 2 <= num_layers <= total:
        raise ConfigError(
            f"student.prune.layers must be between 2 and {total} (the model's layers), "
            f"got {num_layers}"
        )
    if by == "even":
        return tuple(round(i * (total - 1) / (num_layers - 1)) for i in range(num_layers)), {}
    influence = layer_influence(model, tokenizer, prompts)
    inner = sorted(range(1, total - 1), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted([0, total - 1, *inner[: num_layers - 2]])), influence


@torch.no_grad()
def layer_influence(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str | Sequence[int]]
) -> dict[int, float]:
    """Mean over tokens of 1 - cos(input, output) for every layer, counted from 0."""
    if not prompts:
        raise ConfigError(
            "student.prune.by: influence needs training prompts to measure on; "
            "set student.prune.by: even"
        )
    rows = [
        tokenizer(prompt, add_special_tokens=False).input_ids
        if isinstance(prompt, str)
        else list(prompt)
        for prompt in prompts[:MAX_PROMPTS]
    ]
    layers = decoder_layers(model)
    sums = [0.0] * len(layers)

    def listen(index: int) -> Any:
        def hook(_layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[index] += (1.0 - cosine).sum().item()

        return hook

    handles = [
        layer.register_forward_hook(listen(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    training = model.training
    model.eval()
    try:
        for row in rows:
            model.base_model(input_ids=torch.tensor([row], device=model.device), use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    num_tokens = sum(map(len, rows))
    return {index: value / num_tokens for index, value in enumerate(sums)}


def cut_layers(model: nn.Module, keep: Sequence[int]) -> nn.Module:
    """Keeps only some layers of a model, in place, and returns it.

    Layers are renumbered, because the cache of keys and values is addressed by their number;
    lists in the config that describe every layer (such as `layer_types`) are cut as well.

    Raises:
        ConfigError: If a layer does not exist, is named twice or out of order.
    """
    layers = decoder_layers(model)
    total = len(layers)
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < total:
        raise ConfigError(
            f"student.prune.layers must be rising numbers from 0 to {total - 1}, got {list(keep)}"
        )
    kept = nn.ModuleList(layers[index] for index in keep)
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    setattr(model.base_model, layers_name(model), kept)
    config = model.config
    for name, value in copy.copy(vars(config)).items():
        if isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, [value[index] for index in keep])
    config.num_hidden_layers = len(kept)
    return model


def save_untouched(model: nn.Module, tokenizer: Any, out: Path) -> None:
    """Writes a model that has learnt nothing yet, for the comparison with the distilled one."""
    save_model(model, tokenizer, out)
