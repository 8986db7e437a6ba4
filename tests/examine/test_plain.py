"""Plain rivals learn what a line of scikit-learn learns, and are rows like any other."""

import asyncio

import pytest
from examine.fake_models import Topics, record

from potstill.errors import DataError
from potstill.examine.plain import majority, plain_rivals, tfidf

COLOURS = {"refund": "money back please", "track": "where is my parcel"}


def records(n, start=0, **more):
    names = list(COLOURS)
    return [
        record(i, question=COLOURS[names[i % 2]], reference=names[i % 2], **more)
        for i in range(start, start + n)
    ]


def test_the_commonest_answer_wins_and_ties_go_by_alphabet():
    assert majority(["b", "a", "b"])._answer("anything") == "b"
    assert majority(["b", "a"])._answer("anything") == "a"


def test_words_decide():
    model = tfidf(["money back", "my money", "where is it", "where now"], ["r", "r", "t", "t"])
    assert [model._answer(text) for text in ("the money", "where")] == ["r", "t"]


def test_hindi_words_are_not_broken():
    model = tfidf(["पैसे वापस", "मेरे पैसे", "पार्सल कहाँ", "कहाँ है"], ["r", "r", "t", "t"])
    assert [model._answer(text) for text in ("पैसे", "कहाँ")] == ["r", "t"]


def test_answers_of_fields_have_one_classifier_a_field():
    prompts = ["money now", "money later", "parcel now", "parcel later"] * 3
    tickets = ["refund | high", "refund | low", "track | high", "track | low"] * 3

    def fields(text):
        parts = text.split(" | ")
        return dict(zip(("intent", "urgency"), parts, strict=True)) if len(parts) == 2 else None

    model = tfidf(
        [*prompts, "?"],
        [*tickets, "not a ticket"],
        fields=fields,
        join=lambda f: f"{f['intent']} | {f['urgency']}",
    )
    assert model._answer("parcel later") == "track | low"
    assert model._answer("money now") == "refund | high"


def test_rivals_are_evaluated_on_the_same_test_set(tmp_path):
    taught = [(r, f"The topic is {r.reference}.") for r in records(20)]
    found = asyncio.run(
        plain_rivals(
            gold=records(4),
            taught=taught,
            test=records(10, start=100),
            task=Topics(),
            samples_path=lambda role: tmp_path / f"{role}.jsonl",
        )
    )
    assert list(found) == ["majority", "tfidf_gold", "tfidf_teacher"]
    assert found["majority"]["accuracy"] == 0.5
    assert found["tfidf_teacher"]["accuracy"] == 1.0
    assert all(e.format == "plain" and e.metrics["accuracy"].n == 10 for e in found.values())


def test_without_known_answers_only_the_teacher_is_learnt_from(tmp_path):
    found = asyncio.run(
        plain_rivals(
            gold=[record(0)],
            taught=[(r, r.reference) for r in records(6)],
            test=records(4),
            task=Topics(),
            samples_path=lambda role: tmp_path / f"{role}.jsonl",
        )
    )
    assert list(found) == ["majority", "tfidf_teacher"]


def test_nothing_to_learn_from_is_an_error(tmp_path):
    with pytest.raises(DataError, match="at least one prompt"):
        asyncio.run(
            plain_rivals(gold=[], taught=[], test=records(4), task=Topics(),
                         samples_path=lambda role: tmp_path / role)
        )  # fmt: skip


def test_a_field_that_never_changes_needs_no_words_to_learn_from():
    def fields(text):
        return dict(zip(("intent", "urgency"), text.split(" | "), strict=True))

    def model(tickets):
        return tfidf(["!", "?"], tickets, fields=fields, join=lambda f: " | ".join(f.values()))

    assert model(["refund | low", "refund | low"])._answer("...") == "refund | low"
    words = ["money now", "parcel now"] * 3
    some = tfidf(
        words,
        ["refund | low", "track | low"] * 3,
        fields=fields,
        join=lambda f: " | ".join(f.values()),
    )
    assert some._answer("parcel") == "track | low"
