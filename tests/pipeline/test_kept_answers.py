"""A model whose answers are all kept is not even opened."""

import json
import subprocess

import pytest
import transformers
import yaml
from installed import needs_engine
from tiny import tiny_llama

from potstill import evaluate
from potstill.config import load_config
from potstill.export.ctranslate import export_ctranslate2
from potstill.models.chat import open_chat_model
from potstill.pipeline import distill
from potstill.rundir import RunDir
from potstill.types import Message, Record, Sampling

ROWS = [
    Record(id=str(i), messages=(Message(role="user", content=f"Who is {i}?"),), reference="Ann")
    for i in range(6)
]


class Opened(Exception):
    """Something was read or started that need not have been."""


@pytest.fixture
def shut(monkeypatch):
    """From when it is called on, weights cannot be read and no process be started."""

    def refuse(*given, **named):
        raise Opened

    def shut():
        import ctranslate2

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
        monkeypatch.setattr(ctranslate2, "Generator", refuse)
        monkeypatch.setattr(subprocess, "Popen", refuse)

    needs_engine("ctranslate2")
    return shut


def asked(place, rows=ROWS):
    return evaluate(place, rows, task="qa", sampling=Sampling(max_new_tokens=3))


@pytest.mark.parametrize(
    "kind", ["huggingface", "ctranslate2", pytest.param("gguf", marks=pytest.mark.slow)]
)
def test_an_evaluation_whose_answers_are_all_kept_opens_no_model(kind, tmp_path, shut, request):
    place = tiny_llama(tmp_path / "m")
    if kind == "ctranslate2":
        export_ctranslate2(place, tmp_path / "out", quant="float32")
        place = tmp_path / "out"
    elif kind == "gguf":
        place = request.getfixturevalue("smollm2").source
    first = asked(place)
    shut()
    assert asked(place) == first
    assert (first.num_parameters is None) == (kind != "huggingface")
    with pytest.raises(Opened):
        asked(place, [Record(id="new", messages=(Message(role="user", content="Why?"),))])


def test_what_is_told_of_weights_is_the_same_before_they_are_read(tmp_path):
    place = tiny_llama(tmp_path / "m")
    now, later = open_chat_model(place), open_chat_model(place, when_asked=True)
    for name in ("name", "num_parameters", "dtype", "device", "setting", "known_as", "identity",
                 "max_in_flight", "vocab_fingerprint"):  # fmt: skip
        assert getattr(now, name) == getattr(later, name), name


def test_a_run_asked_again_with_its_answers_kept_reads_no_weights(tmp_path, shut):
    rows = [{"id": str(i), "question": f"Who is {i}?", "answer": f"Ann {i}"} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "kept",
        "task": "qa",
        "teacher": str(tiny_llama(tmp_path / "teacher")),
        "student": str(tiny_llama(tmp_path / "student", seed=1)),
        "train_data": "train.jsonl",
        "data": {"test": 0.4, "validation": 0.1},
        "generation": {"max_new_tokens": 4, "pilot": 0, "min_success_ratio": 0, "temperature": 0},
        "checks": [],
        "train": {"max_steps": 1, "precision": "fp32"},
        "evaluate": {"num_latency_calls": 0, "num_trial": 0},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    config, run = load_config(tmp_path / "distill.yaml"), RunDir(tmp_path / "run")
    first = distill(config, run)
    roles = ("teacher", "untouched", "distilled")
    assert set(first.models) == set(roles)
    for role in roles:
        run.mark(f"evaluate-{role}").unlink()
        run.evaluation(role).unlink()
        run.samples(role).unlink()
    shut()
    again = distill(config, run)
    assert {role: again.models[role] for role in roles} == {
        role: first.models[role] for role in roles
    }
