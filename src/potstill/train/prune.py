"""A smaller student cut out of a larger model: which layers stay, and the cut itself.

What each layer keeps of its width is in `train.width`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.config import LossConfig
from potstill.data.batch import collate
from potstill.data.render import Rendered
from potstill.errors import ConfigError
from potstill.train.objective import Objective
from potstill.train.plan import num_loss_tokens
from potstill.train.student import decoder_layers, layers_name, save_model

MAX_PROMPTS = 64
"""Influence settles after some dozen prompts."""

MAX_ROWS = 16
"""Rows that every candidate of a greedy cut is judged on: each costs a forward pass."""

ROWS_AT_ONCE = 8


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
    total = _check_number(model, num_layers, 2)
    if by == "even":
        return tuple(round(i * (total - 1) / (num_layers - 1)) for i in range(num_layers)), {}
    influence = layer_influence(model, tokenizer, prompts)
    inner = sorted(range(1, total - 1), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted([0, total - 1, *inner[: num_layers - 2]])), influence


@torch.no_grad()
def greedy_layers(
    model: nn.Module,
    rows: Sequence[Rendered],
    num_layers: int,
    *,
    pad_id: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[int, ...], dict[int, float]]:
    """Which layers to keep, in order, and what was lost by each that goes.

    Again and again the layer goes whose absence leaves the lowest loss; the ends may go as
    well. A cut from L layers to K takes (L - K) (L + K + 1) / 2 forward passes over the rows.

    Args:
        rows: Rows with answers; the first 16 are read.
        on_progress: Called with forward passes done and in all.

    Returns:
        The layers that stay, and, in the order in which the others went, the mean loss on the
        answers' tokens without each and all before it, nats.

    Raises:
        ConfigError: If the model has fewer layers, none would stay, or there are no rows.
    """
    total = _check_number(model, num_layers, 1)
    if not rows:
        raise ConfigError(
            "student.prune.by: greedy needs accepted rows to measure the loss on; "
            "set student.prune.by: even"
        )
    chosen = rows[:MAX_ROWS]
    num_tokens = sum(map(num_loss_tokens, chosen))
    objective, layers = Objective(model, LossConfig()), decoder_layers(model)

    def loss_without(gone: set[int]) -> float:
        with _skipped([layers[index] for index in gone]):
            summed = 0.0
            for start in range(0, len(chosen), ROWS_AT_ONCE):
                batch = collate(chosen[start : start + ROWS_AT_ONCE], pad_id=pad_id)
                ids, mask = batch.ids_BT.to(model.device), batch.loss_mask_BT.to(model.device)
                summed += objective(ids, mask, None, None).sft.item()
        return summed / num_tokens

    training = model.training
    model.eval()
    kept, lost, done = set(range(total)), dict[int, float](), 0
    num_passes = (total - num_layers) * (total + num_layers + 1) // 2
    while len(kept) > num_layers:
        losses = {}
        for index in sorted(kept):
            losses[index] = loss_without({*lost, index})
            done += 1
            if on_progress is not None:
                on_progress(done, num_passes)
        worst = min(losses, key=lambda index: (losses[index], index))
        kept.remove(worst)
        lost[worst] = losses[worst]
    model.train(training)
    return tuple(sorted(kept)), lost


@contextlib.contextmanager
def _skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Layers that hand on what they get. Their numbers and all lists about them stay valid."""

    def pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    for layer in layers:
        layer.forward = pass_on
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _check_number(model: nn.Module, wanted: int, least: int) -> int:
    total = len(decoder_layers(model))
    if not least <= wanted <= total:
        raise ConfigError(
            f"student.prune.layers must be between {least} and {total} (the model's layers), "
            f"got {wanted}"
        )
    return total


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
