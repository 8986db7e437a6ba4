"""Results in a notebook: drawn by themselves, and rows for data frames."""

import subprocess
import sys
from html.parser import HTMLParser

import pyarrow
from examine.fake_report import NASTY, fake_report

from potstill.types import Estimate, Evaluation


def tags_of(markup):
    """The tags that were opened; all of them are closed again, in order."""
    opened, seen = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
            opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(markup)
    assert opened == []
    return seen


def test_a_report_is_drawn_with_its_verdict_and_every_model():
    report = fake_report(n=60)
    shown = report._repr_html_()
    assert report.verdict[:20] in shown
    assert all(f">{role}<" in shown for role in report.models)
    assert tags_of(shown).count("table") == 2
    assert tags_of(report.model_copy(update={"comparisons": ()})._repr_html_()).count("table") == 1


def test_an_evaluation_is_drawn_with_intervals_and_rules():
    figure = Estimate(value=0.5, low=0.4, high=0.6, n=90, signature="by hand")
    found = Evaluation(role="student", id="m <b>", metrics={"accuracy": figure})
    shown = found._repr_html_()
    assert "0.500" in shown and "0.400" in shown and "by hand" in shown and ">90<" in shown
    assert "m &lt;b&gt;" in shown and "b" not in tags_of(shown)


def test_what_models_and_files_wrote_is_shown_and_not_run():
    report = fake_report(n=60).model_copy(update={"run": NASTY, "verdict": NASTY})
    assert "script" not in tags_of(report._repr_html_())


def test_rows_make_a_data_frame_of_one_line_for_each_model_and_metric():
    report = fake_report(n=60)
    rows = report.rows()
    frame = pyarrow.Table.from_pylist(rows)
    assert len(rows) == sum(len(found.metrics) for found in report.models.values())
    assert {"model", "id", "metric", "value", "low", "high", "n", "method", "signature"} <= set(
        frame.column_names
    )
    assert all(set(row) == set(rows[0]) for row in rows), "no line lacks a column"
    values = {(row["model"], row["metric"]): row["value"] for row in rows}
    assert values["distilled", "accuracy"] == report.models["distilled"]["accuracy"]


def test_nouns_know_nothing_of_what_draws_them_until_it_does():
    code = "import sys, potstill.types; print('potstill.examine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
