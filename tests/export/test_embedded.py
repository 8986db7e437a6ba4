"""Folders for CTranslate2 and ONNX Runtime GenAI are the model they were made of, in the real
engines, or they are not made."""

import asyncio
import json

import pytest
import torch
from installed import needs_engine
from tiny import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from potstill.data.render import render_prompt
from potstill.errors import ExportError
from potstill.export.ctranslate import export_ctranslate2
from potstill.export.manifest import read_manifest, write_manifest
from potstill.export.onnx_genai import _build, export_onnx
from potstill.export.parity import check_artefact
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.weights import cached_folder
from potstill.types import Message, Record, Sampling

PROMPTS = [
    (Message(role="user", content=text),)
    for text in ("Where is my order 12345?", "क्या मैं उपहार\n\nवापस?", "it's  42  o'clock", "!?")
]
SYSTEM = Message(role="system", content="Be brief.")
TURNS = (SYSTEM, PROMPTS[0][0], Message(role="assistant", content="On Monday."), PROMPTS[1][0])
EXPORTERS = {"ctranslate2": export_ctranslate2, "onnx": export_onnx}
ONNX = pytest.param("onnx", "fp32", marks=pytest.mark.slow)
EXACT = [("ctranslate2", "float32"), ONNX]


def exported(source, out, kind, quant):
    needs_engine(kind)
    return EXPORTERS[kind](source, out, quant=quant)


def checked(source, artefact, prompts=(*PROMPTS, TURNS), **rest):
    return check_artefact(source, artefact, prompts, min_prompts=len(prompts), **rest)


def talkative(path):
    """A tiny model whose greedy answers are several tokens long and end with the turn's token."""
    source = tiny_llama(path, hidden=64, seed=3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), tiny_tokenizer()
    torch.set_num_threads(1)
    with torch.no_grad():
        ids = render_prompt(tokenizer, PROMPTS[0])
        said = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
        states = model.model(said[:, :-1]).last_hidden_state[0, len(ids) - 1 :]
        # The head's row of the end token: far below all others, and after six tokens far above.
        wanted = torch.tensor([-9.0] * (len(states) - 1) + [9.0])
        model.lm_head.weight[tokenizer.eos_token_id] = torch.linalg.lstsq(states, wanted).solution
    model.save_pretrained(source)
    return source


@pytest.mark.parametrize(("kind", "quant"), EXACT)
def test_an_exact_format_says_the_same_as_its_source(tmp_path, kind, quant):
    source = tiny_llama(tmp_path / "m", hidden=64)
    artefact = exported(source, tmp_path / "out", kind, quant)
    parity = checked(source, artefact)
    assert parity.argmax_agreement == parity.tokenizer_agreement == parity.template_agreement == 1
    assert parity.max_logprob_difference < 1e-3
    assert read_manifest(tmp_path / "out").parity == parity


@pytest.mark.parametrize(
    ("kind", "quant", "wide"),
    [
        ("ctranslate2", "int8", "float32"),
        pytest.param("onnx", "int4", "fp32", marks=pytest.mark.slow),
    ],
)
def test_fewer_bits_are_near_and_smaller(tmp_path, kind, quant, wide):
    source = tiny_llama(tmp_path / "m", hidden=64)
    artefact = exported(source, tmp_path / "out", kind, quant)
    assert checked(source, artefact).mean_kl_nats < {"int8": 0.01, "int4": 0.1}[quant]
    larger = exported(source, tmp_path / "wide", kind, wide)
    sizes = [
        sum(file.num_bytes for file in read_manifest(f.parent).files) for f in (artefact, larger)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(("kind", "quant"), EXACT)
def test_an_answer_ends_where_the_source_ends_it(tmp_path, kind, quant):
    source = talkative(tmp_path / "m")
    artefact = exported(source, tmp_path / "out", kind, quant)
    checked(source, artefact)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
    )
    ids = render_prompt(tokenizer, PROMPTS[0])
    said = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
    assert said[-1] == tokenizer.eos_token_id and 1 < len(said) < 24
    asked = open_chat_model(find_model(str(artefact.parent)))
    record = Record(id="1", messages=PROMPTS[0])
    response = asyncio.run(asked.respond(record, Sampling(max_new_tokens=24)))
    assert response.finish_reason == "stop"
    assert response.text == tokenizer.decode(said[:-1], skip_special_tokens=True)
    assert response.num_new_tokens == len(said)


