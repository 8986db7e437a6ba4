"""`--device` says whether it fits and how fast it is, and ends with 1 where it does not."""

import json
from pathlib import Path

import pytest
import yaml
from installed import needs_engine
from tiny import tiny_llama

from potstill.cli import main
from potstill.export.gguf import export_gguf
from potstill.rundir import RunDir, write_jsonl, write_text
from potstill.types import Message, Record


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tiny_llama(tmp_path / "model"))


def left(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["export", "--to", "gguf", "--device", "fone-4gb"], ["did you mean phone-4gb?"]),
        (["bench", "--device", "pi-8"], ["did you mean pi-8gb?", "3gb:2:2048"]),
        (["export", "--device", "pi-8gb"], ["is no run", "potstill bench"]),
        (["export", "--to", "gguf", "--best", "accuracy >= 1", "--device", "3gb"], ["--best and"]),
    ],
)
def test_a_wrong_question_about_a_device_is_answered_before_anything_is_written(
    arguments, parts, model, tmp_path, capsys
):
    before = left(tmp_path)
    command, *options = arguments
    assert run(command, model, *options) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert left(tmp_path) == before


def test_weights_that_are_elsewhere_fit_no_device(capsys):
    assert run("bench", "http://127.0.0.1:9/v1", "--device", "pi-8gb") == 2
    assert "no weights on this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_made_file_is_run_as_on_the_device_and_the_figures_stay_beside_it(
    model, tmp_path, capsys
):
    pytest.importorskip("xllamacpp")
    arguments = ["--to", "gguf:f32", "--out", "out", "--device", "2gb:1:256"]
    assert run("export", model, *arguments, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    (trial,) = row["devices"]
    assert trial["fits"] and trial["limit_bytes"] == 2e9
    assert trial["metrics"]["tokens_per_second"]["value"] > 0
    kept = (tmp_path / "out" / "devices.jsonl").read_text().splitlines()
    assert [json.loads(line)["device"] for line in kept] == ["2gb:1:256"]
    assert json.loads(kept[0])["setting"]["threads"] == 1


@pytest.mark.slow
def test_all_of_a_runs_files_are_tried_on_its_own_prompts(model, tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    small = RunDir(tmp_path / "runs" / "small")
    tree = {"name": "small", "task": "qa", "train_data": "t.jsonl"}
    write_text(small.config, yaml.safe_dump({**tree, "teacher": model, "student": model}))
    asked = Record(id="1", messages=(Message(role="user", content="order " * 20),))
    write_jsonl(small.train, [asked])
    write_jsonl(small.validation, [])
    assert run("export", "small", "--device", "2gb:1:256") == 2
    assert "--to gguf:q8_0" in capsys.readouterr().err, "it has no files yet"
    for quant in ("f16", "q8_0"):
        export_gguf(Path(model), small.export(f"gguf:{quant}"), quant=quant)
    assert run("export", "small", "--device", "2gb:1:256", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == ["gguf:f16", "gguf:q8_0"]
    for one in found:
        lengths = one["trial"]["setting"]["prompt_tokens"]
        assert lengths["least"] == lengths["most"] > 20, "the one prompt of the run"
        assert (small.export(one["name"]) / "devices.jsonl").exists()


@pytest.mark.slow
def test_a_model_that_does_not_fit_ends_with_1_and_leaves_nothing_behind(model, tmp_path, capsys):
    needs_engine("ctranslate2")
    assert run("export", model, "--to", "ctranslate2:float32", "--out", "out") == 0
    capsys.readouterr()
    (tmp_path / "out" / "manifest.json").unlink()
    before = left(tmp_path)
    assert (
        run("bench", str(tmp_path / "out"), "--device", "40mb:1:256", "--device", "2gb:1:256") == 1
    )
    out, error = capsys.readouterr()
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("out")}
    assert " NO " in rows["40mb:1:256"] and " yes " in rows["2gb:1:256"]
    assert "out does not fit 40mb:1:256: it took more than 40 MB" in error
    assert "error:" in error and "fewer bits" in error
    assert "not the device's" in error
    assert left(tmp_path) == before
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if _is_ours(path, tmp_path)]


def _is_ours(cmdline, folder):
    try:
        return str(folder).encode() in cmdline.read_bytes()
    except OSError:
        return False
