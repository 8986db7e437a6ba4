"""`potstill export` writes what was proven equal, and refuses the rest before it begins."""

import json
import sys
import types
from pathlib import Path

import pytest
import yaml
from tiny import tiny_llama

from potstill.cli import main
from potstill.errors import ExportError
from potstill.export.parity import ENGINES
from potstill.pipeline.artefacts import (
    NUM_PROMPTS,
    Target,
    make_artefact,
    needed_bytes,
    own_prompts,
    refuse_early,
)
from potstill.rundir import RunDir, write_text


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_llama(tmp_path / "model")


def left(place):
    """What an export may have left behind, hidden files among it."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_a_model_folder_becomes_every_format_that_was_asked_for(model, tmp_path, capsys):
    arguments = ["--to", "huggingface:f32", "--to", "huggingface", "--out", "out", "--json"]
    assert run("export", str(model), *arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["huggingface:f32", "huggingface"]
    assert "100.0%" in rows[0]["text"]
    manifest = json.loads((tmp_path / "out" / "huggingface-f32" / "manifest.json").read_text())
    assert manifest["parity"]["passed"]
    assert manifest["parity"]["num_prompts"] >= 32
    assert "byte for byte" in rows[1]["text"]


@pytest.mark.slow
def test_a_gguf_file_of_a_model_is_compared_on_our_own_prompts(model, tmp_path, capsys):
    code = run("export", str(model), "--to", "gguf:f32", "--out", "student")
    assert code == 0, capsys.readouterr().err
    manifest = json.loads((tmp_path / "student" / "manifest.json").read_text())
    assert (manifest["parity"]["num_prompts"], manifest["parity"]["passed"]) == (32, True)
    assert manifest["parity"]["engine"] == "run_gguf"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--to", "ggfu"], ["no exporter is called 'ggfu'", "did you mean gguf?"]),
        (["--to", "gguf:q4"], ["did you mean gguf:q4_", "gguf:q8_0"]),
        (["--to", "gguf:q8_0", "--to", "huggingface:f64"], ["not written as 'f64'"]),
        (["--to", "gguf", "--limit", "kl=1"], ["--limit kl=1", "mean_kl_nats"]),
        (["--to", "gguf", "--limit", "mean_kl_nats=-1"], ["a number from 0 on"]),
        (["--to", "gguf", "--prompts", "few.jsonl"], ["holds 1 prompts", "needs 32"]),
        (["--to", "gguf", "train.max_steps=1"], ["changes a config"]),
        (["--out", "x"], ["add --to FORMAT"]),
        ([], ["is a model; say what to make of it"]),
        (["--to", "gguf", "--best", "accuracy => 1"], ["--best: 'accuracy => 1' is not a rule"]),
        (["--best", "accuracy >= 0.9"], ["--best compares a run's files"]),
        (["--print", "vlm"], ["no hand-over is called 'vlm'", "did you mean vllm?"]),
    ],
)
def test_a_wrong_question_is_answered_before_anything_is_written(
    arguments, parts, model, tmp_path, capsys
):
    (tmp_path / "few.jsonl").write_text('{"question": "Why?"}\n')
    before = left(tmp_path)
    changes = [one for one in arguments if one.startswith("train.")]
    options = [one for one in arguments if one not in changes]
    assert run("export", str(model), *changes, *options) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert left(tmp_path) == before


def test_a_folder_that_is_not_empty_is_left_alone(model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert run("export", str(model), "--to", "huggingface", "--out", "out") == 2
    assert "out is not empty" in capsys.readouterr().err
    assert left(tmp_path / "out") == ["mine.txt"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "has no tokenizer"),
        ("chat_template.jinja", "has no chat template"),
        ("model.safetensors", "must hold safetensors weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(missing, message, model, tmp_path, capsys):
    (model / missing).unlink()
    assert run("export", str(model), "--to", "huggingface:f32", "--out", "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_is_not_written_is_found_without_its_weights(model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    (model / "model.safetensors").write_bytes(b"nobody reads these")
    assert run("export", str(model), "--to", "gguf:q8_0", "--out", "out") == 1
    assert "activation 'gelu'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "what"), [("gguf", "GGUF"), ("xllamacpp", "llama.cpp")])
def test_an_absent_library_or_engine_is_found_with_the_way_to_get_it(
    package, what, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert run("export", str(model), "--to", "gguf", "--out", "out") == 2
    error = capsys.readouterr().err
    assert what in error
    assert 'pip install "potstill[export]"' in error
    assert not (tmp_path / "out").exists()


def test_what_was_not_proven_is_never_where_it_will_be(model, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(artefact, *_):
        assert not (tmp_path / "out").exists()
        raise Killed

    monkeypatch.setitem(ENGINES, "huggingface", "here:killed")
    monkeypatch.setitem(sys.modules, "here", types.SimpleNamespace(killed=killed))
    with pytest.raises(Killed):
        make_artefact(model, tmp_path / "out", "huggingface:f32", own_prompts())
    assert left(tmp_path) == [f"model/{name}" for name in left(model)]


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(model, tmp_path):
    with pytest.raises(ExportError, match=r"huggingface:f32 take about 32 MB, and 1 MB are free"):
        refuse_early(model, {"huggingface:f32": tmp_path / "a" / "out"}, free=1_000_000)
    refuse_early(model, {"huggingface:f32": tmp_path / "a" / "out"}, free=33_000_000)
    assert not (tmp_path / "a").exists()


def test_fewer_bits_need_less_room(model):
    sizes = [needed_bytes(model, Target("gguf", quant)) for quant in ("f32", "f16", "q8_0", "q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_what_differs_is_not_kept(model, tmp_path):
    with pytest.raises(ExportError, match="argmax_agreement is 1 and must be at least 2"):
        make_artefact(
            model, tmp_path / "out", "huggingface:f32", own_prompts(),
            limits={"argmax_agreement": 2.0},
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_our_own_prompts_are_enough_and_all_different():
    prompts = own_prompts()
    assert len(set(prompts)) == len(prompts) == NUM_PROMPTS


def test_a_hand_over_is_printed_and_nothing_is_made(model, tmp_path, capsys):
    before = left(tmp_path)
    assert run("export", str(model), "--print", "vllm", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(model)
    assert f"vllm serve {model}" in found["text"]
    assert run("export", str(model), "--print", "mlx") == 0
    assert capsys.readouterr().out.startswith("# model for mlx")
    assert left(tmp_path) == before


@pytest.fixture
def finished(model, tmp_path):
    """A run folder whose student is trained, as far as an export looks."""
    (tmp_path / "train.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    tree = {"name": "faq", "task": "qa", "teacher": str(model), "student": str(model)}
    folder = RunDir(tmp_path / "runs" / "faq")
    folder.path.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump({**tree, "train_data": str(tmp_path / "train.jsonl")}))
    tiny_llama(folder.model)
    return folder


def test_a_runs_artefact_goes_into_its_folder_and_is_made_once(finished, capsys):
    assert run("export", "faq", "--to", "huggingface:f32", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert Path(row["folder"]).resolve() == finished.export("huggingface:f32")
    assert finished.facts("export-huggingface:f32")["text"] == row["text"]
    made = (finished.export("huggingface:f32") / "manifest.json").stat().st_mtime_ns
    assert run("export", "faq", "--to", "huggingface:f32") == 0
    assert "(done before)" in capsys.readouterr().err
    assert (finished.export("huggingface:f32") / "manifest.json").stat().st_mtime_ns == made


def test_a_changed_limit_stands_in_the_manifest(finished):
    code = run("export", "faq", "--to", "huggingface:bf16", "--limit", "argmax_agreement=0.5")
    assert code == 0
    parity = json.loads((finished.export("huggingface:bf16") / "manifest.json").read_text())[
        "parity"
    ]
    assert parity["changed_limits"] == {"argmax_agreement": 0.5}
    assert parity["limits"]["argmax_agreement"] == 0.5


def test_a_runs_artefact_has_a_card_and_its_data_too(finished):
    write_text(finished.accepted, "{}\n")
    assert run("export", "faq", "--to", "huggingface") == 0
    assert "Not compared" in (finished.export("huggingface") / "README.md").read_text()
    assert finished.dataset_card.exists()


def test_a_run_without_files_has_no_best_one(finished, capsys):
    assert run("export", "faq", "--best", "accuracy >= 0.98 * student") == 2
    assert "has no artefact that is run here" in capsys.readouterr().err
    assert run("export", "faq", "--best", "accuracy => 1") == 2
    assert "--best: 'accuracy => 1' is not a rule" in capsys.readouterr().err


def test_a_run_without_a_student_says_how_to_get_one(finished, capsys):
    import shutil

    shutil.rmtree(finished.model)
    assert run("export", "faq", "--to", "gguf") == 2
    assert "has no student yet" in capsys.readouterr().err
    assert not finished.exports.exists()