@pytest.mark.parametrize(("kind", "quant"), EXACT)
def test_an_artefact_of_other_weights_is_refused_and_removed(tmp_path, kind, quant):
    artefact = exported(tiny_llama(tmp_path / "a", hidden=64), tmp_path / "out", kind, quant)
    with pytest.raises(ExportError, match="argmax_agreement is"):
        checked(tiny_llama(tmp_path / "b", hidden=64, seed=1), artefact)
    assert not artefact.parent.exists()


@pytest.mark.parametrize(("kind", "quant"), EXACT)
@pytest.mark.parametrize("spoilt", ["template", "end"])
def test_another_template_or_end_of_turn_in_the_artefact_is_refused(tmp_path, kind, quant, spoilt):
    source = tiny_llama(tmp_path / "m", hidden=64)
    artefact = exported(source, tmp_path / "out", kind, quant)
    if spoilt == "template":
        template = artefact.parent / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|im_end|>", ""))
    else:
        name = "genai_config.json" if kind == "onnx" else "generation_config.json"
        text = (artefact.parent / name).read_text()
        tree = json.loads(text)
        (tree["model"] if kind == "onnx" else tree)["eos_token_id"] = [2]
        (artefact.parent / name).write_text(json.dumps(tree))
    with pytest.raises(ExportError, match="template_agreement is 0 and must be at least 1"):
        checked(source, artefact)
    assert not artefact.parent.exists()


def with_two_heads(path):
    """A tiny Llama whose feed-forward layers are as wide as its vocabulary."""
    tokenizer = tiny_tokenizer(path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_a_model_in_which_the_onnx_builder_would_mistake_a_layer_for_the_head_is_refused(tmp_path):
    needs_engine("onnx")
    source = with_two_heads(tmp_path / "m")
    with pytest.raises(ExportError, match=r"mlp\.gate_proj has 421 outputs.*pad the vocabulary"):
        export_onnx(source, tmp_path / "out", quant="fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_the_builder_makes_of_two_heads_does_not_pass_the_gate_either(tmp_path):
    needs_engine("onnx")
    source, folder = with_two_heads(tmp_path / "m"), tmp_path / "out"
    folder.mkdir()
    _build(source, folder, "fp32")
    write_manifest(folder, format="onnx", quant="fp32", main="model.onnx", source=source)
    with pytest.raises(ExportError, match="argmax_agreement is 0"):
        checked(source, folder / "model.onnx")


@pytest.mark.parametrize(
    ("make", "message"),
    [(export_ctranslate2, "int8, float32, got 'q3'"), (export_onnx, "int4, fp32, got 'q3'")],
)
def test_a_number_format_that_does_not_exist_is_refused(tmp_path, make, message):
    with pytest.raises(ExportError, match=message):
        make(tmp_path, tmp_path / "out", quant="q3")


@pytest.mark.parametrize("kind", ["ctranslate2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_architecture_that_the_library_does_not_know_leaves_nothing(tmp_path, kind):
    from transformers import CTRLConfig, CTRLLMHeadModel

    source = tmp_path / "m"
    tiny_tokenizer(source)
    config = CTRLConfig(vocab_size=421, n_positions=64, n_embd=32, dff=48, n_layer=1, n_head=2)
    config.max_position_embeddings = 64
    CTRLLMHeadModel(config).save_pretrained(source)
    with pytest.raises(ExportError, match="refuses"):
        exported(source, tmp_path / "out", kind, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quant"), [("ctranslate2", "float32"), ("onnx", "fp32")])
def test_the_demos_model_says_the_same_in_both_engines(tmp_path, smollm2, kind, quant):
    source = cached_folder(smollm2)
    artefact = exported(source, tmp_path / "out", kind, quant)
    parity = checked(source, artefact, (PROMPTS[0], TURNS))
    assert parity.passed and parity.num_tokens > 20
