"""Checks reject with a typed reason, and what they accept is the teacher's word."""

import pytest

from potstill.config import GenerationConfig
from potstill.errors import ConfigError
from potstill.tasks import get_task
from potstill.teach.accept import accept, check_responses
from potstill.teach.checks import build_checks, divided, not_refusal
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


@pytest.mark.parametrize("checks", [[], [lambda record, response: None]])
def test_what_never_came_is_learnt_by_nobody_whatever_the_checks_are(checks):
    given = [
        answer("", finish_reason="error", error="too_long: 2,000 tokens"),
        answer(" ", record_id="s"),
        answer("cut", record_id="t", finish_reason="length"),
    ]
    asked = [record(id=name) for name in "rst"]
    accepted, rejected = check_responses(asked, given, checks, get_task("conversation"))
    assert [found.id for found in accepted] == ["t"]
    assert [(found.record_id, found.reason) for found in rejected] == [
        ("r", "error"),
        ("s", "empty"),
    ]


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
        "ക്ഷമിക്കണം, എനിക്ക് ഇതിന് ഉത്തരം നൽകാൻ കഴിയില്ല.",
        "عذرًا، لا أستطيع المساعدة في ذلك.",
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
        ("math", record("2+2?", reference="4"), "#### 5", "disagrees"),
        ("math", record("2+2?", reference="४"), "#### 4.0", None),
        ("math", record("2+2?"), "#### 5", None),
        ("qa", record("Which?\n(A) red\n(B) blue"), "C", "off_label"),
        ("qa", record("Which?\n(A) red\n(B) blue"), "(B)", None),
        ("nli", record(), "विरोधाभास", "off_label"),
        ("classification", record(labels=["वापसी", "शिकायत"]), "शिकायत", None),
        ("classification", record(labels=["പരാതി", "മടക്കം"]), "ഉത്തരം: പരാതി", None),
        ("classification", record(labels=["red", "blue"]), "red", None),
        ("classification", record(labels=["red", "blue"]), "green", "off_label"),
        ("nli", record(), "perhaps", "off_label"),
        ("translation", record("Translate into Hindi: The red house"), "लाल घर", None),
        ("translation", record("Translate into Hindi: The red house"), "lal ghar", "language"),
        ("translation", record("Translate into Hindi: The red house"), "The red house", "copy"),
        ("translation", record("The red house", target_lang="ml"), "ചുവന്ന വീട്", None),
        ("translation", record("The red house", target_lang="ml"), "लाल घर", "language"),
        (
            "translation",
            record("Translate into German: The dog is in the house."),
            "The dog, that is to say the animal, is in the house.",
            "language",
        ),
        (
            "translation",
            record("Translate into German: The dog is in the house."),
            "Der Hund ist in dem Haus.",
            None,
        ),
        (
            "translation",
            record("मराठी में: यह मेरा घर है और वह दूर नहीं है", target_lang="mr"),
            "यह मेरा घर है और यह नगर से दूर नहीं है",
            "language",
        ),
        (
            "translation",
            record("Translate into Japanese: This is my house."),
            "这是我的房子，不是他的。",
            "language",
        ),
        ("translation", record("Translate to Chinese: This is a house."), "这是一座房子。", None),
        (
            "translation",
            record("Translate: The house is here", reference="Das rote Haus steht hier am Meer"),
            "Das alte " * 40,
            "length_ratio",
        ),
        ("summarization", record("A long text about ships. " * 9), "Ships.", None),
        ("summarization", record("A long text about ships. " * 19), "Ships.", "too_short"),
        ("summarization", record("A long text. " * 9), "A long text. " * 9, "copy"),
        ("summarization", record("A short one."), "word " * 30, "too_long_summary"),
        ("conversation", record("Hello there"), "hello  there!", "copy"),
        ("conversation", record("Hello there"), "Hi.", None),
        ("conversation", record("Hello there"), "...", "too_short"),
        ("conversation", record("Hello there"), "k", "too_short"),
        ("conversation", record("你好吗"), "好", None),
        ("conversation", record("कैसे हैं?"), "ठीक", None),
        ("summarization", record("जहाज़ों के बारे में एक लंबा पाठ। " * 9), "जहाज़।", "too_short"),
        ("summarization", record("വള്ളങ്ങളെ കുറിച്ച് ഒരു വാചകം. " * 9), "വള്ളങ്ങൾ പഴയതാണ്, വേഗമുള്ളതും.", None),
        ("summarization", record("关于船的长文章。" * 20), "这篇文章讲船。", None),
        ("summarization", record("关于船的长文章。" * 20), "关于船的长文章。" * 20, "copy"),
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


