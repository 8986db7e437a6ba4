"""A narrower student computes what a model cut by hand computes, and loads like any other."""

import json

import pytest
import torch
from families import tiny_family
from tiny import tiny_tokenizer
from training import tiny_student
from transformers import AutoModelForCausalLM

from potstill.errors import ConfigError
from potstill.train.prune import save_untouched
from potstill.train.width import Importance, Width, choose_width, cut_width, width_importance

FAMILIES = (
    "llama3",
    "smollm2",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    "phi3",
    "phi4-mini",
)
PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13]]
IDS = torch.tensor([[5, 9, 30, 41, 7, 8, 120, 33]])


def family(tmp_path, name, **changes):
    return AutoModelForCausalLM.from_pretrained(
        tiny_family(tmp_path / name, name, **changes)
    ).eval()


def said(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def whole(model):
    config = model.config
    layers = range(config.num_hidden_layers)
    return Width(
        [list(range(config.intermediate_size)) for _ in layers],
        [list(range(config.num_attention_heads)) for _ in layers],
    )


def of_module(layer, name):
    return next(module for path, module in layer.named_modules() if path.endswith(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_everything_changes_nothing(tmp_path, name):
    model = family(tmp_path, name)
    torch.testing.assert_close(said(cut_width(model, whole(model))), said(model), atol=0, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_equals_zeros_in_the_same_places(tmp_path, name):
    """What is cut contributes nothing when the projections behind it are zeroed instead."""
    model = family(tmp_path, name)
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    channels = [
        sorted(torch.randperm(52, generator=torch.Generator().manual_seed(n))[:21].tolist())
        for n in range(config.num_hidden_layers)
    ]
    # Another key-value head in each layer, and all of its query heads.
    heads = [
        list(range(n % 2 * per_group, (n % 2 + 1) * per_group))
        for n in range(config.num_hidden_layers)
    ]
    cut = cut_width(model, Width(channels, heads))
    assert cut.config.intermediate_size == 21
    assert cut.config.num_key_value_heads == 1
    for layer, kept, kept_heads in zip(model.model.layers, channels, heads, strict=True):
        down, out = of_module(layer, "down_proj"), of_module(layer, "o_proj")
        size = out.in_features // config.num_attention_heads
        gone = [n for n in range(52) if n not in kept]
        lost = [n for n in range(out.in_features) if n // size not in kept_heads]
        with torch.no_grad():
            down.weight[:, gone] = 0
            out.weight[:, lost] = 0
    torch.testing.assert_close(said(cut), said(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi3"])
def test_query_heads_can_go_while_their_key_value_heads_stay(tmp_path, name):
    model = family(tmp_path, name)
    cut = cut_width(model, whole(model)._replace(heads=[[1, 2], [0, 3]]))
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (2, 2)
    for layer, kept in zip(model.model.layers, ([1, 2], [0, 3]), strict=True):
        out = of_module(layer, "o_proj")
        size = out.in_features // 4
        with torch.no_grad():
            out.weight[:, [n for n in range(out.in_features) if n // size not in kept]] = 0
    torch.testing.assert_close(said(cut), said(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gemma2", "phi3"])
def test_a_narrow_student_is_saved_and_loaded_like_any_other(tmp_path, name):
    model = family(tmp_path, name)
    importance = width_importance(model, PROMPTS)
    cut = cut_width(model, choose_width(importance, 2, ffn=20, kv_heads=1))
    save_untouched(cut, tiny_tokenizer(), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(said(again), said(cut))
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["intermediate_size"], saved["num_key_value_heads"]) == (20, 1)


def test_channels_that_are_silent_go_first_and_nothing_changes(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=2)
    silent = [3, 50, 95]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[silent] = 0
    before = said(model.eval())
    importance = width_importance(model, PROMPTS)
    width = choose_width(importance, 2, ffn=93)
    assert all(not set(silent) & set(kept) and len(kept) == 93 for kept in width.channels)
    torch.testing.assert_close(said(cut_width(model, width)), before, atol=1e-6, rtol=1e-5)


def test_heads_that_say_nothing_go_first_and_nothing_changes(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=2)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[8:] = 0  # key-value head 1
        model.model.layers[1].self_attn.v_proj.weight[:8] = 0  # key-value head 0
    before = said(model.eval())
    width = choose_width(width_importance(model, PROMPTS), 2, kv_heads=1)
    assert width.heads == [[0, 1], [2, 3]]
    torch.testing.assert_close(said(cut_width(model, width)), before, atol=1e-6, rtol=1e-5)


def test_importance_is_the_root_mean_square_over_prompts_of_the_mean_over_tokens(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=2)
    kept = {}
    layer = model.model.layers[1]
    for name, module in (("c", layer.mlp.down_proj), ("h", layer.self_attn.o_proj)):
        module.register_forward_pre_hook(
            lambda _m, args, name=name: kept.setdefault(name, []).append(args[0][0].detach())
        )
    for prompt in PROMPTS:
        model(torch.tensor([prompt]))
    channels = torch.stack([a.abs().mean(0) for a in kept["c"]]).square().mean(0).sqrt()
    lengths = [a.view(len(a), 4, 8).norm(dim=-1).mean(0) for a in kept["h"]]
    heads = torch.stack(lengths).square().mean(0).sqrt()
    found = width_importance(model, PROMPTS)
    torch.testing.assert_close(found.channels[1].float(), channels)
    torch.testing.assert_close(found.heads[1].float(), heads)


ACTIVE = Importance([torch.tensor([1.0, 5.0, 3.0])], [torch.tensor([1.0, 9, 2, 3, 4, 5])])


@pytest.mark.parametrize(
    ("wanted", "channels", "heads"),
    [
        ({"ffn": 2}, [1, 2], [0, 1, 2, 3, 4, 5]),
        ({"kv_heads": 1}, [0, 1, 2], [0, 1, 2]),
        ({"kv_heads": 1, "heads": 2}, [0, 1, 2], [1, 2]),
        ({"heads": 4}, [0, 1, 2], [1, 2, 4, 5]),
    ],
)
def test_the_most_active_parts_stay(wanted, channels, heads):
    assert choose_width(ACTIVE, 2, **wanted) == Width([channels], [heads])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"ffn": 4}, "student.prune.ffn is 4, and the model has 3"),
        ({"heads": 7}, "student.prune.heads is 7, and the model has 6"),
        ({"kv_heads": 3}, "student.prune.kv_heads is 3, and the model has 2"),
        ({"heads": 3}, "3 query heads cannot be shared evenly by 2.*a multiple of 2 up to 6"),
        ({"heads": 4, "kv_heads": 1}, "4 query heads cannot be shared evenly by 1.*up to 3"),
    ],
)
def test_a_width_that_cannot_be_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        choose_width(ACTIVE, 2, **wanted)


def test_layers_must_stay_equally_wide(tmp_path):
    model, _ = tiny_student(tmp_path / "m")
    with pytest.raises(ConfigError, match="every layer must keep the same number of channels"):
        cut_width(model, whole(model)._replace(channels=[[0], [0, 1]]))


def test_a_family_that_cannot_be_made_narrower_is_refused(tmp_path):
    model = family(tmp_path, "deepseek-v3")
    with pytest.raises(ConfigError, match=r"cannot make narrower; cut layers instead"):
        width_importance(model, PROMPTS)


def test_a_width_needs_prompts_to_measure_on(tmp_path):
    model, _ = tiny_student(tmp_path / "m")
    with pytest.raises(ConfigError, match="need training prompts"):
        width_importance(model, [])
