import pytest

from potstill.data.load import load_dataset
from potstill.errors import ConfigError, DataError
from potstill.tasks import get_task, is_closed, references_of, target_of
from potstill.tasks.choice import classification, label_records, nli, with_labels
from potstill.types import Message, Record


def record(prompt="Premise: a\nHypothesis: b", reference=None, **metadata):
    return Record(
        id="r",
        messages=(Message(role="user", content=prompt),),
        reference=reference,
        metadata=metadata,
    )


@pytest.mark.parametrize(
    "text",
    [
        "entailment",
        "Entailment.",
        "**Entailment**",
        "ＥＮＴＡＩＬＭＥＮＴ",
        "Label: entailment",
        "The answer is: entailment.",
        '{"label": "entailment"}',
        'Here it is:\n```json\n{"answer": "Entailment"}\n```\nDone.',
        "The premise is no contradiction.\n\nFinal answer: **entailment**",
        "It is neither a proof nor neutral ... \n#### entailment",
        "entailment\n\nBecause the hypothesis is no contradiction.",
        "<think>neutral? contradiction?</think>\n\nentailment",
        "I would say this is entailment",
        "\\boxed{entailment} and surely not what a neutral one is",
    ],
)
def test_a_label_is_read_however_it_is_wrapped(text):
    assert nli.parse(text, record()) == "entailment"


@pytest.mark.parametrize(
    "text",
    [
        "entailment or neutral",
        "entailment\nneutral",
        "Answer: neutral, or entailment",
        "This is not entailment",
        "reentailments",
        "banana",
        "{",
        "",
        "\ud800",
    ],
)
def test_no_label_or_two_is_none(text):
    assert nli.parse(text, record()) is None


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        (["सकारात्मक", "नकारात्मक"], "उत्तर: **सकारात्मक**।", "सकारात्मक"),
        (["सकारात्मक", "नकारात्मक"], "यह वाक्य नकारात्मक है।", "नकारात्मक"),
        (["सकारात्मक", "नकारात्मक"], "सकारात्मक या नकारात्मक", None),
        (["അനുകൂലം", "പ്രതികൂലം"], "ഉത്തരം: അനുകൂലം", "അനുകൂലം"),
        (["കാര്", "കാര്യം"], "കാര്യം", "കാര്യം"),
        (["ham", "not spam"], "This is not spam", "not spam"),
        (["card_arrival", "card_arrival_late"], "card arrival late", "card_arrival_late"),
        (["card_arrival", "card_arrival_late"], "It is `card_arrival`!", "card_arrival"),
        (["积极", "消极"], "答案：积极", "积极"),
    ],
)
def test_label_sets_of_any_language_are_read(labels, text, expected):
    assert classification.parse(text, record("x", labels=labels)) == expected


def test_the_label_set_is_found_in_the_prompt():
    asked = record("Classify. Answer with one of: ham, spam.\n\nMessage: WIN")
    assert classification.parse("It's spam!", asked) == "spam"
    assert is_closed([asked])
    assert classification.parse("Label: eggs", record("What is it?")) == "eggs"


def test_a_label_is_right_or_wrong_or_unknown():
    gold = record(reference="neutral")
    assert nli.correct("neutral", gold) == 1.0
    assert nli.correct("entailment", gold) == 0.0
    assert nli.correct(None, gold) == 0.0
    assert nli.correct("neutral", record()) is None
    assert nli.correct("neutral", record(reference="#### neutral", label="neutral")) == 1.0


def test_bare_fields_are_asked_with_their_labels_once():
    (row,) = load_dataset([{"premise": "P", "hypothesis": "H", "label": "neutral"}])
    (asked,) = nli.turns(row)
    content = asked.messages[-1].content
    assert content.startswith("Premise: P\nHypothesis: H\n\n")
    assert content.endswith("Answer with one of: entailment, neutral, contradiction.")
    assert nli.turns(asked) == (asked,)
    assert (asked.id, asked.reference, asked.metadata) == (row.id, row.reference, row.metadata)


def test_training_and_test_rows_are_asked_with_one_label_set():
    train = load_dataset([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    test = load_dataset([{"text": "c", "label": "z"}])
    records = label_records([*train, *test])
    for row in records:
        assert "Answer with one of: x, y, z." in classification.turns(row)[0].messages[0].content


def test_a_bare_text_without_any_label_set_is_an_error():
    (row,) = load_dataset([{"text": "a"}], task="classification")
    with pytest.raises(DataError, match="no labels are known"):
        classification.turns(row)
    (asked,) = with_labels(classification, ["x", "y"]).turns(row)
    assert "one of: x, y" in asked.messages[0].content


def test_a_row_with_a_prompt_of_its_own_is_left_alone():
    row = record("Is it spam? Answer with one of: yes, no.")
    assert classification.turns(row) == (row,)


def test_an_unknown_task_names_the_nearest():
    assert get_task("nli") is nli
    with pytest.raises(ConfigError, match="did you mean classification"):
        get_task("clasification")


def test_all_accepted_answers_and_the_target_are_told():
    row = record(reference="a", answers=["a", "b"])
    assert references_of(row) == ("a", "b")
    assert target_of(nli, record(reference="Label: neutral")) == "neutral"
    assert target_of(nli, record()) is None
