import pytest

from potstill.data.load import load_dataset
from potstill.tasks import default_metrics, is_closed
from potstill.tasks.qa import qa
from potstill.types import Message, Record

PROMPT = (
    "Question: What did the river make?\nOptions:\n(A) a hill and a delta\n(B) a delta and a canyon"
    "\n(C) bored\n(D) boring\n\nAnswer with the letter of the right option only."
)


def record(prompt=PROMPT, reference="B", **metadata):
    return Record(
        id="r",
        messages=(Message(role="user", content=prompt),),
        reference=reference,
        metadata=metadata,
    )


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        "Option B",
        "The answer is (B).",
        "Answer: B",
        "The correct answer is B) a delta and a canyon.",
        "B: a delta and a canyon",
        "a delta and a canyon",
        "It made a delta and a canyon.",
        '{"answer": "B"}',
        "(A) is wrong.\n(C) is wrong too.\nSo the answer is B.",
        "A river carries sand.\n#### B",
        "The answer is B, not A.",
        "B is right because A river flows.",
    ],
)
def test_an_option_is_read_however_it_is_named(text):
    assert qa.parse(text, record()) == "B"


@pytest.mark.parametrize(
    "text", ["A or B", "It is (A) or (B)", "I think A river is nice", "E", "", "delta"]
)
def test_no_option_or_two_is_none(text):
    assert qa.parse(text, record()) is None


def test_options_may_have_letters_of_any_script():
    choices = {"क": "दिल्ली", "ख": "मुंबई"}
    row = record("राजधानी?", "क", choices=choices)
    for text in ("क", "(क)", "उत्तर: क", "दिल्ली", "उत्तर: दिल्ली।"):
        assert qa.parse(text, row) == "क"


def test_a_question_with_labels_is_closed_too():
    row = record("Answer with one of: yes, no, maybe.\n\nIs it?", "yes")
    assert qa.correct(qa.parse("Yes, it is.", row), row) == 1.0
    assert is_closed([row, record()])
    assert default_metrics(qa, [row]) == ("accuracy", "macro_f1")
    assert not is_closed([row, record("Who?", "Ann")])
    assert default_metrics(qa, [record("Who?", "Ann")]) == ("accuracy", "exact_match", "f1")
    assert not is_closed([])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The Eiffel Tower", 1.0),
        ("eiffel tower.", 1.0),
        ("Answer: **Eiffel Tower**", 1.0),
        ('{"answer": "Louvre"}', 1.0),
        ("Eiffel", 0.0),
        ("", 0.0),
    ],
)
def test_an_open_answer_equals_any_accepted_one_but_for_case_marks_and_articles(text, right):
    row = record("What to see?", "Eiffel Tower", answers=["Eiffel Tower", "the Louvre"])
    assert qa.correct(qa.parse(text, row), row) == right


@pytest.mark.parametrize("answer", ["उत्तर प्रदेश", "കേരളം", "Louis C.K.", "don't", "R&B", "C++"])
def test_an_open_gold_answer_is_right(answer):
    row = record("?", answer)
    assert qa.correct(qa.parse(answer, row), row) == 1.0


def test_vowel_signs_are_part_of_an_answer():
    row = record("?", "कि")
    assert qa.correct(qa.parse("का", row), row) == 0.0


def test_without_a_reference_nothing_is_right_or_wrong():
    assert qa.correct("B", record(reference=None)) is None


def test_bare_questions_get_an_instruction():
    rows = [
        {"question": "Who?", "answer": "Ann"},
        {"question": "Who?", "context": "Ann came.", "answer": "Ann"},
        {"question": "Who?", "choices": ["Ann", "Bob"], "answer": "A"},
    ]
    short, passage, choice = (qa.turns(row)[0].messages[-1].content for row in load_dataset(rows))
    assert short == "Answer the question with a short phrase.\n\nQuestion: Who?"
    assert passage.endswith("Passage: Ann came.\n\nQuestion: Who?")
    assert choice.endswith("(B) Bob\n\nAnswer with the letter of the right option only.")
