"""A wrong question gets exit code 2, the place, the finding and the way out; nothing is started."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from potstill.cli import main

ROWS = [{"question": f"What is item {i}?", "answer": f"thing {i}"} for i in range(20)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with good data, a good config and two tiny models."""
    from tiny import tiny_llama

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tree = {
        "name": "bad",
        "task": "qa",
        "teacher": str(tiny_llama(tmp_path / "teacher")),
        "student": str(tiny_llama(tmp_path / "student", seed=1)),
        "train_data": "train.jsonl",
        "data": {"test": 0.2},
        "generation": {"pilot": 0, "max_new_tokens": 4, "min_success_ratio": 0},
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def rows_with(change: dict[int, object]) -> str:
    lines = [json.dumps(row) for row in ROWS]
    for number, line in change.items():
        lines[number - 1] = line if isinstance(line, str) else json.dumps(line)
    return "".join(line + "\n" for line in lines)


BAD_FILES = {
    "a missing file": (None, "train.jsonl", "no such file"),
    "an empty file": ("", "train.jsonl", "empty"),
    "broken JSON in row 17": (rows_with({17: '{"question": "x", '}), "train.jsonl:17", "JSON"),
    "wrong columns": (rows_with({3: {"frage": "x", "antwort": "y"}}), ":3", "frage"),
    "no user turn": (
        rows_with({5: {"messages": [{"role": "assistant", "content": "x"}]}}),
        ":5",
        "user",
    ),
    "empty content": (rows_with({6: {"question": "  ", "answer": "x"}}), ":6", "empty"),
    "the answer in the prompt": (
        rows_with({7: {"question": "What is it?\nAnswer: blue teapot", "answer": "blue teapot"}}),
        ":7",
        "answer",
    ),
    "two rows with one id": (
        rows_with({8: {"id": "a", "question": "x?"}, 9: {"id": "a", "question": "y?"}}),
        "'a'",
        ":8",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_is_named_with_its_line(name, place, capsys):
    text, *expected = BAD_FILES[name]
    file = place / "train.jsonl"
    file.unlink()
    if text is not None:
        file.write_text(text)
    assert run("run", "distill.yaml") == 2
    error = capsys.readouterr().err
    assert all(part in error for part in expected), error
    assert not (place / "runs" / "bad" / "data").exists()


def test_invalid_utf8_is_named_with_its_line(place, capsys):
    data = (place / "train.jsonl").read_bytes().splitlines(keepends=True)
    data[3] = b'{"question": "caf\xe9?", "answer": "x"}\n'
    (place / "train.jsonl").write_bytes(b"".join(data))
    assert run("run", "distill.yaml") == 2
    error = capsys.readouterr().err
    assert ":4" in error
    assert "UTF-8" in error


def test_a_byte_order_mark_is_no_mistake(place):
    data = (place / "train.jsonl").read_bytes()
    (place / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    assert run("load", "distill.yaml") == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task=quiz", ["task:", "'qa'"]),
        ("teacher=phi-4-mimi", ["no model is called 'phi-4-mimi'", "phi-4-mini"]),
        ("student=phi-4-mimi", ["no model is called 'phi-4-mimi'", "phi-4-mini"]),
        ("loss.kind=forward_kll", ["loss.kind", "did you mean forward_kl?"]),
        ("evaluate.metrics=[accurracy]", ["accurracy", "accuracy"]),
        ("checks=[finnished]", ["finnished", "did you mean finished?"]),
        ("export=[ggfu]", ["ggfu", "gguf"]),
        ("data.test=train.jsonl", ["no training records are left", "leak"]),
        ("student=https://teacher.example/v1", ["is an endpoint"]),
        ("data.group_by=customer", ["customer"]),
        ("train.max_tokens=12", ["longer than", "12"]),
    ],
)
def test_a_mistake_in_the_config_is_explained(override, expected, place, capsys):
    overrides = [override]
    if "group_by" in override:
        overrides.append("data.split_by=group")
    assert (
        run(
            "run",
            "distill.yaml",
            *overrides,
            "checks=[]" if "checks" not in override else "name=bad",
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "error: " in error
    assert all(part in error for part in expected), error
    assert not (place / "runs" / "bad" / "model").exists()


def test_probabilities_that_cannot_fit_are_refused_before_an_endpoint_is_called(place, capsys):
    code = run("run", "distill.yaml", "teacher=http://127.0.0.1:9/v1", "loss.kind=forward_kl")
    assert code == 2
    assert "logprobs_mode says nothing" in capsys.readouterr().err


def test_an_absent_key_is_found_before_anything_is_asked(place, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = "teacher={url: 'http://127.0.0.1:9/v1', model: m, key: 'env:NO_SUCH_KEY'}"
    assert run("run", "distill.yaml", teacher) == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    assert not (place / "runs" / "bad" / "data").exists()


def test_no_permission_to_write_is_exit_code_1(place):
    code = (
        "import errno, sys\n"
        "from potstill import rundir\n"
        "from potstill.cli import main\n"
        "def refuse(path, *_):\n"
        "    raise OSError(errno.EACCES, 'Permission denied', str(path))\n"
        "rundir.os.replace = refuse\n"
        "main(['load', 'distill.yaml'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 1
    assert "no permission to write" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'CONFIG'"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "--bad", "x"], "No such option: --bad"),
        (["run", "distill.yaml", "oops"], "write section.key=value"),
        (["report", "nope"], "no run is called 'nope'"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments, message, place, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
