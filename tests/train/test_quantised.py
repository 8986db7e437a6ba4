"""A student computes with what its 4-bit file holds, bit for bit, and learns as if it did not."""

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tiny import tiny_llama, tiny_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from potstill.errors import TrainError
from potstill.export.gguf import export_gguf, gguf_name
from potstill.models.weights import load_weights
from potstill.train.quantised import (
    QUANTS,
    _Stored,
    computing_as_stored,
    step_size,
    store_weights,
    stored,
    stored_kinds,
)

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def qwen_folder(path, *, tied):
    """A tiny Qwen2: its file keeps the order of rows. Its feed-forward fills no block."""
    tokenizer = tiny_tokenizer(path)
    config = Qwen2Config(
        vocab_size=430,
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight[0] = 0.0  # a block without a scale
        weight[1, :32] = torch.tensor([0.5, -0.5] * 16)  # two that are largest by amount
        weight[2, :32] = torch.linspace(-1, 1, 32)  # halves between two steps
        weight[3] = 3e-8  # a scale that 16 bits hold as 0
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quant", QUANTS)
def test_what_is_computed_with_is_what_the_file_gives_back_bit_for_bit(tmp_path, quant, tied):
    source = qwen_folder(tmp_path / "m", tied=tied)
    file = export_gguf(source, tmp_path / "out", quant=quant)
    read = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(file).tensors}
    model, _ = load_weights(source)
    store_weights(model, quant)
    kinds = stored_kinds(model, quant)
    assert set(kinds.values()) == {quant, "q8_0", "f16"}
    for name, weight in model.named_parameters():
        in_file = torch.from_numpy(read.pop(gguf_name(name)).copy()).reshape(weight.shape)
        assert torch.equal(weight.detach(), in_file), name
    assert not read


@pytest.mark.parametrize("kind", [*QUANTS, "q8_0"])
def test_what_was_rounded_once_stays_as_it_is(kind):
    torch.manual_seed(1)
    once = stored(torch.randn(40, 96), kind)
    torch.testing.assert_close(stored(once, kind), once, rtol=0, atol=1e-3)
    assert len(once[0, :32].unique()) <= (256 if kind == "q8_0" else 16)


@pytest.mark.parametrize("kind", QUANTS)
def test_the_gradient_passes_the_rounding_as_if_it_were_not_there(kind):
    weight = torch.randn(3, 64, requires_grad=True)
    wanted = torch.randn(3, 64)
    (_Stored.apply(weight, kind) * wanted).sum().backward()
    assert torch.equal(weight.grad, wanted)


@pytest.mark.parametrize("frozen", [True, False])
def test_inside_the_block_the_model_says_what_its_file_would_say(tmp_path, frozen):
    model, _ = load_weights(tiny_llama(tmp_path, hidden=64))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.requires_grad_(not frozen)
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    with torch.no_grad():
        plain = model(IDS).logits
        with computing_as_stored(model, "q4_0"):
            inside = model(IDS).logits
        after = model(IDS).logits
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        store_weights(model, "q4_0")
        expected = model(IDS).logits
    assert torch.equal(plain, after)
    assert torch.equal(inside, expected)
    assert not torch.equal(plain, inside)


def test_a_matrix_that_learns_and_cannot_be_rounded_is_refused(tmp_path):
    model, _ = load_weights(tiny_llama(tmp_path, hidden=64))
    with (
        pytest.raises(TrainError, match=r"embed_tokens.weight belongs to no linear layer"),
        computing_as_stored(model, "q4_0"),
    ):
        pass


def test_the_step_is_the_distance_of_neighbours(tmp_path):
    model, _ = load_weights(tiny_llama(tmp_path, hidden=64))
    weights = [
        p for n, p in model.named_parameters() if stored_kinds(model, "q4_0").get(n) == "q4_0"
    ]
    with torch.no_grad():
        for p in weights:
            p.fill_(0.8)
    assert step_size(model, "q4_0") == pytest.approx(0.1)
