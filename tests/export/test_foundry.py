"""Foundry Local's file says what the chat template says."""

import json

import pytest
from installed import needs_engine
from tiny import tiny_llama, tiny_tokenizer

from potstill.data.render import render_prompt
from potstill.export.foundry import CONTENT, inference_model
from potstill.export.onnx_genai import export_onnx
from potstill.models.embedded import open_embedded
from potstill.types import Message

PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
FIRST_TURN_DIFFERS = (
    "{% for m in messages %}{{ loop.index }}: {{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def test_chatml_is_cut_into_one_piece_for_each_role():
    found = inference_model("faq-int4", tiny_tokenizer())
    assert found == {
        "Name": "faq-int4",
        "PromptTemplate": {
            "system": "<|im_start|>system\n{Content}<|im_end|>\n",
            "user": "<|im_start|>user\n{Content}<|im_end|>\n",
            "assistant": "<|im_start|>assistant\n{Content}<|im_end|>\n",
            "prompt": "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant\n",
        },
    }


def test_a_template_that_is_not_chatml_is_read_off_all_the_same():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PHI
    pieces = inference_model("phi", tokenizer)["PromptTemplate"]
    assert pieces["system"] == "<|system|>{Content}<|end|>"
    assert pieces["prompt"] == "<|user|>{Content}<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(NO_SYSTEM, "[user]{Content}[a]"), (FIRST_TURN_DIFFERS, "1: {Content};>")],
)
def test_a_template_that_cannot_be_cut_keeps_the_single_question(template, prompt):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    pieces = inference_model("m", tokenizer)["PromptTemplate"]
    assert pieces == {"assistant": CONTENT, "prompt": prompt}


@pytest.mark.slow
def test_a_conversation_put_together_from_the_pieces_is_what_the_source_is_asked(tmp_path):
    needs_engine("onnx")
    artefact = export_onnx(tiny_llama(tmp_path / "faq", hidden=64), tmp_path / "out", quant="fp32")
    told = json.loads((tmp_path / "out" / "inference_model.json").read_text())
    assert told["Name"] == "faq-fp32"
    assert (tmp_path / "out" / "genai_config.json").is_file()
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Where?")]
    pieces = told["PromptTemplate"]
    roles = [*(role for role, _ in turns[:-1]), "prompt"]
    text = "".join(
        pieces[role].replace(CONTENT, said) for role, (_, said) in zip(roles, turns, strict=True)
    )
    engine = open_embedded(artefact.parent)
    messages = [Message(role=role, content=said) for role, said in turns]
    assert engine.encode(text) == render_prompt(tiny_tokenizer(), messages)
