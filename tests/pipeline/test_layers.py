"""A run whose student learns from the teacher's layers, and one whose student is cut."""

import json

import pytest
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from potstill.config import parse_config
from potstill.pipeline.context import Context
from potstill.pipeline.prepare import prepare
from potstill.pipeline.train import train
from potstill.rundir import RunDir, write_jsonl
from potstill.types import Message, Record


@pytest.fixture
def begin(tmp_path):
    """A run whose teacher has answered; more config by keyword."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    asked = (Message(role="user", content="Where is my order?"),)
    answers = [Record(id=str(n), messages=asked, reference=f"On day {n}.") for n in range(4)]
    for path, part in (
        (run.train, answers),
        (run.accepted, answers),
        (run.accepted_validation, []),
    ):
        write_jsonl(path, part)
    write_jsonl(run.validation, [])
    student = str(tiny_llama(tmp_path / "student"))

    def make(seed=1, **changes):
        teacher = tiny_llama(tmp_path / f"teacher-{seed}", layers=4, hidden=48, seed=seed)
        tree = {
            "name": "x", "task": "conversation", "teacher": str(teacher), "student": student,
            "train_data": "a.jsonl", "evaluate": {"baselines": ["untouched", "text"]},
            "train": {"max_steps": 2, "batch_size": 4, "precision": "fp32"}, **changes,
        }  # fmt: skip
        return Context(parse_config(tree), run)

    return make


def figures(ctx):
    return [json.loads(line) for line in ctx.run.metrics.read_text().splitlines()]


def test_a_run_learns_from_the_layers_of_its_teacher(begin):
    loss = {"hidden": {"layers": "last"}, "attention": "value"}
    ctx = begin(loss=loss)
    train(ctx)
    first = figures(ctx)[0]
    assert {"train/hidden_cosine", "train/attention_nats"} <= first.keys()
    mark = ctx.run.facts("train")["finished_at"]
    train(ctx)
    assert ctx.run.facts("train")["finished_at"] == mark
    train(begin(seed=2, loss=loss))
    assert ctx.run.facts("train")["finished_at"] != mark
    assert figures(ctx)[0]["train/hidden_cosine"] != first["train/hidden_cosine"]


@pytest.mark.parametrize("by", ["influence", "greedy"])
def test_a_student_cut_in_depth_and_width_is_reported_beside_its_weights(begin, tmp_path, by):
    base = str(tiny_llama(tmp_path / "base", layers=4, hidden=64))
    cut = {"from": base, "layers": 2, "by": by, "ffn": 40, "kv_heads": 1}
    ctx = begin(student={"prune": cut})
    prepare(ctx)
    model = AutoModelForCausalLM.from_pretrained(ctx.run.untouched)
    config = model.config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 40)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 16)
    found = json.loads(ctx.run.cut.read_text())
    assert found["parameters_kept"] == model.num_parameters() < found["parameters"]
    assert len(found["keep"]) == 2 and len(found["scores"]) == (4 if by == "influence" else 2)
    assert [len(kept) for kept in found["channels_kept"]] == [40, 40]
    assert all(0 < share < 1 for share in found["activity_kept"]["channels"])
    assert found["ffn"] == {"of": 192, "kept": 40}
    text = ctx.run.facts("prepare")["text"]
    assert text == found["text"]
    assert "2 of 4 layers kept" in text and "40 of 192 feed-forward channels" in text
    assert "1 of 2 key-value heads" in text and "million weights" in text
