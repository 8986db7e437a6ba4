"""Figures of a set are those of its definition, and quotas keep the first rows."""

import pytest

from potstill.tasks import get_task
from potstill.teach.quality import NUM_SAMPLED, LabelQuota, Quality, balance, distinct
from potstill.types import Message, Record

NLI = get_task("nli")


def row(id, answer, **metadata):
    messages = (Message(role="user", content="?"),)
    return Record(id=id, messages=messages, reference=answer, metadata=metadata)


def test_four_equal_labels_are_two_bits_and_four_effective_ones():
    found = balance({"a": 5, "b": 5, "c": 5, "d": 5})
    assert (found["label_entropy_bits"], found["effective_labels"]) == (2.0, 4.0)


def test_one_label_is_no_information():
    assert balance({"a": 9}) == {
        "labels": {"a": 9}, "label_entropy_bits": 0.0, "effective_labels": 1.0,
    }  # fmt: skip


def test_no_labels_give_no_balance():
    assert balance({}) == {}


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        ([["a", "b", "a"]], 1, 0.6667),
        ([["a", "b"], ["a", "b"]], 2, 0.5),
        ([["एक", "दो"], ["दो", "एक"]], 2, 1.0),
        ([["a"]], 2, None),
    ],
)
def test_distinct_n_is_different_over_all(texts, n, expected):
    assert distinct(texts, n) == expected


def test_a_quota_keeps_the_first_rows_of_each_answer():
    quota = LabelQuota(NLI, 2)
    said = ["neutral", "neutral", "Neutral.", "entailment"]
    found = [quota(row(str(n), text)) for n, text in enumerate(said)]
    assert [r and (r.record_id, r.reason) for r in found] == [None, None, ("2", "over_quota"), None]


def test_a_quota_by_answer_leaves_the_others_alone():
    quota = LabelQuota(NLI, {"neutral": 0})
    assert quota(row("a", "neutral")).detail == "0 rows answer 'neutral' already"
    assert quota(row("b", "entailment")) is None


def test_open_answers_have_no_quota_and_no_labels():
    task = get_task("conversation")
    assert LabelQuota(task, 1)(row("a", "Hello")) is None
    quality = Quality(task)
    quality.add(row("a", "Hello"))
    assert "labels" not in quality.figures()


def test_the_figures_do_not_depend_on_the_order_and_come_from_a_bounded_sample():
    rows = [row(str(n), f"word{n} word{n % 7}") for n in range(NUM_SAMPLED + 200)]
    figures = []
    for order in (rows, rows[::-1]):
        quality = Quality(get_task("conversation"))
        for record in order:
            quality.add(record)
        figures.append(quality.figures())
    assert figures[0] == figures[1]
    assert figures[0]["num_sampled"] == NUM_SAMPLED
    assert figures[0]["num_accepted"] == NUM_SAMPLED + 200


def test_labels_are_counted_as_the_task_reads_them():
    quality = Quality(NLI)
    for number, text in enumerate(["neutral", "The answer is neutral.", "contradiction"]):
        quality.add(row(str(number), text))
    assert quality.figures()["labels"] == {"neutral": 2, "contradiction": 1}
