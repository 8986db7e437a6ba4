"""The report says what was found and no more, and can be drawn again without models."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from examine.fake_report import NASTY, SHARES, answers, curve, fake_report

from potstill.errors import DataError
from potstill.examine.compare import regressions_and_wins
from potstill.examine.report import build_report
from potstill.examine.report_answers import common_start, fitting
from potstill.examine.report_charts import (
    Box,
    Line,
    Point,
    _free_box,
    curves,
    log_ticks,
    nice_ticks,
    pareto,
)
from potstill.examine.report_html import render_html
from potstill.examine.report_markdown import render_markdown
from potstill.examine.report_verdict import verdict_sentence
from potstill.rundir import write_jsonl
from potstill.types import Comparison, Estimate, Evaluation, Message, Report, Sample


@pytest.fixture(scope="module")
def report() -> Report:
    return fake_report(n=120, gates=("accuracy >= 0.5 * teacher", "latency.p95 <= 1"))


def found(value=0.8, **more):
    return Estimate(value=value, low=value - 0.04, high=value + 0.04, n=400, **more)


def sentence(verdicts: dict[str, str], *, exports=(), gates=(), note=""):
    models = {"distilled": Evaluation(role="distilled", id="d", metrics={"accuracy": found()})}
    comparisons = []
    for role, verdict in verdicts.items():
        models[role] = Evaluation(role=role, id=role, metrics={"accuracy": found(0.7)})
        low, high = {"better": (0.05, 0.15), "worse": (-0.15, -0.05)}.get(verdict, (-0.01, 0.09))
        if verdict == "inconclusive":
            low = -0.06
        comparisons.append(
            Comparison(
                a="distilled", b=role, metric="accuracy", difference=(low + high) / 2, low=low,
                high=high, n=400, verdict=verdict, margin=0.02, detectable=0.06, note=note,
            )
        )  # fmt: skip
    comparisons += [
        Comparison(a=role, b="distilled", metric="accuracy", difference=-0.1, low=-0.2, high=-0.05,
                   verdict="worse")
        for role in exports
    ]  # fmt: skip
    return verdict_sentence(models, comparisons, primary="accuracy", gates=gates)


def test_the_verdict_says_how_much_of_the_teacher_is_kept():
    models = {role: Evaluation(role=role, id=role, metrics={"accuracy": found()})
              for role in ("distilled", "teacher")}  # fmt: skip
    against = Comparison(a="distilled", b="teacher", metric="accuracy", difference=-0.1, low=-0.2,
                         high=-0.05, verdict="worse")  # fmt: skip
    kept = {"of_teacher": Estimate(value=0.908, n=300, low=0.857, high=0.96)}
    text = verdict_sentence(models, [against], primary="accuracy", kept=kept)
    assert "It keeps 90.8 % of the teacher's quality (85.7 % to 96.0 %)." in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", "better than the teacher"),
        ("non_inferior", "as good as the teacher"),
        ("worse", "worse than the teacher"),
        ("inconclusive", "stays open"),
    ],
)
def test_the_verdict_on_the_teacher_is_what_the_comparison_found(verdict, words):
    text = sentence({"teacher": verdict})
    assert words in text
    claims = {"better than the teacher", "is as good as the teacher's", "worse than the teacher"}
    assert sum(claim in text for claim in claims) == (verdict != "inconclusive")


@pytest.mark.parametrize("verdict", ["better", "worse", "non_inferior", "inconclusive"])
def test_distilling_is_said_to_have_helped_only_where_it_did(verdict):
    text = sentence({"untouched": verdict})
    assert ("Distilling helped:" in text) == (verdict == "better")
    assert ("did harm" in text) == (verdict == "worse")


@pytest.mark.parametrize("verdict", ["worse", "non_inferior", "inconclusive"])
def test_every_simpler_way_that_is_not_beaten_is_named(verdict):
    text = sentence({"tfidf_gold": verdict, "gold_few": "better", "majority": verdict})
    beaten, unbeaten = text.split("It is not shown to beat these simpler ways:")
    assert "word-count classifier trained on the known answers" in unbeaten
    assert "commonest answer" in unbeaten
    assert "a few known answers" in beaten and "a few known answers" not in unbeaten


def test_it_says_when_probabilities_do_not_beat_text():
    text = sentence({"text": "inconclusive"})
    assert "probabilities is not shown to beat learning from its text alone" in text
    assert "probabilities" not in sentence({"text": "better"})


def test_it_names_worse_exports_failed_gates_and_small_tests():
    gates = [{"rule": "f1 >= 0.8", "passed": False, "found": "0.7 against 0.8"}]
    text = sentence({"teacher": "inconclusive"}, exports=["gguf:q4_0"], gates=gates,
                    note="only 30 answers: the interval is not to be trusted below 50")  # fmt: skip
    assert "gguf:q4_0 is worse than the model it was made of" in text
    assert "1 of 1 quality gates failed: f1 >= 0.8" in text
    assert "too small" in text


def test_the_report_survives_json_and_is_drawn_the_same(report):
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report
    assert render_html(again) == render_html(report)
    assert render_markdown(again) == render_markdown(report)


def test_every_pair_with_the_student_is_compared(report):
    pairs = {(c.a, c.b) for c in report.comparisons if c.metric == "accuracy"}
    others = [role for role in SHARES if role not in ("distilled", "gguf:q8_0")]
    assert pairs == {("distilled", role) for role in others} | {("gguf:q8_0", "distilled")}
    assert report.models["distilled"].metrics["agreement"].value > 0.5
    assert "agreement" not in report.models["teacher"].metrics
    assert [gate["passed"] for gate in report.gates] == [True, False]


def test_a_report_without_the_student_is_an_error():
    with pytest.raises(DataError, match="'distilled', which was not evaluated"):
        build_report(run="r", task={}, evaluations={}, samples={}, primary_metric="accuracy",
                     margin=0.02, seed=0)  # fmt: skip


class Reader(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = ("meta", "circle", "path", "polyline", "br", "wbr", "!doctype")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "style")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("samples")
    for role in SHARES:
        write_jsonl(folder / f"samples-{role.replace(':', '-')}.jsonl", answers(role, 120))
    models = {
        role: e.model_copy(update={"samples": f"samples-{role.replace(':', '-')}.jsonl"})
        for role, e in report.models.items()
    }
    named = report.model_copy(update={"models": models})
    return render_html(named, samples_dir=folder, curves={"distilled": curve()})


def test_the_page_needs_no_network_and_runs_no_script(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert not re.search(r"https?://|//[a-z]|url\(|@import", page)
    assert all(re.fullmatch(r"width:[\d.]+%", address) for address in reader.addresses)


def test_what_models_wrote_is_shown_and_not_run(page):
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in page
    assert "<script" not in page and "\x1b" not in page
    assert NASTY.split()[0] not in page


@pytest.mark.parametrize(
    "part",
    ["Models", "Is it better?", "Gates", "By answer", "What was taken for what", "Training data",
     "All answers", "What this does not show", "Words", "prefers-color-scheme", "whole prompt",
     "rejected: length", "polyline"],
)  # fmt: skip
def test_the_page_has_all_its_parts(page, part):
    assert part in page


def test_a_page_of_a_thousand_rows_is_smaller_than_two_megabytes(page):
    assert len(page.encode()) * 1000 / 120 < 2_000_000


def test_markdown_shows_what_models_wrote_as_it_is(report):
    text = render_markdown(report)
    assert "<script" not in text.replace("\\<script", "")
    assert report.verdict.split(" (")[0] in text


def test_a_report_of_one_model_is_drawn():
    report = fake_report(n=30, shares={"distilled": 0.8})
    assert "is right in" in report.verdict and "teacher" not in report.verdict
    assert "The teacher did not answer" in " ".join(report.limits)
    assert "below 50" in " ".join(report.limits)
    assert "<svg" in render_html(report) and "# faq-student" in render_markdown(report)


def test_names_in_a_plot_do_not_lie_on_each_other():
    points = [Point(f"model-number-{i}", 0.2 + 0.001 * i, 0.9 + 0.001 * i) for i in range(9)]
    drawing = pareto(points, title="t", x_text=str, y_text=str)
    boxes = []
    for x, y, anchor, name in re.findall(
        r'x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(model[^<]+)', drawing
    ):
        left = float(x) - (6 * len(name) if anchor == "end" else 0)
        boxes.append(Box(left, float(y) - 9, left + 6 * len(name), float(y) + 2))
    assert len(boxes) == 9
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_name_beside_a_free_dot_stands_at_its_right():
    box = _free_box(100, 100, 50, [], Box(0, 0, 360, 250))
    assert box.left == pytest.approx(107)


def test_ticks_are_round_numbers():
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(3, 3) == [3]
    assert (
        log_ticks(0.001, 1) == pytest.approx([0.001, 0.01, 0.1, 1]) or len(log_ticks(1e-3, 1)) <= 7
    )
    assert len(log_ticks(1e-6, 1e6)) <= 5


def test_the_accepted_set_is_described_in_both_forms(report):
    page, text = render_html(report), render_markdown(report)
    assert "Tokens paid: 5 for &lt;i&gt;all" in page and "Tokens paid: 5 for <i>all" not in page
    assert "Tokens paid: 5 for" in text
    for words in ("as balanced as 1.8", "0.31 of the word pairs", "240 of 250 rows", "8 words"):
        assert words in page
        assert words in text
    assert "<b>no</b>" not in page


def long_answers(n: int, words: str, num_turns: int) -> dict[str, list[Sample]]:
    """Answers of three models to long questions that begin alike; the student is always wrong."""

    def one(role: str, i: int) -> Sample:
        text = f"{words} {i} " * (200 if i < 50 else 20)  # the cases are the first 50
        turns = [Message(role="user", content=text), Message(role="assistant", content=text)]
        asked = Message(role="user", content=f"Name the topic of this message:\n{text}")
        return Sample(
            record_id=f"r{i}", prompt=(*turns * (num_turns - 1), asked), references=(text,),
            text=text, prediction=text, correct=float(role == "teacher"),
        )  # fmt: skip

    return {
        role: [one(role, i) for i in range(n)] for role in ("teacher", "distilled", "untouched")
    }


@pytest.mark.parametrize("words", ["<order> &", "എന്റെ ഓർഡർ"], ids=["markup", "Malayalam"])
def test_a_page_of_a_thousand_long_rows_is_smaller_than_two_megabytes(tmp_path, words):
    samples = long_answers(1000, words, num_turns=4)
    report = fake_report(n=60, shares={"teacher": 0.9, "distilled": 0.8, "untouched": 0.2})
    lost, _, num_lost, _ = regressions_and_wins(
        samples, student="distilled", others=("teacher", "untouched")
    )
    models = {}
    for role, rows in samples.items():
        write_jsonl(tmp_path / f"samples-{role}.jsonl", rows)
        models[role] = report.models[role].model_copy(update={"samples": f"samples-{role}.jsonl"})
    update = {"models": models, "regressions": lost, "wins": lost, "num_wins": num_lost}
    report = report.model_copy(update={**update, "num_regressions": num_lost})
    page = render_html(report, samples_dir=tmp_path, curves={"distilled": curve()})
    assert len(page.encode()) < 2_000_000
    shown = int(re.search(r"1,000 answers; the first (\d+) are here", page)[1])
    assert page.count('<article class="case">') == 2 * shown > 0
    assert "1,000 rows</summary>" in page or "more rows are in the files" in page


def test_what_all_questions_begin_with_is_told_once():
    start = "Name the topic of the message. Topics: refund, track.\n\n"
    texts = [f"{start}Where is my fan?", f"{start}Where is my order?"]
    assert common_start(texts) == start
    assert common_start(["Where is my fan?", "Where is my order?"]) == ""
    assert common_start([start, start]) == ""


def test_a_case_shows_what_was_asked_and_not_the_instruction_before_it():
    report = fake_report(n=60)
    start = "Name the topic of the message, as one of the words that follow: refund, track. "
    cases = [
        {**case, "prompt": [{"role": "user", "content": f"{start}{i} fans broke"}]}
        for i, case in enumerate(report.regressions)
    ]
    page = render_html(report.model_copy(update={"regressions": cases}))
    assert '<article class="case"><p><bdi>\N{HORIZONTAL ELLIPSIS} 0 fans broke</bdi>' in page
    assert "All questions begin with: <bdi>Name the topic" in page
    assert f'<pre dir="auto">{start}1 fans broke</pre>' in page


def test_texts_are_cut_as_far_as_a_part_is_small_enough():
    def draw(length):
        return ["a" * length] * 10

    assert fitting(draw, (100, 50), 1000) == (["a" * 100] * 10, 100)
    assert fitting(draw, (100, 50), 999) == (["a" * 50] * 10, 50)
    assert fitting(draw, (100, 50), 120) == (["a" * 50] * 2, 50)


def test_names_at_the_ends_of_curves_stay_above_the_axis():
    lines = [Line(f"m{i}", [(0, 5.0), (100, 0.1 + i / 1000)], True, False) for i in range(6)]
    drawing = curves(lines, title="t")
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start">m', drawing)]
    assert len(heights) == 6 and max(heights) <= 200
    assert all(b - a >= 11 for a, b in itertools.pairwise(sorted(heights)))


def test_numbers_and_units_stay_on_one_line_in_the_verdict(page):
    verdict = page.split('<div class="verdict">')[1].split("</div>")[0]
    assert re.search(r"\d&nbsp;%", verdict) and not re.search(r"\d %", verdict)


def test_trainings_stand_side_by_side_in_words():
    training = {
        "distilled": {"num_steps": 100, "seconds": 164.0, "stopped_early": False},
        "text": {"num_steps": 90, "tokens_per_second": 469.9},
    }
    page = render_html(fake_report(n=30).model_copy(update={"training": training}))
    row = '<th scope="row">steps planned</th><td class="num">100</td><td class="num">90</td>'
    assert row in page
    assert ">2 min 44 s<" in page and ">no<" in page and "num_steps" not in page


def test_what_is_folded_up_as_a_whole_leaves_no_empty_heading_on_paper(page):
    assert "<section class=folded><h2>All answers</h2><details>" in page
    assert ".folded:not(:has(details[open])) { display: none; }" in page


def test_what_was_not_set_is_not_listed():
    report = fake_report(n=30)
    page = render_html(
        report.model_copy(update={"environment": {"decoding": {"stop": (), "n": 0}}})
    )
    assert "<dt>decoding</dt><dd>n 0</dd>" in page
