"""A student as deep as its teacher and narrower: feed-forward channels and attention heads.

Importance is activity, as in Minitron: what a channel or head gives on the training prompts,
before the projection that brings it back to the hidden width. The result is a model of the same
family with smaller numbers in its config, and loads like any other.

Source:
    Muralidharan et al. (2024), "Compact Language Models via Pruning and Knowledge
    Distillation", section 2.2. arXiv:2407.14679.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.train.prune import MAX_PROMPTS
from potstill.train.student import decoder_layers, layers_name


class Importance(NamedTuple):
    """How active the parts of every layer are: root mean square over prompts of the mean over
    a prompt's tokens."""

    channels: list[Tensor]
    """Of |activation|; one tensor [channels] a layer."""

    heads: list[Tensor]
    """Of the length of a query head's output; one tensor [heads] a layer."""


class Width(NamedTuple):
    """What each layer keeps, counted from 0, in order."""

    channels: list[list[int]]
    heads: list[list[int]]
    """Query heads; every key-value head that has one left stays."""


@torch.no_grad()
def width_importance(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Importance:
    """Measures channels and heads on rendered prompts (token ids); at most 64 are read.

    Raises:
        ConfigError: If there are no prompts, or the family's layers are not known here.
    """
    if not prompts:
        raise ConfigError(
            "student.prune.ffn, heads and kv_heads need training prompts to measure on"
        )
    config, layers = model.config.get_text_config(), decoder_layers(model)
    num_heads = config.num_attention_heads
    squares: dict[tuple[str, int], Any] = {}

    def listen(what: str, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple) -> None:
            given_TD = args[0][0].float()
            if what == "heads":
                active_TD = given_TD.unflatten(-1, (num_heads, -1)).norm(dim=-1)
            else:
                active_TD = given_TD.abs()
            before = squares.get((what, index), 0.0)
            squares[what, index] = before + active_TD.mean(0).double().square()

        return hook

    handles = []
    for index, layer in enumerate(layers):
        for what, (module, _) in _ends(layer).items():
            handles.append(module.register_forward_pre_hook(listen(what, index)))
    training = model.training
    model.eval()
    read = prompts[:MAX_PROMPTS]
    try:
        for row in read:
            ids_BT = torch.tensor([list(row)], device=model.device)
            model.base_model(input_ids=ids_BT, use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()

    def rooted(what: str) -> list[Tensor]:
        return [(squares[what, index] / len(read)).sqrt().cpu() for index in range(len(layers))]

    return Importance(rooted("channels"), rooted("heads"))


def choose_width(
    importance: Importance,
    num_groups: int,
    *,
    ffn: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
) -> Width:
    """The most important channels and heads of every layer.

    Of key-value heads those stay whose query heads are most active together; of each one that
    stays, its most active query heads, everywhere the same number.

    Args:
        num_groups: Key-value heads of the model.
        ffn, heads, kv_heads: How many of each a layer keeps; None keeps all.

    Raises:
        ConfigError: If there are not so many, or the query heads cannot be shared evenly.
    """
    num_channels, num_heads = len(importance.channels[0]), len(importance.heads[0])
    per_group = num_heads // num_groups
    wanted_groups = kv_heads or num_groups
    wanted_heads = heads or wanted_groups * per_group
    for name, number, most in (
        ("ffn", ffn or 1, num_channels),
        ("kv_heads", wanted_groups, num_groups),
        ("heads", wanted_heads, num_heads),
    ):
        if number > most:
            raise ConfigError(f"student.prune.{name} is {number}, and the model has {most}")
    if wanted_heads % wanted_groups or wanted_heads // wanted_groups > per_group:
        raise ConfigError(
            f"student.prune.heads: {wanted_heads} query heads cannot be shared evenly by "
            f"{wanted_groups} key-value heads of at most {per_group}; take a multiple of "
            f"{wanted_groups} up to {wanted_groups * per_group}"
        )
    kept_heads = []
    for active_H in importance.heads:
        active_GH = active_H.unflatten(0, (num_groups, per_group))
        kept: list[int] = []
        for group in _largest(active_GH.sum(-1), wanted_groups):
            best = _largest(active_GH[group], wanted_heads // wanted_groups)
            kept += [group * per_group + head for head in best]
        kept_heads.append(kept)
    channels = [_largest(active, ffn or num_channels) for active in importance.channels]
    return Width(channels, kept_heads)


def _largest(values: Tensor, number: int) -> list[int]:
    order = values.argsort(descending=True, stable=True)
    return sorted(order[:number].tolist())


@torch.no_grad()
def cut_width(model: nn.Module, width: Width) -> nn.Module:
    """A new model that has only these channels and heads; `model` stays as it is.

    Raises:
        ConfigError: If layers keep different numbers, or the family has weights that this
            version cannot cut.
    """
    old = model.config.get_text_config()
    num_groups, num_heads = old.num_key_value_heads, old.num_attention_heads
    per_group = num_heads // num_groups
    groups = [sorted({head // per_group for head in kept}) for kept in width.heads]
    for what, kept in (("channels", width.channels), ("heads", width.heads), ("groups", groups)):
        if len({len(one) for one in kept}) != 1:
            raise ConfigError(f"every layer must keep the same number of {what}")
    layers, state = decoder_layers(model), model.state_dict()
    base = f"{model.base_model_prefix}.{layers_name(model)}"
    size = _ends(layers[0])["heads"][0].in_features // num_heads
    for index, layer in enumerate(layers):
        heads = _spread(width.heads[index], size)
        shared = _spread(groups[index], size)
        for what, (module, name) in _ends(layer).items():
            kept = heads if what == "heads" else width.channels[index]
            _take(state, f"{base}.{index}.{name}", kept, dim=1)
            inner = name.rpartition(".")[0]
            starts = _starts(layer, what, kept, shared, num_heads * size, module.in_features)
            for start, rows in starts.items():
                _take(state, f"{base}.{index}.{inner}.{start}", rows, dim=0)
    config = copy.deepcopy(model.config)
    new = config.get_text_config()
    new.intermediate_size = len(width.channels[0])
    new.num_attention_heads, new.num_key_value_heads = len(width.heads[0]), len(groups[0])
    new.head_dim = size
    with torch.random.fork_rng(devices=[]):
        narrow = type(model)(config).to(model.dtype)
    try:
        narrow.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(model).__name__} has weights whose width this version does not know how to "
            f"cut: {str(error).splitlines()[-1].strip()}; cut layers instead"
        ) from None
    narrow.generation_config = copy.deepcopy(model.generation_config)
    return narrow.to(model.device).train(model.training)


def _ends(layer: nn.Module) -> dict[str, tuple[Any, str]]:
    """The projections that bring channels and heads back, with their names inside the layer."""
    found = {}
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        if last in ("down_proj", "o_proj") and isinstance(module, nn.Linear):
            what = "channels" if last == "down_proj" else "heads"
            if what in found:
                break
            found[what] = (module, name)
    else:
        names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
        is_gated = "gate_up_proj" in names or {"gate_proj", "up_proj"} <= names
        attends = "qkv_proj" in names or {"q_proj", "k_proj", "v_proj"} <= names
        if len(found) == 2 and is_gated and attends:
            return found
    raise ConfigError(
        f"{type(layer).__name__} has feed-forward or attention layers of a kind that this version "
        f"cannot make narrower; cut layers instead (student.prune.layers)"
    )


def _starts(
    layer: nn.Module, what: str, kept: list[int], shared: list[int], queries: int, channels: int
) -> dict[str, list[int]]:
    """Rows that stay of the projections that make channels, or queries, keys and values."""
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    if what == "channels":
        if "gate_up_proj" in names:
            return {"gate_up_proj": [*kept, *(channels + row for row in kept)]}
        return {"gate_proj": kept, "up_proj": kept}
    if "qkv_proj" in names:
        others = (layer.get_submodule("self_attn.qkv_proj").out_features - queries) // 2
        keys = [queries + row for row in shared]
        return {"qkv_proj": [*kept, *keys, *(others + row for row in keys)]}
    return {"q_proj": kept, "k_proj": shared, "v_proj": shared}


def _take(state: dict[str, Tensor], name: str, kept: list[int], *, dim: int) -> None:
    """Keeps rows (dim 0, of weight and bias) or columns (dim 1, of the weight)."""
    places = torch.tensor(kept, device=state[f"{name}.weight"].device)
    state[f"{name}.weight"] = state[f"{name}.weight"].index_select(dim, places)
    if dim == 0 and f"{name}.bias" in state:
        state[f"{name}.bias"] = state[f"{name}.bias"].index_select(0, places)


def _spread(parts: list[int], size: int) -> list[int]:
    """The places of parts that are `size` places long each."""
    return [part * size + place for part in parts for place in range(size)]
