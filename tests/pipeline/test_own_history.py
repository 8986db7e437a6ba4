"""A conversation's run asks on the model's own answers, says so, and is not asked twice."""

import json
import sqlite3

import yaml
from tiny import tiny_llama

from potstill.config import load_config
from potstill.examine.reuse import store_path
from potstill.pipeline import distill
from potstill.rundir import RunDir, read_jsonl
from potstill.types import Sample

QUESTIONS = ("Hello {}?", "And for {} days?")


def dialogue(i):
    roles = ("user", "assistant", "user", "assistant")
    texts = (QUESTIONS[0].format(i), f"Yes, {i}.", QUESTIONS[1].format(i), f"{i + 1} days.")
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    return {"id": f"d{i}", "messages": messages}


def num_kept():
    with sqlite3.connect(store_path()) as db:
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]


def test_two_runs_on_own_answers_ask_once_and_say_what_they_do_not_show(tmp_path):
    rows = [json.dumps(dialogue(i)) + "\n" for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    teacher, student = tiny_llama(tmp_path / "teacher"), tiny_llama(tmp_path / "student", seed=1)
    tree = {
        "name": "own",
        "task": "conversation",
        "teacher": str(teacher),
        "student": str(student),
        "train_data": "train.jsonl",
        "data": {"test": 0.4, "validation": 0.1},
        "generation": {"max_new_tokens": 4, "pilot": 0, "min_success_ratio": 0, "temperature": 0},
        "checks": [],
        "train": {"max_steps": 1, "precision": "fp32"},
        "evaluate": {"history": "own", "num_latency_calls": 0, "num_trial": 0},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "distill.yaml")
    first = distill(config, RunDir(tmp_path / "one"))
    kept = num_kept()
    second = distill(config, RunDir(tmp_path / "two"))
    num_answers = first.models["teacher"].metrics["accuracy"].n
    assert kept == num_kept() == 3 * num_answers  # one seed: the students are the same
    for role in first.models:
        assert second.models[role].metrics == first.models[role].metrics
    signature = first.models["distilled"].metrics["accuracy"].signature
    assert signature.endswith("each turn on the model's own answers before it")
    assert "a user would have reacted to another answer" in first.limits[0]
    samples = read_jsonl(RunDir(tmp_path / "one").samples("teacher"), Sample)
    for before, after in zip(samples[::2], samples[1::2], strict=True):
        assert after.prompt[1].content == before.text.strip()
