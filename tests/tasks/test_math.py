import time

import pytest

from potstill.data.load import load_dataset
from potstill.tasks.math import math_task
from potstill.tasks.verifier import Verifier
from potstill.types import Message, Record


def record(reference, prompt="How many?", **metadata):
    return Record(
        id="r",
        messages=(Message(role="user", content=prompt),),
        reference=reference,
        metadata=metadata,
    )


def score(gold, text):
    row = record(gold)
    return math_task.correct(math_task.parse(text, row), row)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("6 * 7 = 42\n#### 42", "So it is 6*7=42.\n#### 42"),
        ("42", "The answer is 42 apples."),
        ("42", "The answer is $\\boxed{42}$."),
        ("42", "**42**"),
        ("42", '{"answer": 42}'),
        ("42", "We get 6 * 7 = 42 in the end"),
        ("42", "42 km."),
        ("42", "4२".replace("4", "४")),
        ("42", "उत्तर: ४२"),
        ("42", "ഉത്തരം: ൪൨"),
        ("42", "٤٢"),
        ("1234", "$1,234.00"),
        ("120000", "₹1,20,000"),
        ("1234567", "1 234 567"),
        ("-3", "The answer is −3"),
        ("50", "50%"),
        ("0.5", "50 %"),
        ("0.5", "1/2"),
        ("1.5", "1 1/2"),
        ("3.5", "3,5"),
        ("1000", "1e3"),
        ("7", "The answer is 7, because 3 + 4 = 7."),
        ("18", "Janet makes 9 * 2 = $18 every day"),
    ],
)
def test_the_same_number_is_right_however_it_is_written(gold, text):
    assert score(gold, text) == 1.0


@pytest.mark.parametrize(
    ("gold", "text"),
    [("42", "43"), ("42", "I don't know"), ("42", ""), ("42", "-42"), ("50", "5%"), ("1", "1/0")],
)
def test_another_number_or_none_is_wrong(gold, text):
    assert score(gold, text) == 0.0


def test_the_metadata_answer_wins_over_the_reference():
    assert math_task.correct("3", record("reasoning without a number", answer="3")) == 1.0
    assert math_task.correct("3", record(None)) is None


def test_options_are_read_by_their_letter():
    prompt = "Sum?\nOptions:\n(A) 0\n(B) 2.25\n(C) 300\n\nGive the letter after ####."
    row = record("= 300\n#### C", prompt, answer="C", answer_text="300")
    for text in ("... = 300\n#### C", "The answer is (C).", "300"):
        assert math_task.correct(math_task.parse(text, row), row) == 1.0
    assert math_task.correct(math_task.parse("#### B", row), row) == 0.0


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier()
    yield verifier
    verifier.close()


@pytest.mark.slow
def test_equal_formulas_are_equal_and_others_are_not(verifier):
    assert verifier.equal("\\frac{\\sqrt{2}}{2}", "1/\\sqrt{2}")
    assert verifier.equal("x^2+2x+1", "(x+1)^2")
    assert not verifier.equal("x^2", "x^3")
    assert not verifier.equal("\\frac{", "{{{")


@pytest.mark.slow
def test_a_formula_that_hangs_is_killed_and_the_next_one_is_answered():
    verifier = Verifier(timeout_seconds=0.5)
    assert not verifier.equal("1", "9^{9^{9^{9}}}")
    started = time.monotonic()
    assert not verifier.equal("1", "9^{9^{9^{9}}}")
    assert time.monotonic() - started < 30
    verifier.timeout_seconds = 20.0
    assert verifier.equal("x+1", "1+x")
    verifier.close()


def test_prose_is_never_given_to_computer_algebra():
    started = time.monotonic()
    assert score("a cat", "The answer is a dog") == 0.0
    assert time.monotonic() - started < 0.2


def test_bare_questions_get_an_instruction():
    (row,) = load_dataset([{"question": "6 * 7?", "answer": "#### 42"}])
    assert math_task.turns(row)[0].messages[0].content.endswith("on the last line after ####.")
