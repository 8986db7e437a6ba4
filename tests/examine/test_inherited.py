"""Faults of the teacher that its student shares are measured; chance is not called a fault."""

import numpy as np
from examine.fake_models import sample
from examine.fake_report import fake_report

from potstill.examine.inherited import CHANCE, inherited_faults, is_carried, was_there
from potstill.examine.report_html import render_html
from potstill.examine.report_inherited import TITLE, inherited_lines
from potstill.examine.report_markdown import render_markdown
from potstill.types import Estimate

LABELS = ("refund", "track", "cancel")


def model(seed, *, n=400, biased=None, rate=0.3, weak=None, text=None):
    """Answers: mostly right; `biased` is said instead at a rate; `weak` group is often wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        target, group = LABELS[i % 3], "de" if i % 4 == 0 else "en"
        said = target
        if biased and rng.random() < rate:
            said = biased
        elif rng.random() < (0.5 if group == weak else 0.05):
            said = LABELS[(i + 1) % 3]
        rows.append(
            sample(i, text=text or said, prediction=said, target=target, references=(target,),
                   correct=float(said == target), metadata={"language": group})
        )  # fmt: skip
    return rows


def faults(**models):
    return inherited_faults(models, student="distilled", closed=True, fields=["language"])


def test_a_label_skew_of_the_teacher_is_found_in_the_student():
    found = faults(
        teacher=model(1, biased="refund"),
        distilled=model(2, biased="refund", rate=0.25),
        untouched=model(3),
    )["labels"]
    row = found["refund"]
    assert row["teacher"].value > 0.15 and row["distilled"].low > 0
    assert is_carried(row, "distilled") and not was_there(row, "distilled")
    assert is_carried(found["refund in language: en"], "distilled")
    assert row["teacher"].n == 400 and "agresti-min" in row["teacher"].method


def test_a_skew_of_the_student_alone_is_not_inherited():
    found = faults(teacher=model(1), distilled=model(2, biased="refund"), untouched=model(3))
    assert not any(is_carried(row, "distilled") for row in found["labels"].values())


def test_a_skew_that_was_there_before_is_said_to_be():
    skewed = {role: model(i, biased="track") for i, role in
              enumerate(("teacher", "distilled", "untouched"))}  # fmt: skip
    row = faults(**skewed)["labels"]["track"]
    assert is_carried(row, "distilled") and was_there(row, "distilled")


def test_no_skew_is_found_where_there_is_none():
    """Of several honest models, at most one has any label or group called carried."""
    called = 0
    for seed in range(6):
        found = faults(teacher=model(seed, n=200), distilled=model(100 + seed, n=200))
        rows = [*found["labels"].values(), *found["groups"].values()]
        called += any(is_carried(row, "distilled") for row in rows)
    assert called <= 1


def test_what_chance_explains_is_not_carried():
    def row(**facts):
        found = Estimate(value=0.1, low=0.01, high=0.2, n=100, **facts)
        return {"teacher": found, "distilled": found}

    assert is_carried(row(), "distilled")
    assert not is_carried(row(note=CHANCE), "distilled")


def test_a_group_that_both_fail_on_is_found():
    found = faults(teacher=model(1, weak="de"), distilled=model(2, weak="de"), untouched=model(3))[
        "groups"
    ]
    assert set(found) == {"language: de", "language: en"}
    assert -0.6 < found["language: de"]["teacher"].value < -0.3
    assert is_carried(found["language: de"], "distilled")


def test_the_same_wrong_answers_are_counted():
    teacher = model(1, biased="refund")
    copy = [s.model_copy(update={"text": "x"}) for s in teacher]
    (row,) = faults(teacher=teacher, distilled=copy, untouched=model(5))["mistakes"].values()
    assert row["distilled"].value == 1.0 and row["untouched"].value < 0.2
    assert row["distilled"].n == sum(s.correct == 0 for s in teacher)


def test_refusals_count_only_where_none_is_due():
    refusal = "I'm sorry, but I can't help with that."
    asked = [sample(i, text=refusal, references=("yes",)) for i in range(30)]
    due = [sample(i, text=refusal, references=(refusal,)) for i in range(30, 60)]
    found = inherited_faults(
        {"teacher": asked + due, "distilled": asked + due}, student="distilled", closed=False
    )
    (row,) = found["refusals"].values()
    assert (row["distilled"].value, row["distilled"].n) == (1.0, 30)


def test_answers_in_another_script_or_language_are_found():
    hindi, malayalam = "पार्सल कल आपके घर पहुँचेगा।", "പാഴ്സൽ നാളെ എത്തും."
    english = "The parcel is on the way and it will be with you tomorrow."
    german = "Das Paket ist auf dem Weg und wird mit der Post zu Ihnen kommen, nicht heute."
    rows = [
        (hindi, hindi), (english, hindi), (malayalam, hindi), (hindi, malayalam),
        (english, english), (german, english), ("1234 !", english), ("ok", english),
    ]  # fmt: skip
    samples = [sample(i, text=a, references=(b,)) for i, (a, b) in enumerate(rows)]
    found = inherited_faults(
        {"teacher": samples, "distilled": samples}, student="distilled", closed=False
    )
    (row,) = found["language"].values()
    assert (row["distilled"].value, row["distilled"].n) == (4 / 7, 7)


def test_without_a_teacher_nothing_is_inherited():
    assert inherited_faults({"distilled": model(1)}, student="distilled", closed=True) == {}


def test_the_report_says_it_in_words():
    report = fake_report(n=200)
    lines = inherited_lines(report)
    assert any("Same wrong answer where the teacher is wrong" in line for line in lines)
    page = render_html(report)
    assert TITLE in page and TITLE in render_markdown(report)
    bare = report.model_copy(update={"inherited": {}})
    assert TITLE not in render_html(bare)


def test_a_carried_skew_is_a_sentence():
    found = faults(teacher=model(1, biased="refund"), distilled=model(2, biased="refund"))
    report = fake_report(n=60).model_copy(update={"inherited": found})
    (line,) = [line for line in inherited_lines(report) if line.startswith("Says refund more")]
    assert "like its teacher: the teacher +" in line and line.endswith("points.")
    assert not [line for line in inherited_lines(report) if "refund in language" in line]


def test_a_group_is_named_once_where_it_does_worse():
    found = faults(teacher=model(1, weak="de"), distilled=model(2, weak="de"))
    report = fake_report(n=60).model_copy(update={"inherited": {"groups": found["groups"]}})
    (line,) = inherited_lines(report)
    assert line.startswith("Right less often on language: de than on the rest")
