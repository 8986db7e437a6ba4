"""The tutorial's code runs as it is printed, with only its import lines changed."""

from pathlib import Path

import pytest

import potstill
from potstill import MLClient
from potstill.errors import ConfigError
from potstill.jobs.workspace import Workspace

HERE = Path(__file__).parent


def run(file, **names):
    code = (HERE / f"{file}.py.txt").read_text(encoding="utf-8")
    exec(compile(code, f"{file}.py", "exec"), names)
    return names


@pytest.mark.journey
def test_the_client_of_the_tutorial_runs_as_printed(desk, capsys):
    found = run("client")
    out = capsys.readouterr().out
    assert "Job status: " in out and "JobStatus." not in out
    assert "Performance improvement: " in out
    distilled, baseline = found["evaluation_results"], found["baseline_results"]
    assert (distilled.role, baseline.role) == ("distilled", "untouched")
    assert isinstance(distilled["accuracy"], float)
    assert distilled["inference_time"] > 0 and distilled["bleu_score"] >= 0
    assert baseline.metrics["accuracy"].n == 3
    assert found["ml_client"].jobs.get(found["job"].name).status == "Completed"


@pytest.mark.journey
def test_the_tutorial_run_again_distils_nothing_again(desk, capsys):
    run("client")
    found = run("client")
    assert found["job_status"].status == "Completed"
    assert found["job"].attempt == 1
    assert [model.version for model in found["ml_client"].models.list()] == [1, 1]


@pytest.mark.journey
def test_the_functions_of_the_tutorial_run_as_printed(desk):
    found = run("functions")
    taught = found["synthetic_training_data"]
    assert {record.reference for record in taught} == {"It will arrive on Monday."}
    assert (Path(found["trained_student"].source) / "config.json").exists()


@pytest.mark.journey
def test_the_tutorials_own_evaluation_names_run(desk):
    student, test = potstill.load_model("phi-4-mini"), potstill.load_dataset("test_data.jsonl")
    rows = potstill.generate_synthetic_data("deepseek-v3", potstill.load_dataset("test_data.jsonl"))
    assert rows[0]["input"] == "Where is my order 200?"
    assert rows[0]["teacher_output"] == "It will arrive on Monday."
    student = potstill.train_student_model(
        student, rows, learning_rate=1e-2, num_epochs=25, batch_size=1
    )
    assert potstill.evaluate_accuracy(student, test) == 1.0
    assert potstill.evaluate_task_performance(student, test)["rouge_l"] == 1.0
    assert 0 < potstill.measure_inference_time(student, num_calls=2) < 60
    assert potstill.profile_memory_consumption(student) > 100_000


@pytest.mark.parametrize("name", ["lerning_rate", "batchsize"])
def test_an_unknown_knob_of_the_plain_function_has_the_nearest_name(name):
    with pytest.raises(ConfigError, match=f"{name}: no such hyperparameter; did you mean"):
        potstill.fine_tune_student("phi-4-mini", [], **{name: 1, "num_epochs": 0})


def test_a_wrong_metric_is_refused_before_any_waiting(tmp_path):
    client = MLClient(Workspace(home=tmp_path))
    with pytest.raises(ConfigError, match="acuracy"):
        client.models.evaluate("phi-4-mini-distilled", "./test_data.jsonl", metrics=["acuracy"])


def test_the_public_names_of_the_tutorial_are_potstills():
    for name in (
        "load_dataset load_model generate_teacher_responses fine_tune_student evaluate "
        "evaluate_accuracy measure_inference_time profile_memory_consumption "
        "evaluate_task_performance generate_synthetic_data train_student_model MLClient"
    ).split():
        assert callable(getattr(potstill, name))
