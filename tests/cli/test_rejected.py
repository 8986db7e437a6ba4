"""`potstill data rejected` shows the funnel, the reasons and the rows of one reason."""

import json

import pytest

from potstill.cli import main
from potstill.rundir import RunDir, write_jsonl, write_text
from potstill.types import Rejection


@pytest.fixture
def folder(tmp_path):
    run = RunDir(tmp_path / "faq")
    write_text(run.config, "name: faq\n")
    run.mark_done("split", "x", num_dropped=2)
    run.mark_done("teach", "x", requested=12, answered=11)
    run.mark_done("check", "x", num_train=5, num_validation=1)
    rejections = [
        Rejection(record_id=f"r{n}", check="task", reason="off_label", detail=f"शायद {n}")
        for n in range(4)
    ]
    rejections.append(Rejection(record_id="z", sample=1, check="finished", reason="empty"))
    write_jsonl(run.rejected, rejections)
    return str(run.path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["data", "rejected", *arguments])
    return stop.value.code


def test_the_funnel_and_examples_of_each_reason_are_shown(folder, capsys):
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "12 requested, 11 answered, 6 accepted, 5 rejected" in out
    assert "off_label" in out
    assert "शायद 2" in out
    assert "शायद 3" not in out


def test_json_has_counts_and_examples(folder, capsys):
    assert run(folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requested"], found["accepted"], found["dropped_before"]) == (12, 6, 2)
    assert found["reasons"]["off_label"]["count"] == 4
    assert [one["record_id"] for one in found["reasons"]["empty"]["examples"]] == ["z"]


def test_one_reason_lists_all_its_rows(folder, capsys):
    assert run(folder, "--reason", "off_label") == 0
    assert "शायद 3" in capsys.readouterr().out
    assert run(folder, "--reason", "off_label", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_a_reason_that_nothing_has_is_answered_with_those_there_are(folder, capsys):
    assert run(folder, "--reason", "offlabel") == 2
    assert "off_label, empty" in capsys.readouterr().err
