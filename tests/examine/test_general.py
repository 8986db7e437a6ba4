"""lm-eval runs in an environment of its own; its results file is read, its failures are told."""

import json
import stat
import sys

import pytest
from examine.fake_report import fake_report

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.general import ask_lm_eval, read_results, with_drift
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import render_markdown

RESULTS = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "acc,none": 0.5,
            "acc_stderr,none": 0.05,
            "acc_norm,none": 0.4,
            "acc_norm_stderr,none": "N/A",
        },
        "wikitext": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
    },
    "versions": {"arc_easy": 1.0, "wikitext": 2.0},
    "n-shot": {"arc_easy": 0},
    "n-samples": {"arc_easy": {"original": 2376, "effective": 100}},
    "higher_is_better": {"arc_easy": {"acc": True}, "wikitext": {"word_perplexity": False}},
    "lm_eval_version": "0.4.9",
}
FAKE = """#!{python}
import json, os, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--tasks"] == "broken":
    sys.exit("no such task: broken")
if given["--tasks"] == "silent":
    sys.exit(0)
out = pathlib.Path(given["--output_path"]) / "model"
out.mkdir(parents=True, exist_ok=True)
tree = json.loads({results!r})
tree["asked"] = [given, sorted(k for k in os.environ if k.startswith("PYTHON"))]
(out / "results_2026-11-22.json").write_text(json.dumps(tree))
"""


@pytest.fixture
def command(tmp_path):
    """An lm-eval that answers at once, and notes what it was asked."""
    file = tmp_path / "lm_eval"
    file.write_text(FAKE.format(python=sys.executable, results=json.dumps(RESULTS)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


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