def test_foreign_code_and_computer_algebra_run_apart():
    names = ("finished", "task", "mine:check", "agrees", "no_duplicates")
    assert divided(names, get_task("qa")) == (["finished", "task", "agrees"], ["mine:check"])
    assert divided(names, get_task("math")) == (["finished"], ["task", "mine:check", "agrees"])


def test_an_unknown_check_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean finished"):
        build_checks(["finishd"], get_task("qa"))


def test_an_accepted_record_has_the_teachers_answer_and_keeps_the_known_one():
    checks = build_checks(["finished", "task"], get_task("math"))
    records = [record("2+2?", reference="4.0", id="a", level=1), record("3+3?", id="b")]
    responses = [
        answer("four: 4", record_id="a", reasoning="two and two", model="t"),
        answer("none", record_id="b"),
        answer("old", record_id="gone"),
    ]
    (kept,), (rejected,) = check_responses(records, responses, checks, get_task("math"))
    assert (kept.id, kept.reference, kept.messages) == ("a", "four: 4", records[0].messages)
    assert kept.metadata == {
        "level": 1, "gold": "4.0", "reasoning": "two and two", "model": "t",
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


def test_with_both_the_accepted_answer_is_bare_and_the_teachers_reasoning_stands_beside_it():
    config = GenerationConfig(reasoning="both", prompting="chain_of_thought")
    asked = [record(id="a", reasoning="of the file"), record(id="b", reasoning="of the file")]
    given = [answer("4", record_id="a", reasoning="2 and 2"), answer("5", record_id="b")]
    kept, _ = check_responses(asked, given, [], get_task("math"), config=config)
    assert [row.reference for row in kept] == ["4", "5"]
    assert [row.metadata.get("reasoning") for row in kept] == ["2 and 2", None]


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


def sampled(*texts):
    return [answer(text, sample=number) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("task", "texts", "kept", "reasons"),
    [
        ("math", ["#### 4", "#### 5", "so 4.0"], ["#### 4"], ["outvoted", "duplicate"]),
        ("nli", ["neutral", "The answer is neutral."], ["neutral"], ["duplicate"]),
        ("qa", ["Paris", "London"], [], ["no_majority", "no_majority"]),
        ("classification", ["हाँ।", "नहीं", "हाँ"], ["हाँ।"], ["outvoted", "duplicate"]),
        ("math", ["#### ४२", "#### 42", "#### 7"], ["#### ४२"], ["duplicate", "outvoted"]),
    ],
)
def test_a_vote_keeps_one_answer_of_the_most_frequent(task, texts, kept, reasons):
    config = GenerationConfig(choose="vote", num_responses=3)
    rows = [
        (
            record("Which?", labels=["हाँ", "नहीं"]) if task == "classification" else record(),
            sampled(*texts),
        )
    ]
    (outcome,) = accept(rows, get_task(task), config=config)
    assert [row.reference for row in outcome.accepted] == kept
    assert [rejection.reason for rejection in outcome.rejected] == reasons


def test_a_vote_counts_only_what_passed_the_checks():
    config = GenerationConfig(choose="vote", num_responses=3)
    checks = build_checks(["task"], get_task("nli"), config=config)
    rows = [(record(), sampled("who knows", "nobody does", "neutral"))]
    (outcome,) = accept(rows, get_task("nli"), checks=checks, config=config)
    assert [(row.id, row.reference) for row in outcome.accepted] == [("r#2", "neutral")]
    assert [rejection.reason for rejection in outcome.rejected] == ["off_label", "off_label"]


def test_without_scores_there_is_no_best():
    config = GenerationConfig(choose="best", best_by="own:length", num_responses=2)
    with pytest.raises(ConfigError, match="stage check"):
        list(accept([(record(), sampled("a", "b"))], get_task("qa"), config=config))
