"""An adapter's export is base and updates apart, and together they are the student."""

import json

import pytest
from tiny import tiny_llama
from training import quick, rows, run_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import LossConfig
from potstill.errors import ExportError
from potstill.export.huggingface import export_huggingface
from potstill.export.manifest import read_manifest
from potstill.export.parity import check_artefact
from potstill.models.weights import load_weights
from potstill.pipeline.artefacts import make_artefact, own_prompts
from potstill.train.loop import fine_tune_student
from potstill.types import Message

PROMPTS = [(Message(role="user", content=text),) for text in ("Where is my order?", "No.")]


def trained(place, **changes):
    """A run whose student learnt a little."""
    base = tiny_llama(place / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    run = run_dir(place / "run")
    settings = quick(learning_rate=0.1, **changes)
    fine_tune_student(
        model, tokenizer, rows(tokenizer), [],
        loss=LossConfig(kind="sft"), train=settings, targets=None, out=run,
    )  # fmt: skip
    return run


def test_base_and_adapter_together_are_the_student(tmp_path):
    run = trained(tmp_path, adapter="lora")
    made = make_artefact(run.model, run.export("huggingface:adapter"), "huggingface:adapter",
                         own_prompts())  # fmt: skip
    manifest = read_manifest(made.file)
    assert manifest.parity.passed
    assert manifest.main == "adapter_model.safetensors"
    assert str(tmp_path / "base") in manifest.notes[0]
    model, _ = load_weights(made.file)
    student, _ = load_weights(run.model)
    for ours, theirs in zip(model.parameters(), student.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-6
    assert made.num_bytes < sum(f.stat().st_size for f in run.model.iterdir())


def test_an_adapter_of_another_training_is_not_equal(tmp_path):
    run = trained(tmp_path, adapter="lora")
    other = trained(tmp_path / "other", adapter={"r": 4, "alpha": 64.0}, seed=3)
    folder = export_huggingface(run.model, run.export("huggingface:adapter"), quant="adapter")
    with pytest.raises(ExportError, match="is not equal to"):
        check_artefact(other.model, folder / "adapter_model.safetensors", PROMPTS, min_prompts=2)
    assert not folder.exists()


def test_a_student_that_was_trained_whole_has_no_adapter(tmp_path):
    run = trained(tmp_path, adapter="lora")
    assert (run.adapter / "adapter_config.json").exists()
    run = trained(tmp_path)
    assert not run.adapter.exists()
    with pytest.raises(ExportError, match=r"trained without train\.adapter: lora"):
        export_huggingface(run.model, tmp_path / "out", quant="adapter")
    assert not (tmp_path / "out").exists()


def test_a_base_from_the_hub_is_named_as_the_hub_names_it(tmp_path):
    run = trained(tmp_path, adapter="lora")
    place = run.adapter / "adapter_config.json"
    cache = "/cache/hub/models--maker--small-1b/snapshots/0f00ba"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": cache}))
    folder = export_huggingface(run.model, tmp_path / "out", quant="adapter")
    tree = json.loads((folder / "adapter_config.json").read_text())
    assert (tree["base_model_name_or_path"], tree["revision"]) == ("maker/small-1b", "0f00ba")
