"""Standard output is the answer, standard error the conversation; a stopped run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from potstill.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_the_schema_is_json_on_standard_output(capsys):
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Potstill distillation"


def test_every_command_takes_json_and_offline():
    import typer.main

    from potstill.cli import app

    def walk(command):
        children = getattr(command, "commands", None)
        if children is None:
            yield command
        for child in (children or {}).values():
            yield from walk(child)

    for command in walk(typer.main.get_command(app)):
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--offline"} <= options, command.name
        assert "Example:" in (command.help or ""), command.name


def test_init_writes_a_config_that_loads(tmp_path, monkeypatch):
    from potstill.config import load_config

    monkeypatch.chdir(tmp_path)
    assert run("init", "math") == 0
    assert load_config(tmp_path / "distill.yaml").task == "math"
    assert run("init", "math") == 2


def test_data_check_says_what_is_in_a_file(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a?", "answer": "b"}\n{"question": "c?"}\n')
    assert run("data", "check", str(file), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_records"], found["num_references"]) == (2, 1)


def test_models_list_holds_the_tutorials_models(capsys):
    assert run("models", "list", "--json") == 0
    names = {ref["name"] for ref in json.loads(capsys.readouterr().out)}
    assert {"deepseek-v3", "phi-4-mini", "smollm2-135m"} <= names


def test_doctor_names_every_extra(capsys):
    assert run("doctor", "--json") == 0
    extras = json.loads(capsys.readouterr().out)["extras"]
    assert set(extras) == {"train", "data", "export", "serve", "ctranslate2", "onnx"}
    assert extras["train"]["torch"]


def test_doctor_says_what_lives_in_an_environment_of_its_own_and_why(capsys):
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "lm_eval" in said and "it needs transformers below 5" in said
    assert "torch 2." in said


@pytest.mark.journey
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_goes_on_with_the_same_command(number, tmp_path):
    from tiny import tiny_llama

    rows = [{"question": f"What is {i}?", "answer": f"it is {i}"} for i in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(tiny_llama(tmp_path / "model"))
    tree = {
        "name": "stop",
        "task": "qa",
        "teacher": model,
        "student": model,
        "train_data": "train.jsonl",
        "generation": {"pilot": 0, "max_new_tokens": 6, "min_success_ratio": 0},
        "checks": [],
        "train": {"max_steps": 250, "precision": "fp32", "early_stopping": False},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    metrics = tmp_path / "runs" / "stop" / "metrics.jsonl"
    command = [sys.executable, "-m", "potstill.cli", "train", "distill.yaml"]
    there = {"cwd": tmp_path, "env": dict(os.environ), "text": True}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell without job control starts background processes deaf to SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **there,
    )
    deadline = time.monotonic() + 120
    while _steps(metrics) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, conversation = process.communicate(timeout=60)
    assert process.returncode == 128 + number, conversation
    assert not (tmp_path / "runs" / "stop" / "model").exists()

    done = subprocess.run(command, capture_output=True, **there)
    assert done.returncode == 0, done.stderr
    assert "(done before)" in done.stderr
    assert _steps(metrics) >= 250
    assert (tmp_path / "runs" / "stop" / "model" / "config.json").exists()


def _steps(metrics: Path) -> int:
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_the_number_of_processes_is_a_key_of_the_config(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("init", "math") == 0
    assert run("train", "distill.yaml", "--processes", "65") == 2
    assert "train.processes" in capsys.readouterr().err
