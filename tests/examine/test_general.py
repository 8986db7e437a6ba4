"""lm-eval runs in an environment of its own; its results file is read, its failures are told."""

import json

import pytest
from examine.fake_report import fake_report
from fake_lm_eval import RESULTS, fake_lm_eval

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.general import ask_lm_eval, read_results, with_drift
from potstill.examine.general_pairs import drifts, marks_of, with_drifts
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import render_markdown
from potstill.examine.resample import Z, mcnemar, paired_error, wilson


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


ACC = "general.arc_easy.acc"


def test_marks_of_single_questions_are_read_where_they_make_the_figure(command, tmp_path):
    ask(command, tmp_path, "arc_easy")
    marks = marks_of(tmp_path / "out")
    assert set(marks) == {ACC}
    assert len(marks[ACC]) == 100 and sum(marks[ACC].values()) == 50
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:99]))
    assert marks_of(tmp_path / "out") == {}, "one is missing, so they do not make the figure"
    file.unlink()
    assert marks_of(tmp_path / "out") == marks_of(tmp_path / "absent") == {}


def marks(num, *wrong):
    return {ACC: {str(i): float(i not in wrong) for i in range(num)}}


def test_the_drift_is_taken_question_by_question():
    figures = read_results(RESULTS)
    before, after = marks(100, *range(50)), marks(100, *range(4, 50), 60)
    (found,) = drifts(after, before, figures, margin=0.1, seed=0)
    assert (found.a, found.b, found.metric) == ("distilled", "untouched", ACC)
    assert found.difference == pytest.approx(0.03) and found.discordant == 5
    centre, error = paired_error(4, 1, 100)
    assert (found.low, found.high) == pytest.approx((centre - Z * error, centre + Z * error))
    assert found.p == pytest.approx(mcnemar(4, 1)) and found.verdict == "non_inferior"
    unpaired = with_drift(figures, figures)[ACC].note
    assert "[-0.136, +0.136]" in unpaired and found.high - found.low < 0.12


def test_only_questions_that_both_were_asked_are_compared():
    figures = read_results(RESULTS)
    (found,) = drifts(marks(80), marks(100), figures, margin=0.02, seed=0)
    assert found.n == 80 and "20 answers of one model have no counterpart" in found.note
    other = {ACC: {"a question of another version": 1.0}}
    assert drifts(other, marks(100), figures, margin=0.02, seed=0) == []


def test_the_report_tells_the_drift_in_pairs_where_the_marks_are_there(command, tmp_path):
    folders = {role: tmp_path / "out" for role in ("untouched", "distilled")}
    ask(command, tmp_path, "arc_easy")
    report = fake_report(n=60)
    figures = read_results(RESULTS)
    models = {
        role: found.model_copy(update={"metrics": {**found.metrics, **figures}})
        for role, found in report.models.items()
    }
    report = report.model_copy(update={"models": models})
    told = with_drifts(report, folders, margin=0.02, seed=0)
    assert told.models["distilled"].metrics[ACC].note == (
        "untouched 0.500; +0.000 [-0.019, +0.019], paired"
    )
    assert told.models["distilled"].metrics["general.riddles.exact_match"].note == ""
    (found,) = [c for c in told.comparisons if c.metric == ACC]
    assert found.n == 100 and found.verdict == "non_inferior"
    for page in (render_markdown(told), render_html(told, samples_dir=None, curves={})):
        assert page.count("general.arc easy.acc") > render_markdown(report).count(
            "general.arc easy.acc"
        )
    del models["untouched"]
    alone = report.model_copy(update={"models": models})
    assert with_drifts(alone, folders, margin=0.02, seed=0) == alone


def test_its_figures_stand_in_the_report():
    report = fake_report(n=60)
    student = report.models["distilled"]
    figures = {**student.metrics, **read_results(RESULTS)}
    models = {**report.models, "distilled": student.model_copy(update={"metrics": figures})}
    report = report.model_copy(update={"models": models})
    for page in (render_markdown(report), render_html(report, samples_dir=None, curves={})):
        assert "general.arc easy.acc" in page
