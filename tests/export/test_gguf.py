"""A GGUF file is the model it was made of, or it is not made."""

import json

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from potstill.errors import ExportError
from potstill.export.gguf import export_gguf, gguf_name, rope_factors
from potstill.export.llama_cpp import run_gguf
from potstill.export.manifest import read_manifest
from potstill.export.parity import check_gguf
from potstill.types import Message

PROMPTS = [
    (Message(role="user", content=text),)
    for text in ("Where is my order 12345?", "क्या मैं उपहार\n\nवापस?", "it's  42  o'clock", "!?")
]


def model_folder(path, *, architecture="llama", **changes):
    """A tiny model; the tokenizer's 421 tokens and some padding rows."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config_class, model_class = classes[architecture]
    tokenizer = tiny_tokenizer(path)
    sizes = {
        "vocab_size": 430,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = model_class(config_class(**{**sizes, **changes}))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)
    model.save_pretrained(path)
    return path


@pytest.mark.slow
def test_a_tiny_llama_says_the_same_in_llama_cpp(tmp_path):
    source = tiny_llama(tmp_path / "m")
    artefact = export_gguf(source, tmp_path / "out", quant="f32")
    parity = check_gguf(source, artefact, PROMPTS, min_prompts=4)
    assert parity.argmax_agreement == parity.tokenizer_agreement == 1.0
    assert parity.max_logprob_difference < 1e-3
    model = AutoModelForCausalLM.from_pretrained(source)
    (found,) = run_gguf(artefact, [("#$%", [5, 6, 7])], 8, 4)
    said = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)
    assert [step.token for step in found.steps] == said[0, 3:].tolist()


DYNAMIC = {"rope_theta": 10_000.0, "rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {
    "rope_theta": 10_000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_parameters": {"rope_theta": 100_000.0, "rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": LLAMA3},
        {"architecture": "qwen2"},
        {"architecture": "qwen3"},
    ],
    ids=["tied", "biases", "linear rope", "llama3 rope", "qwen2", "qwen3"],
)
def test_every_variant_that_is_written_is_equal_to_its_source(tmp_path, changes):
    source = model_folder(tmp_path / "m", **changes)
    artefact = export_gguf(source, tmp_path / "out", quant="f32")
    long = [(Message(role="user", content="Where is my order? " * 20),)]
    parity = check_gguf(source, artefact, [*PROMPTS, *long], min_prompts=5)
    assert parity.passed


@pytest.mark.slow
def test_eight_bits_are_near_and_smaller(tmp_path):
    source = model_folder(tmp_path / "m", initializer_range=0.1)
    sizes = {}
    for quant in ("f16", "q8_0"):
        artefact = export_gguf(source, tmp_path / quant, quant=quant)
        sizes[quant] = artefact.stat().st_size
        assert check_gguf(source, artefact, PROMPTS, min_prompts=4).mean_kl_nats < 0.01
    assert sizes["q8_0"] < 0.7 * sizes["f16"]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_four_bits_are_smaller_and_as_near_as_four_bits_are(tmp_path, tied):
    source = model_folder(tmp_path / "m", initializer_range=0.05, tie_word_embeddings=tied)
    sizes = {}
    for quant in ("q8_0", "q4_1", "q4_0"):
        artefact = export_gguf(source, tmp_path / quant, quant=quant)
        sizes[quant] = artefact.stat().st_size
        assert check_gguf(source, artefact, PROMPTS, min_prompts=4).mean_kl_nats < 0.1
    assert sizes["q4_0"] < sizes["q4_1"] < sizes["q8_0"]


@pytest.mark.parametrize(("quant", "tied"), [("q4_0", True), ("q4_0", False), ("q4_1", False)])
def test_of_four_bits_the_output_matrix_keeps_eight(tmp_path, quant, tied):
    from gguf import GGUFReader

    source = model_folder(tmp_path / "m", tie_word_embeddings=tied)
    artefact = export_gguf(source, tmp_path / "out", quant=quant)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(artefact).tensors}
    assert kinds["token_embd.weight" if tied else "output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_down.weight"] == quant.upper()
    assert kinds["output_norm.weight"] == "F32"
    tensors, head = read_manifest(tmp_path / "out").notes
    assert tensors == f"tensors: 5 in f32, {14 if tied else 15} in {quant}, 1 in q8_0"
    assert "output matrix is q8_0" in head


def test_rows_that_no_block_fills_keep_sixteen_bits(tmp_path):
    source = model_folder(tmp_path / "m", intermediate_size=72)
    export_gguf(source, tmp_path / "out", quant="q4_0")
    notes = read_manifest(tmp_path / "out").notes
    assert "2 in f16" in notes[0]
    assert "no multiple of 32" in notes[-1]


def test_the_manifest_tells_what_it_is_made_of(tmp_path):
    artefact = export_gguf(tiny_llama(tmp_path / "m"), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.main == artefact.name == "model-f16.gguf"
    assert {file.name for file in manifest.files} == {"Modelfile", "model-f16.gguf"}
    assert {"gguf", "transformers"} <= manifest.tools.keys()
    assert manifest.parity is None


def test_the_modelfile_has_the_trained_template_and_its_stop_token(tmp_path):
    export_gguf(tiny_llama(tmp_path / "m"), tmp_path / "out")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model-f16.gguf\nTEMPLATE")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER repeat_penalty 1\n" in text


def test_a_template_that_is_not_chatml_is_left_to_the_file(tmp_path):
    source = tiny_llama(tmp_path / "m")
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    export_gguf(source, tmp_path / "out")
    assert 'TEMPLATE "' not in (tmp_path / "out" / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "convert_hf_to_gguf.py"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ],
)
def test_what_cannot_be_written_right_is_not_written(tmp_path, change, message):
    source = tiny_llama(tmp_path / "m")
    if "model_type" in change:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        config = GPTNeoXConfig(
            vocab_size=421,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        GPTNeoXForCausalLM(config).save_pretrained(source)
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExportError, match=message):
        export_gguf(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_way_to_split_text_is_refused(tmp_path):
    source = tiny_llama(tmp_path / "m")
    tree = json.loads((source / "tokenizer.json").read_text())
    tree["pre_tokenizer"]["add_prefix_space"] = True
    (source / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ExportError, match="splits text in a way"):
        export_gguf(source, tmp_path / "out")


def test_a_number_format_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ExportError, match="f16, q8_0, q4_0, q4_1, f32, got 'q3'"):
        export_gguf(tmp_path, tmp_path / "out", quant="q3")


def test_a_tensor_without_a_name_is_not_left_out():
    with pytest.raises(ExportError, match=r"rotary.odd"):
        gguf_name("model.layers.0.rotary.odd.weight")


def test_rope_factors_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=512, rope_parameters=LLAMA3
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / (LLAMA3["rope_theta"] ** (torch.arange(0, 64, 2) / 64))
    torch.testing.assert_close(plain / torch.from_numpy(rope_factors(config)), scaled)
