"""Instructions are added for the teacher only, and its answer is found again behind them."""

import pytest

from potstill.config import GenerationConfig
from potstill.tasks import get_task
from potstill.teach.prompts import (
    join_reasoning,
    lessons,
    split_answer,
    split_reasoning,
    teacher_prompt,
)
from potstill.types import Message, Record

ASK = Record(
    id="r",
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="2+2?"),
    ),
)
PLAIN = GenerationConfig()
THOUGHT = GenerationConfig(prompting="chain_of_thought")
DENSE = GenerationConfig(prompting="chain_of_density", max_summary_words=33)


def test_a_plain_prompt_is_asked_as_it_is():
    assert teacher_prompt(ASK, PLAIN) is ASK


@pytest.mark.parametrize("config", [THOUGHT, DENSE])
def test_the_users_system_prompt_and_question_stay(config):
    asked = teacher_prompt(ASK, config)
    assert asked.messages[0] == ASK.messages[0]
    assert asked.messages[1].content.startswith("2+2?\n\n")
    assert len(asked.messages) == 2


def test_the_word_limit_reaches_the_teacher():
    assert "33 words" in teacher_prompt(ASK, DENSE).messages[-1].content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two and two.\nAnswer: 4", ("Two and two.", "4")),
        ("Two.\n**Answer:** 4", ("Two.", "4")),
        ("Two.\n**Answer: 4**", ("Two.", "4")),
        ("Two.\nFinal answer: B", ("Two.", "B")),
        ("Answer: 3? No.\nanswer：4", ("Answer: 3? No.", "4")),
        ("The answer is 4", ("The answer is 4", "")),
        ("<think>hm</think>Two.\nAnswer: 4", ("hm\n\nTwo.", "4")),
    ],
)
def test_the_answer_is_told_from_the_reasoning(text, expected):
    assert split_answer(text, THOUGHT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"rounds": [{"summary": "a"}, {"added": "x", "summary": "b"}]}', ("a", "b")),
        ('Sure!\n```json\n{"rounds": [{"summary": "a\nb"}]}\n```', ("", "a\nb")),
        ("no JSON", ("no JSON", "")),
        ('{"rounds": []}', ('{"rounds": []}', "")),
        ('{"rounds": ["a"]}', ('{"rounds": ["a"]}', "")),
    ],
)
def test_the_last_summary_is_the_answer(text, expected):
    assert split_answer(text, DENSE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("just this", ("", "just this")),
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        ("a</think>b", ("a", "b")),
        ("<think>never closed", ("never closed", "")),
        ("I use <think> in text", ("", "I use <think> in text")),
    ],
)
def test_thoughts_in_tags_are_set_apart(text, expected):
    assert split_reasoning(text) == expected


def test_joined_reasoning_can_be_split_again():
    assert split_answer(join_reasoning("because", "4"), THOUGHT) == ("because", "4")
    assert join_reasoning("", "4") == "4"


def taught(**metadata):
    return ASK.model_copy(update={"reference": "4", "metadata": metadata})


def test_both_gives_a_bare_row_and_a_reasoned_one_that_the_prompt_tells_apart():
    config = GenerationConfig(prompting="chain_of_thought", reasoning="both")
    record = taught(reasoning="two and two")
    bare, reasoned = lessons(record, config)
    assert bare is record
    assert reasoned.reference == "two and two\nAnswer: 4"
    assert reasoned.messages == teacher_prompt(ASK, THOUGHT).messages
    assert reasoned.messages[0] == ASK.messages[0], "the user's own system prompt"
    assert bare.messages != reasoned.messages
    assert bare.id != reasoned.id


@pytest.mark.parametrize("reasoning", ["answer", "reasoning"])
def test_the_other_modes_give_one_row(reasoning):
    record = taught(reasoning="two and two")
    assert lessons(record, GenerationConfig(reasoning=reasoning)) == (record,)


def test_an_answer_without_reasoning_gives_no_reasoned_row():
    assert lessons(taught(), GenerationConfig(reasoning="both")) == (taught(),)


def test_the_instruction_for_bare_fields_stands_in_a_reasoned_prompt_once():
    asked = taught(reasoning="so", fields=["premise", "hypothesis"])
    (prompt,) = get_task("nli").turns(asked)
    for row in lessons(prompt, GenerationConfig(reasoning="both")):
        (found,) = get_task("nli").turns(row)
        assert found.messages[-1].content.count("Answer with one of") == 1
