"""The smallest artefact that is good enough is named; where none is, that is an error."""

import json

import pytest
import yaml
from tiny import tiny_llama

from potstill.cli import main
from potstill.errors import ConfigError, ExportError
from potstill.pipeline.best import first_that_holds, judged, made
from potstill.rundir import RunDir
from potstill.types import Estimate, Evaluation

SIZES = {"gguf:f16": 400, "gguf:q8_0": 200, "gguf:q4_0": 100}


def evaluations(**values):
    named = {"distilled": 0.80, "gguf:f16": 0.80, "gguf:q8_0": 0.79, "gguf:q4_0": 0.70, **values}
    return {
        role: Evaluation(role=role, id=role, metrics={"accuracy": Estimate(value=value, n=100)})
        for role, value in named.items()
    }


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("accuracy >= 0.98 * student", "gguf:q8_0"),
        ("accuracy >= 1.0 * student", "gguf:f16"),
        ("accuracy >= 0.8 * student", "gguf:q4_0"),
        ("accuracy >= 0.9 * teacher", "gguf:q8_0"),
        ("accuracy >= 0.795", "gguf:f16"),
    ],
)
def test_the_smallest_that_holds_is_chosen(rule, name):
    rows = judged(rule, SIZES, evaluations(teacher=0.85))
    assert [row.num_bytes for row in rows] == [100, 200, 400]
    assert first_that_holds(rows, rule).name == name


def test_what_did_not_hold_is_told_with_its_value_and_the_limit():
    rule = "accuracy >= 1.1 * student"
    with pytest.raises(ExportError, match=r"gguf:q4_0 0\.700 against 0\.880.*gguf:f16 0\.800"):
        first_that_holds(judged(rule, SIZES, evaluations()), rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("acuracy >= 0.9 * student", "--best: .*did you mean accuracy"),
        ("accuracy >= 0.9 * teacher", "--best: .*needs 'teacher'"),
        ("__import__('os')", "--best: .*is not a rule"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        judged(rule, SIZES, evaluations())


@pytest.mark.journey
def test_a_runs_files_are_asked_the_test_set_and_one_is_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"what is {i}?", "answer": f"{i}"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "small",
        "task": "qa",
        "teacher": str(tiny_llama(tmp_path / "teacher", hidden=64)),
        "student": str(tiny_llama(tmp_path / "student", hidden=64, seed=1)),
        "train_data": "train.jsonl",
        "data": {"test": 0.2},
        "generation": {"max_new_tokens": 4, "pilot": 0, "min_success_ratio": 0, "temperature": 0},
        "checks": [],
        "train": {"max_steps": 1, "precision": "fp32"},
        "evaluate": {"num_latency_calls": 0, "num_trial": 0, "baselines": [], "teacher": False},
        "export": ["gguf:f32"],
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    assert command("run", "distill.yaml") == 0
    run = RunDir(tmp_path / "runs" / "small")
    again = ["export", "small", "--to", "gguf:q8_0", "--best", "accuracy >= 1.0 * student"]
    capsys.readouterr()
    assert command(*again, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == "gguf:q8_0"
    assert [one["name"] for one in found["artefacts"]] == ["gguf:q8_0", "gguf:f32"]
    assert made(run, ()) == ("gguf:f32", "gguf:q8_0")
    assert run.evaluation("gguf:q8_0").exists()
    assert command("export", "small", "--best", "accuracy >= 2") == 1
    told = capsys.readouterr()
    assert "no artefact holds accuracy >= 2" in told.err
    assert told.out.count(" no ") == 2
    card = (run.export("gguf:q8_0") / "README.md").read_text()
    assert "llama-server -m model-q8_0.gguf" in card
    assert "Not compared" not in card
    assert str(tmp_path) not in card + run.dataset_card.read_text()
    assert not any(row["question"] in card + run.dataset_card.read_text() for row in rows)


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code
