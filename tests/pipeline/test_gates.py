"""A gate is read before anything is spent, and fails closed: exit code 3, nothing published."""

import json
import subprocess
import sys

import pytest
import yaml
from examine.fake_report import fake_report
from fake_lm_eval import fake_lm_eval
from tiny import tiny_llama

from potstill.cli import main
from potstill.config import load_config
from potstill.errors import ConfigError, GateFailed
from potstill.pipeline import distill
from potstill.pipeline.story import _refuse_missed_gates
from potstill.rundir import RunDir, write_text


@pytest.fixture
def place(tmp_path):
    """A config of two tiny models and sixteen rows."""
    rows = [{"question": f"what is {i}?", "answer": f"{i}"} for i in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "gated",
        "task": "qa",
        "teacher": str(tiny_llama(tmp_path / "teacher")),
        "student": str(tiny_llama(tmp_path / "student", seed=1)),
        "train_data": "train.jsonl",
        "data": {"test": 0.3, "validation": 0.1},
        "generation": {"max_new_tokens": 4, "pilot": 0, "min_success_ratio": 0, "temperature": 0},
        "checks": [],
        "train": {"max_steps": 1, "precision": "fp32"},
        "evaluate": {"num_latency_calls": 0, "num_trial": 0, "baselines": []},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def test_a_gate_that_cannot_be_read_is_refused_before_anything_runs(place):
    for rule, message in (
        ("acuracy >= 0.9", "did you mean accuracy"),
        ("accuracy >= 0.9 * majority", "needs 'majority', which this run does not evaluate"),
    ):
        config = load_config(place / "distill.yaml", [f"evaluate.gates=['{rule}']"])
        with pytest.raises(ConfigError, match=message):
            distill(config, RunDir(place / "run"))
    assert not RunDir(place / "run").records.exists()


def test_gates_without_a_test_set_are_refused(place):
    with pytest.raises(ConfigError, match=r"evaluate\.gates are rules .*data\.test names none"):
        load_config(place / "distill.yaml", ["evaluate.gates=['accuracy >= 0']", "data.test=null"])


def test_a_gate_that_nothing_was_compared_for_has_not_passed(place):
    config = load_config(place / "distill.yaml", ["evaluate.gates=['accuracy >= 0']"])
    run = RunDir(place / "run")
    run.mark_done("split", "x", num_test=0)
    write_text(run.report_json, fake_report(n=60).model_dump_json())  # of an earlier config
    with pytest.raises(GateFailed, match="nothing was compared"):
        _refuse_missed_gates(config, run)


def test_a_missed_gate_ends_run_and_compare_with_exit_code_3(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    rule = "evaluate.gates=['accuracy >= 0.5', 'truncation_rate <= 1']"
    for command in ("run", "compare"):
        with pytest.raises(SystemExit) as stop:
            main([command, "distill.yaml", rule])
        told = capsys.readouterr()
        assert stop.value.code == 3, told.err
        assert "quality gate not met: accuracy >= 0.5 (0" in told.err
        assert "truncation_rate" not in told.err.splitlines()[-1]
    with pytest.raises(SystemExit) as stop:
        main(["run", "distill.yaml", "evaluate.gates=['truncation_rate <= 1']"])
    assert stop.value.code == 0


WITHOUT_MODELS = """
import sys
for name in ("torch", "transformers", "peft", "accelerate"):
    sys.modules[name] = None
from potstill.cli import main
main(["report", sys.argv[1]])
"""


def test_a_report_is_drawn_again_without_any_model(tmp_path):
    run = RunDir(tmp_path / "run")
    write_text(run.report_json, fake_report(n=60, gates=("accuracy >= 2",)).model_dump_json())
    write_text(run.config, "name: x\n")
    command = [sys.executable, "-c", WITHOUT_MODELS, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gate FAILED: accuracy >= 2" in done.stdout
    assert "accuracy &gt;= 2" in run.report_html.read_text()
    assert run.report_markdown.exists()


def test_figures_of_lm_eval_stand_beside_the_others_and_can_be_gates(place):
    fake_lm_eval(place)
    wanted = [
        "evaluate.baselines=[untouched]",
        "evaluate.general_tasks=[arc_easy]",
        "evaluate.lm_eval=lm_eval",
    ]
    config = load_config(
        place / "distill.yaml",
        [*wanted, "evaluate.gates=['general.arc_easy.acc >= 0.95 * untouched']"],
    )
    report = distill(config, RunDir(place / "run"))
    found = report.models["distilled"].metrics["general.arc_easy.acc"]
    assert (found.value, found.n) == (0.5, 100)
    assert found.note.startswith("untouched 0.500; +0.000") and found.note.endswith(", paired")
    drift = report.comparisons[-1]
    assert (drift.metric, drift.n, drift.discordant) == ("general.arc_easy.acc", 100, 0)
    assert report.models["untouched"].metrics["general.arc_easy.acc"].note == ""
    assert [gate["passed"] for gate in report.gates] == [True]
    with pytest.raises(ConfigError, match=r"name its command with evaluate\.lm_eval"):
        load_config(place / "distill.yaml", wanted[:2])
