"""lm-eval runs in an environment of its own; its results file is read, its failures are told."""

import json

import pytest
from examine.fake_report import fake_report
from fake_lm_eval import RESULTS, fake_lm_eval

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.general import ask_lm_eval, read_results, with_drift
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import render_markdown
from potstill.examine.resample import wilson


@pytest.fixture
def command(tmp_path):
    """An lm-eval that answers at once, and notes what it was asked."""
    return fake_lm_eval(tmp_path)


def ask(command, tmp_path, *tasks, **more):
    return ask_lm_eval(
        command, tmp_path / "model", tasks, limit=100, batch_size=8, out=tmp_path / "out", **more
    )


def asked(tmp_path):
    """Arguments, names of the environment and folder of the one that was asked."""
    (file,) = (tmp_path / "out").rglob("results*.json")
    return json.loads(file.read_text())["asked"]


def test_a_share_of_right_answers_comes_with_wilsons_interval(command, tmp_path):
    found = ask(command, tmp_path, "arc_easy", "wikitext")
    accuracy = found["general.arc_easy.acc"]
    assert (accuracy.value, accuracy.n, accuracy.method) == (0.5, 100, "wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson(50, 100))
    assert accuracy.signature == "lm-eval 0.4.13, filter none, 0-shot, task version 1.0"


def test_another_mean_comes_with_the_interval_of_its_standard_error(command, tmp_path):
    found = ask(command, tmp_path, "arc_easy")["general.arc_easy.brier_score"]
    assert (found.low, found.high) == pytest.approx((0.361, 0.439), abs=1e-3)
    assert found.method == "normal, lm-eval's standard error"
    assert not found.higher_is_better


def test_a_figure_without_a_standard_error_has_no_interval(command, tmp_path):
    found = ask(command, tmp_path, "arc_easy", "wikitext")
    assert found["general.arc_easy.acc_norm"].low is None
    assert found["general.wikitext.word_perplexity"].low is None
    assert not found["general.wikitext.word_perplexity"].higher_is_better


def test_no_answer_right_is_no_interval_of_width_zero(command, tmp_path):
    found = ask(command, tmp_path, "riddles")["general.riddles.exact_match"]
    assert (found.value, found.n) == (0.0, 40)
    assert (found.low, found.high) == pytest.approx(wilson(0, 40))
    assert found.high > 0.05


def test_counts_that_stand_among_the_figures_are_no_metrics(command, tmp_path):
    found = ask(command, tmp_path, "arc_easy")
    assert {name.split(".", 1)[1] for name in found} == {
        "arc_easy.acc",
        "arc_easy.acc_norm",
        "arc_easy.brier_score",
        "wikitext.word_perplexity",
        "riddles.exact_match",
    }


def test_it_is_asked_in_an_environment_of_its_own(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    ask(command, tmp_path, "arc_easy", "wikitext")
    given, ours, _ = asked(tmp_path)
    assert given["--model_args"] == f"pretrained={tmp_path / 'model'}"
    assert (given["--tasks"], given["--limit"]) == ("arc_easy,wikitext", "100")
    assert "--include_path" not in given
    assert "PYTHONPATH" not in ours


def test_a_folder_of_own_tasks_is_handed_over_and_paths_count_from_it(command, tmp_path):
    own = tmp_path / "tasks"
    own.mkdir()
    ask(command, tmp_path, "riddles", include=own)
    given, _, folder = asked(tmp_path)
    assert (given["--include_path"], folder) == (str(own), str(own))
    with pytest.raises(ConfigError, match=r"evaluate\.general_include: .*absent is no folder"):
        ask(command, tmp_path, "riddles", include=tmp_path / "absent")


def test_its_failure_is_told_with_its_last_words(command, tmp_path):
    said = r"ended with code 1 on broken; its last words: ValueError: Tasks not found: broken$"
    with pytest.raises(PotstillError, match=said):
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
    assert note == "untouched 0.500; +0.000 [-0.136, +0.136], unpaired"
    assert after["general.arc_easy.acc_norm"].note == ""


def test_the_drift_from_nothing_right_leaves_room_on_both_sides():
    before = read_results(RESULTS)
    assert with_drift(before, before)["general.riddles.exact_match"].note.endswith(
        "+0.000 [-0.088, +0.088], unpaired"
    )


def test_its_figures_stand_in_the_report():
    report = fake_report(n=60)
    student = report.models["distilled"]
    figures = {**student.metrics, **read_results(RESULTS)}
    models = {**report.models, "distilled": student.model_copy(update={"metrics": figures})}
    report = report.model_copy(update={"models": models})
    for page in (render_markdown(report), render_html(report, samples_dir=None, curves={})):
        assert "general.arc easy.acc" in page
