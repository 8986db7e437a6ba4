"""Checks reject with a typed reason, and what they accept is the teacher's word."""

import pytest

from potstill.config import GenerationConfig
from potstill.errors import ConfigError
from potstill.tasks import get_task
from potstill.teach.checks import build_checks, check_responses, not_refusal
from potstill.types import Message, Record, Response


def record(text="Is it?", *, reference=None, id="r", **metadata):
    return Record(
        id=id,
        messages=(Message(role="user", content=text),),
        reference=reference,
        metadata=metadata,
    )


def answer(text, **changes):
    return Response(**{"record_id": "r", "text": text, "finish_reason": "stop", **changes})


def reason(name, task, asked, given, config=None):
    (check,) = build_checks([name], get_task(task), config=config)
    rejection = check(asked, given)
    return rejection and rejection.reason


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer("yes"), None),
        (answer("yes", finish_reason="length"), "length"),
        (answer("  \n"), "empty"),
        (answer("", finish_reason="error", error="no"), "error"),
        (answer("", finish_reason="content_filter"), "refusal"),
    ],
)
def test_an_answer_must_have_finished(response, expected):
    assert reason("finished", "qa", record(), response) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with this request.",
        "As an AI language model, I don't have opinions.",
        "I cannot provide that information.",
        "Unfortunately, I am unable to answer.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Désolé, je ne peux pas répondre.",
        "抱歉，我无法回答这个问题。",
        "क्षमा करें, मैं इसका उत्तर नहीं दे सकता।",
    ],
)
def test_refusals_are_found(text):
    assert not_refusal(record(), answer(text)).reason == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your parcel is late. Send me the order number.",
        "Sorry about the delay! A refund takes thirty days.",
        "I can help with that.",
        "contradiction",
        "The witness said: I cannot help with that.",
        "I'm sorry, but I can't change the size after shipping. " + "Here is what to do. " * 30,
        "As an example, take 12.",
    ],
)
def test_polite_answers_are_no_refusals(text):
    assert not_refusal(record(), answer(text)) is None


@pytest.mark.parametrize(
    ("task", "asked", "text", "expected"),
    [
        ("math", record("2+2?", reference="4"), "#### 4", None),
        ("math", record("2+2?", reference="4"), "who knows", "unparsable"),
        ("classification", record(labels=["red", "blue"]), "red", None),
        ("classification", record(labels=["red", "blue"]), "green", "off_label"),
        ("nli", record(), "perhaps", "off_label"),
        ("translation", record("Translate into Hindi: The red house"), "लाल घर", None),
        ("translation", record("Translate into Hindi: The red house"), "lal ghar", "language"),
        ("translation", record("Translate into Hindi: The red house"), "The red house", "copy"),
        (
            "translation",
            record("Translate: The house is here", reference="Das rote Haus steht hier am Meer"),
            "Das alte " * 40,
            "length_ratio",
        ),
        ("summarization", record("A long text about ships. " * 9), "Ships.", None),
        ("summarization", record("A long text. " * 9), "A long text. " * 9, "copy"),
        ("summarization", record("A short one."), "word " * 30, "too_long_summary"),
        ("conversation", record("Hello there"), "hello  there!", "copy"),
        ("conversation", record("Hello there"), "Hi.", None),
    ],
)  # fmt: skip
def test_the_form_is_the_tasks(task, asked, text, expected):
    assert reason("task", task, asked, answer(text)) == expected


def test_a_dense_summary_keeps_its_word_limit():
    config = GenerationConfig(prompting="chain_of_density", max_summary_words=5)
    asked = record("A long text about ships. " * 9)
    given = answer("Ships are here and there today.")
    assert reason("task", "summarization", asked, given, config) == "too_long_summary"


def test_a_wrong_answer_disagrees_where_the_right_one_is_known():
    assert reason("agrees", "math", record(reference="4"), answer("#### 5")) == "disagrees"
    assert reason("agrees", "math", record(reference="4"), answer("#### 4")) is None
    assert reason("agrees", "math", record(), answer("#### 5")) is None


def test_the_second_of_two_like_answers_is_a_duplicate():
    (check,) = build_checks(["no_duplicates"], get_task("qa"))
    assert check(record(), answer("Yes, it is.")) is None
    assert check(record(), answer("yes it is")).reason == "duplicate"
    assert check(record("Another?"), answer("Yes, it is.")) is None
    (fresh,) = build_checks(["no_duplicates"], get_task("qa"))
    assert fresh(record(), answer("Yes, it is.")) is None


def test_an_unknown_check_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean finished"):
        build_checks(["finishd"], get_task("qa"))


def test_an_accepted_record_has_the_teachers_answer_and_keeps_the_known_one():
    checks = build_checks(["finished", "task"], get_task("math"))
    records = [record("2+2?", reference="5", id="a", level=1), record("3+3?", id="b")]
    responses = [
        answer("four: 4", record_id="a", reasoning="two and two", model="t"),
        answer("none", record_id="b"),
        answer("old", record_id="gone"),
    ]
    (kept,), (rejected,) = check_responses(records, responses, checks, get_task("math"))
    assert (kept.id, kept.reference, kept.messages) == ("a", "four: 4", records[0].messages)
    assert kept.metadata == {
        "level": 1, "gold": "5", "reasoning": "two and two", "model": "t",
    }  # fmt: skip
    assert (rejected.record_id, rejected.reason) == ("b", "unparsable")


def test_the_student_can_learn_the_reasoning_too():
    config = GenerationConfig(reasoning="reasoning", prompting="chain_of_thought")
    (kept,), _ = check_responses(
        [record(id="a")],
        [answer("4", record_id="a", reasoning="2 and 2")],
        [],
        get_task("math"),
        config=config,
    )
    assert kept.reference == "2 and 2\nAnswer: 4"


def test_samples_become_records_of_their_own_and_the_later_outcome_counts():
    responses = [
        answer("", record_id="a", finish_reason="error", error="no"),
        answer("one", record_id="a"),
        answer("two", record_id="a", sample=1),
        answer("", record_id="a", sample=2),
    ]
    task = get_task("qa")
    kept, rejected = check_responses(
        [record(id="a")], responses, build_checks(["finished"], task), task
    )
    assert [(r.id, r.reference) for r in kept] == [("a", "one"), ("a#1", "two")]
    assert [(r.sample, r.reason) for r in rejected] == [(2, "empty")]


TALK = Record(
    id="talk",
    messages=(
        Message(role="user", content="one"),
        Message(role="assistant", content="gold one"),
        Message(role="user", content="two"),
    ),
    reference="gold two",
)


def test_a_conversation_is_accepted_with_the_teachers_turns():
    task = get_task("conversation")
    responses = [answer("B", record_id="talk", turn=1), answer("A", record_id="talk")]
    (kept,), _ = check_responses([TALK], responses, build_checks(["finished"], task), task)
    assert [m.content for m in kept.messages] == ["one", "A", "two"]
    assert (kept.reference, kept.metadata["gold"]) == ("B", "gold two")


@pytest.mark.parametrize("second", [None, answer("", record_id="talk", turn=1)])
def test_a_conversation_with_one_bad_turn_is_rejected_as_a_whole(second):
    task = get_task("conversation")
    responses = [answer("A", record_id="talk"), *([second] if second else [])]
    kept, (rejected,) = check_responses([TALK], responses, build_checks(["finished"], task), task)
    assert not kept
    assert rejected.turn == 1
