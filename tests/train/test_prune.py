"""A model with layers cut out is a whole model still."""

import pytest
import torch
from families import tiny_family
from tiny import tiny_tokenizer
from training import rows, tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import LossConfig
from potstill.errors import ConfigError
from potstill.train.objective import Objective
from potstill.train.plan import num_loss_tokens
from potstill.train.prune import (
    choose_layers,
    cut_layers,
    greedy_layers,
    layer_influence,
    save_untouched,
)

SLIDING = {"gemma3": {"layer_types": ["sliding_attention", "full_attention"] * 2}}
PROMPTS = ["Where is my order?", "May I return a gift?"]


def generated(model, *, use_cache):
    prompt = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        return model.generate(
            prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache, eos_token_id=None
        ).tolist()


def test_a_cut_model_generates_the_same_with_and_without_its_cache(tmp_path):
    """The cache is addressed by layer number: without renumbering this fails."""
    model, _ = tiny_student(tmp_path / "m", layers=5)
    cut = cut_layers(model, [0, 3, 4])
    assert cut.config.num_hidden_layers == 3
    assert generated(cut, use_cache=True) == generated(cut, use_cache=False)


def test_a_cut_model_computes_with_the_layers_that_were_kept(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=4)
    weights = [layer.mlp.up_proj.weight.clone() for layer in model.model.layers]
    cut = cut_layers(model, [0, 2, 3])
    for place, index in enumerate((0, 2, 3)):
        assert torch.equal(cut.model.layers[place].mlp.up_proj.weight, weights[index])


def test_lists_that_describe_layers_are_cut_with_them():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=3,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )
    cut = cut_layers(Qwen2ForCausalLM(config), [0, 2, 3])
    kept = ["full_attention", "full_attention", "sliding_attention"]
    assert cut.config.layer_types == kept
    assert generated(cut, use_cache=True) == generated(cut, use_cache=False)


def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_comes_out(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m", layers=3)
    ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
    states = model(ids, output_hidden_states=True).hidden_states
    by_hand = 1 - torch.nn.functional.cosine_similarity(states[0], states[1], dim=-1).mean()
    found = layer_influence(model, tokenizer, PROMPTS[:1])
    assert found[0] == pytest.approx(by_hand.item(), abs=1e-5)


def test_the_layer_that_does_nothing_goes_first_and_the_ends_stay(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m", layers=4)
    with torch.no_grad():
        for layer in (model.model.layers[0], model.model.layers[2]):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    keep, influence = choose_layers(model, tokenizer, PROMPTS, 3)
    assert keep == (0, 1, 3)
    assert influence[2] == pytest.approx(0.0, abs=1e-6)


def test_even_layers_are_spread_from_the_first_to_the_last(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m", layers=7)
    assert choose_layers(model, tokenizer, [], 4, by="even") == ((0, 2, 4, 6), {})


def loss_of(model, some):
    """Mean loss on the answers' tokens, row by row."""
    with torch.no_grad():
        sums = [
            Objective(model, LossConfig())(
                torch.tensor([row.ids]), torch.tensor([row.loss_mask]), None, None
            ).loss.item()
            for row in some
        ]
    return sum(sums) / sum(map(num_loss_tokens, some))


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma3", "phi3"])
def test_greedy_lets_the_layer_go_whose_loss_is_least_missed(tmp_path, family):
    """Each candidate is cut out for real here, and skipped there."""

    def fresh():
        return AutoModelForCausalLM.from_pretrained(path).eval()

    path = tiny_family(tmp_path / "m", family, num_hidden_layers=4, **SLIDING.get(family, {}))
    tokenizer = AutoTokenizer.from_pretrained(path)
    some = rows(tokenizer)
    passes = []
    keep, lost = greedy_layers(
        fresh(), some, 2, pad_id=tokenizer.pad_token_id, on_progress=lambda *n: passes.append(n)
    )
    left = list(range(4))
    for gone, loss in lost.items():
        losses = {}
        for index in left:
            kept = [one for one in left if one != index]
            losses[index] = loss_of(cut_layers(fresh(), kept), some)
        assert gone == min(losses, key=losses.get)
        assert loss == pytest.approx(losses[gone], rel=1e-5)
        left.remove(gone)
    assert list(keep) == left
    assert passes == [(n + 1, 7) for n in range(7)]


def test_greedy_leaves_the_model_as_it_was(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m", layers=3)
    before = loss_of(model, rows(tokenizer))
    greedy_layers(model.train(), rows(tokenizer), 1, pad_id=0)
    assert model.training
    assert loss_of(model, rows(tokenizer)) == before


def test_greedy_needs_rows_with_answers(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=3)
    with pytest.raises(ConfigError, match="greedy needs accepted rows"):
        greedy_layers(model, [], 1, pad_id=0)


@pytest.mark.parametrize("num_layers", [1, 5])
def test_more_layers_than_there_are_is_refused(tmp_path, num_layers):
    model, tokenizer = tiny_student(tmp_path / "m", layers=4)
    with pytest.raises(ConfigError, match="between 2 and 4"):
        choose_layers(model, tokenizer, PROMPTS, num_layers)


@pytest.mark.parametrize("keep", [[], [0, 9], [2, 1], [1, 1]])
def test_layers_that_do_not_exist_are_refused(tmp_path, keep):
    model, _ = tiny_student(tmp_path / "m", layers=4)
    with pytest.raises(ConfigError, match="rising numbers from 0 to 3"):
        cut_layers(model, keep)


def test_an_untouched_student_loads_again(tmp_path):
    model, _ = tiny_student(tmp_path / "m", layers=4)
    save_untouched(cut_layers(model, [0, 3]), tiny_tokenizer(), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert generated(again, use_cache=True) == generated(model, use_cache=True)
