"""lm-eval runs in an environment of its own; its results file is read, its failures are told."""

import json

import pytest
from examine.fake_report import fake_report
from fake_lm_eval import RESULTS, fake_lm_eval

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.general import ask_lm_eval, read_results, with_drift
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import render_markdown


@pytest.fixture
def command(tmp_path):
    """An lm-eval that answers at once, and notes what it was asked."""
    return fake_lm_eval(tmp_path)


def ask(command, tmp_path, *tasks):
    return ask_lm_eval(
        command, tmp_path / "model", tasks, limit=100, batch_size=8, out=tmp_path / "out"
    )


def test_its_figures_come_with_the_interval_of_their_standard_error(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    found = ask(command, tmp_path, "arc_easy", "wikitext")
    accuracy = found["general.arc_easy.acc"]
    assert (accuracy.value, accuracy.n) == (0.5, 100)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.402, 0.598), abs=1e-3)
    assert accuracy.signature == "lm-eval 0.4.9, filter none, 0-shot, task version 1.0"
    assert found["general.arc_easy.acc_norm"].low is None
    assert not found["general.wikitext.word_perplexity"].higher_is_better
    assert len(found) == 3
    (file,) = (tmp_path / "out").rglob("results*.json")
    given, ours = json.loads(file.read_text())["asked"]
    assert given["--model_args"] == f"pretrained={tmp_path / 'model'}"
    assert (given["--tasks"], given["--limit"]) == ("arc_easy,wikitext", "100")
    assert "PYTHONPATH" not in ours


def test_its_failure_is_told_with_its_last_words(command, tmp_path):
    with pytest.raises(PotstillError, match=r"ended with code 1 on broken.*no such task: broken"):
        ask(command, tmp_path, "broken")
    with pytest.raises(DataError, match="wrote no results"):
        ask(command, tmp_path, "silent")
    with pytest.raises(ConfigError, match=r"evaluate\.lm_eval: .* is no file.*pip install"):
        ask(tmp_path / "absent", tmp_path, "arc_easy")


def test_another_file_is_not_taken_for_its_results():
    with pytest.raises(DataError, match="hold no `results`"):
        read_results({"scores": {}})


def test_the_student_is_told_beside_what_it_was():
    before = read_results(RESULTS)
    after = with_drift(before, before)
    note = after["general.arc_easy.acc"].note
    assert note == "untouched 0.500; +0.000 [-0.139, +0.139], unpaired"
    assert after["general.arc_easy.acc_norm"].note == ""


def test_its_figures_stand_in_the_report():
    report = fake_report(n=60)
    student = report.models["distilled"]
    figures = {**student.metrics, **read_results(RESULTS)}
    models = {**report.models, "distilled": student.model_copy(update={"metrics": figures})}
    report = report.model_copy(update={"models": models})
    for page in (render_markdown(report), render_html(report, samples_dir=None, curves={})):
        assert "general.arc easy.acc" in page
