"""`potstill export --heal`: refused before any work, or done with a run's own rows."""

import json
import random
import shutil

import pytest
import torch
import yaml
from tiny import LINES, tiny_llama

from potstill.cli import main
from potstill.config import load_config
from potstill.export.manifest import read_manifest
from potstill.models.weights import load_weights
from potstill.pipeline.context import Context
from potstill.pipeline.export import export
from potstill.rundir import RunDir, write_jsonl
from potstill.types import Message, Record

WORDS = " ".join(LINES).split()
HEALED = ["export", "faq", "--to", "gguf:q4_0", "--heal"]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def records(number, *, seed):
    draw = random.Random(seed)

    def one(place):
        prompt = Message(role="user", content=" ".join(draw.choices(WORDS, k=4)))
        answer = " ".join(draw.choices(WORDS, k=4))
        return Record(id=f"{seed}-{place}", messages=(prompt,), reference=answer)

    return [one(place) for place in range(number)]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Weights so large that 4 bits change what the model says."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    folder = tiny_llama(tmp_path / "model", hidden=64)
    found, _ = load_weights(folder)
    with torch.no_grad():
        for weight in found.parameters():
            if weight.ndim > 1:
                weight.mul_(4.0)
    found.save_pretrained(folder)
    return folder


@pytest.fixture
def finished(model, tmp_path):
    """A run as far as an export looks. It has no test set: healing has no use for one."""
    run = RunDir(tmp_path / "runs" / "faq")
    tree = {
        "name": "faq",
        "task": "qa",
        "teacher": str(model),
        "student": str(model),
        "train_data": str(tmp_path / "train.jsonl"),
        "train": {"precision": "fp32", "batch_size": 4},
        "export": ["gguf:q4_0"],
    }
    (tmp_path / "train.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    run.path.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(tree))
    shutil.copytree(model, run.model)
    for file in (run.train, run.accepted):
        write_jsonl(file, records(48, seed=1))
    for file in (run.validation, run.accepted_validation):
        write_jsonl(file, records(20, seed=2))
    return run


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--to", "gguf:q4_0", "--heal"], "no rows to heal with; give some with answers"),
        (["--heal"], "--heal says how --to is done; add --to FORMAT"),
        (["--to", "gguf:q8_0", "--heal"], "nothing to heal; --heal is for gguf:q4_0"),
        (
            ["--to", "gguf:q4_0", "--heal", "--prompts", "few.jsonl"],
            "0 rows to learn from and 0 validation records, and healing needs 32 and 16",
        ),
    ],
)
def test_what_cannot_be_healed_is_refused_before_anything_is_written(
    arguments, part, model, tmp_path, capsys
):
    row = '{{"question": "What is {}?"}}\n'
    (tmp_path / "few.jsonl").write_text("".join(row.format(i) for i in range(40)))
    before = sorted(tmp_path.rglob("*"))
    assert command("export", str(model), *arguments) == 2
    assert part in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_with_too_few_rows_is_told_so_and_keeps_its_files(finished, capsys):
    write_jsonl(finished.accepted_validation, records(15, seed=2))
    assert command(*HEALED) == 2
    assert "48 rows to learn from and 15 validation records" in capsys.readouterr().err
    assert not finished.exports.exists()
    assert not finished.mark("export-gguf:q4_0").exists()


@pytest.mark.slow
def test_a_run_is_healed_with_its_own_rows_and_keeps_that_file(finished, capsys):
    assert command(*HEALED, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "; healed: from" in row["text"]
    place = finished.export("gguf:q4_0")
    healing = read_manifest(place).healing
    assert (healing.kept, healing.num_rows, healing.gain.n) == (True, 44, 20)
    assert healing.gain.low > 0
    assert "- healed: from" in (place / "README.md").read_text()
    healed = (place / "model-q4_0.gguf").read_bytes()
    assert command(*HEALED) == 0
    assert "(done before)" in capsys.readouterr().err
    told = []
    export(Context(load_config(finished.config), finished, on_event=told.append))
    assert [event.kind for event in told] == ["skipped"]
    assert (place / "model-q4_0.gguf").read_bytes() == healed
    assert command("export", "faq", "--to", "gguf:q4_0") == 0
    assert (place / "model-q4_0.gguf").read_bytes() != healed
    assert read_manifest(place).healing is None


@pytest.mark.slow
def test_a_model_without_a_run_heals_with_the_rows_of_a_file(model, tmp_path, capsys):
    rows = [{"question": r.messages[0].content, "answer": r.reference} for r in records(90, seed=3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--to", "gguf:q4_1", "--heal", "--prompts", "rows.jsonl", "--out", "out"]
    assert command("export", str(model), *arguments) == 0, capsys.readouterr().err
    assert read_manifest(tmp_path / "out").healing.gain.n == 18
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out", "rows.jsonl"]
