"""An audition claims only what its paired comparisons allow."""

from examine.fake_models import sample

from potstill.examine.audition import (
    Audition,
    Candidate,
    audition_table,
    build_audition,
    render_audition,
    share_accepted,
)
from potstill.examine.metrics import accuracy
from potstill.examine.report_markdown import quality_lines
from potstill.types import Report


def answers(num_right, n=120, shift=0):
    """n answers, of which so many are right, beginning with that of row `shift`."""
    right = {(i + shift) % n for i in range(num_right)}
    return [sample(i, text="x", correct=float(i in right), references=("x",)) for i in range(n)]


def held(scores, *, n=120, costs=None, errors=None, shift=None):
    """An audition of teachers, and of the student `untouched s`, with so many right answers."""
    samples = {name: answers(k, n, (shift or {}).get(name, 0)) for name, k in scores.items()}
    candidates = [
        Candidate(
            name=name,
            role="untouched" if name.startswith("untouched") else "teacher",
            place=name,
            num_answers=n,
            num_accepted=k,
            metrics={"accepted": share_accepted(k, n)},
            cost_per_accepted=(costs or {}).get(name),
        )
        for name, k in scores.items()
    ]
    candidates += [
        Candidate(name=name, role="teacher", place=name, error=error)
        for name, error in (errors or {}).items()
    ]
    return build_audition(
        run="faq",
        task="qa",
        candidates=candidates,
        samples=samples,
        metrics=[accuracy],
        num_rows=n,
        seed=0,
    )


def test_the_best_teacher_is_named_when_it_is_surely_better_than_every_other():
    found = held({"poor": 60, "good": 110, "untouched s": 20})
    assert [c.name for c in found.candidates] == ["good", "poor", "untouched s"]
    best, worth = found.verdict
    assert best.startswith("good is the best teacher: accuracy 0.917 [")
    assert best.endswith("surely better than poor.")
    assert "good (difference +0.750 [" in worth
    assert worth.endswith("beat untouched s.")
    assert found.warnings == ()


def test_teachers_that_are_not_told_apart_are_both_named_and_the_cheaper_one_said():
    scores, costs = {"dear": 100, "cheap": 98, "poor": 30}, {"dear": 0.02, "cheap": 0.001}
    found = held(scores, costs=costs, shift={"cheap": 5})
    first, better, cheapest = found.verdict
    assert first.startswith("dear comes first (")
    assert "is not told apart from cheap (difference +0.017 [" in first
    assert better == "It is surely better than poor."
    assert cheapest == "Of these, cheap costs least: 0.001 for an accepted answer."


def test_nothing_is_called_cheapest_while_a_price_is_unknown():
    costs = {"a": 0.1, "b": 0.2}
    found = held({"a": 100, "b": 100, "c": 100}, costs=costs, shift={"b": 3, "c": 6})
    assert len(found.verdict) == 1


def test_a_teacher_that_does_not_beat_the_untouched_student_is_warned_of():
    found = held({"same": 60, "worse": 20, "untouched s": 58}, shift={"untouched s": 4})
    assert len(found.warnings) == 2
    assert found.warnings[0].startswith("same does not surely beat untouched s (difference +0.017")
    assert found.warnings[1].startswith("worse is worse than untouched s (difference \u22120.317")
    assert not any("beat" in sentence for sentence in found.verdict)


def test_fewer_than_a_hundred_rows_are_warned_of():
    assert "100 or more are advised" in held({"a": 50}, n=60).warnings[0]
    assert "no interval is to be trusted" in held({"a": 20}, n=30).warnings[0]


def test_who_could_not_be_asked_is_a_row_with_the_reason_and_is_not_compared():
    found = held({"a": 100, "b": 20}, errors={"gone": "status 401"})
    assert [c.name for c in found.candidates] == ["a", "b", "gone"]
    assert found.warnings == ("gone could not be asked: status 401",)
    assert [(c.a, c.b) for c in found.comparisons] == [("a", "b")]


def test_p_values_are_corrected_for_the_number_of_pairs():
    found = held({"a": 70, "b": 60, "c": 50, "untouched s": 40})
    assert len(found.comparisons) == 6
    assert all(c.p_holm >= c.p for c in found.comparisons)
    assert max(c.p_holm / c.p for c in found.comparisons if c.p_holm < 1) > 1


def test_the_table_has_no_empty_columns_and_markdown_shows_names_as_they_are():
    found = held({"a|b": 100, "untouched s": 20}, costs={"a|b": 0.0125})
    headings, rows = audition_table(found)
    assert headings == ["", "accuracy", "accepted", "cost / accepted"]
    assert rows[0][2:] == ["0.833", "0.0125"]
    assert rows[1][2:] == ["0.167", ""]
    page = render_audition(found)
    assert "| a\\|b | 0.833 \\[" in page
    assert "120 rows with known answers" in page
    assert Audition.model_validate_json(found.model_dump_json()) == found


def test_a_report_says_what_the_trial_of_its_teacher_showed():
    report = Report(run="faq", task={}, models={}, data={"trial": {"text": "warning: no better"}})
    assert quality_lines(report) == ["warning: no better"]
