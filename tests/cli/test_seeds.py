"""`potstill seeds` puts runs together that differ in their seed."""

import json

import pytest
from examine.fake_report import fake_report

from potstill.cli import main
from potstill.rundir import RunDir


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


@pytest.fixture
def runs(tmp_path):
    for seed, share in enumerate((0.5, 0.65, 0.8)):
        folder = RunDir(tmp_path / f"seed-{seed}")
        folder.report_json.parent.mkdir(parents=True)
        folder.config.write_text("name: faq\n")
        report = fake_report(n=60, shares={"teacher": 0.9, "distilled": share, "untouched": 0.2})
        folder.report_json.write_text(report.model_dump_json())
    return tmp_path


def test_the_mean_and_each_run_are_printed(runs, capsys):
    assert run("seeds", "seed-0", "seed-1", "seed-2", "--runs", str(runs)) == 0
    shown = capsys.readouterr().out
    assert "3 runs of classification: mean of accuracy" in shown
    assert "distilled - untouched" in shown and "better 3x" in shown
    assert "of teacher" in shown


def test_json_holds_every_metric(runs, capsys):
    assert run("seeds", "seed-0", "seed-1", "--runs", str(runs), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["distilled"]["macro_f1"]["n"] == 2
    assert len(found["values"]["distilled"]) == 2


def test_one_run_is_not_enough(runs, capsys):
    assert run("seeds", "seed-0", "--runs", str(runs)) == 2
    assert "at least two runs" in capsys.readouterr().err
