"""`potstill targets inspect` says what is kept, without weights and without torch."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_tokenizer

from potstill.cli import main
from potstill.data.render import vocab_fingerprint
from potstill.rundir import RunDir
from potstill.targets.codec import Row
from potstill.targets.store import TargetSettings, TargetWriter, content_key


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@pytest.fixture
def folder(tmp_path):
    """A run folder with a store of two positions at two temperatures."""
    run = RunDir(tmp_path / "faq")
    tokenizer = tiny_tokenizer(run.model)
    yes, no, end = (tokenizer.convert_tokens_to_ids(t) for t in ("y", "n", "<|im_end|>"))
    settings = TargetSettings(
        vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint="t" * 64,
        vocab_size=len(tokenizer),
        k=2,
        temperatures=(1.0, 2.0),
        teacher="big",
    )
    writer = TargetWriter(run.targets, settings)
    logits = np.log([[0.75, 0.15], [0.9, 0.05]])
    odds = np.log([[0.1 / 0.9, 0.3 / 0.7], [0.05 / 0.95, 0.2 / 0.8]])
    writer.write([content_key([1], [1])], [Row(np.array([[yes, no], [end, yes]]), logits, odds)])
    writer.finish()
    return run


def test_a_store_says_what_it_keeps_and_shows_positions_as_text(folder, capsys):
    assert run("targets", "inspect", str(folder.targets)) == 0
    text = capsys.readouterr().out
    assert "1 rows, 2 positions" in text
    assert "the 2 largest of 421 probabilities" in text
    assert "'y' 0.7" in text
    assert re.search(r"'<\|im_end\|>' 0\.(899|90)", text)
    assert "big" in text


def test_json_has_bytes_by_part_error_and_examples(folder, capsys):
    assert run("targets", "inspect", str(folder.targets), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["parts"].values()) == pytest.approx(found["bytes_per_position"])
    assert [at["temperature"] for at in found["at"]] == [1.0, 2.0]
    assert found["at"][0]["mass_kept"] == pytest.approx(0.925)
    assert found["at"][1]["mass_kept"] == pytest.approx(0.75)
    assert max(at["error_nats"] for at in found["at"]) < 1e-3
    assert found["settings"]["k"] == 2
    first = found["examples"][0]
    assert [token for token, _ in first["tokens"]] == ["y", "n"]
    assert first["others"] == pytest.approx(0.1, abs=1e-3)


def test_without_the_students_tokenizer_ids_are_shown_and_a_foreign_one_is_refused(
    folder, tmp_path, capsys
):
    from vocabularies import renumbered_tokenizer

    for file in folder.model.iterdir():
        file.unlink()
    assert run("targets", "inspect", str(folder.targets), "--json") == 0
    ids = [token for token, _ in json.loads(capsys.readouterr().out)["examples"][0]["tokens"]]
    assert all(id_.isdigit() for id_ in ids)
    renumbered_tokenizer().save_pretrained(tmp_path / "other")
    place = str(folder.targets)
    assert run("targets", "inspect", place, "--tokenizer", str(tmp_path / "other")) == 2
    assert "another vocabulary" in capsys.readouterr().err


def test_what_is_not_there_is_explained(folder, tmp_path, capsys):
    assert run("targets", "inspect", "faq", "--runs", str(tmp_path)) == 2
    assert "no run is called 'faq'" in capsys.readouterr().err
    (folder.targets / "manifest.json").unlink()
    assert run("targets", "inspect", str(folder.targets)) == 2
    assert "scoring has not finished" in capsys.readouterr().err


def test_looking_does_not_load_torch(folder):
    code = (
        "import sys\n"
        "from potstill.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    arguments = ["targets", "inspect", str(folder.targets)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
