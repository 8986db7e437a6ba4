"""An answer becomes one training row or two, and the student is watched on bare ones."""

import asyncio

import pytest
from teach.fakes import FakeTeacher
from tiny import tiny_tokenizer

from potstill.config import parse_config
from potstill.pipeline.check import sort_answers
from potstill.pipeline.context import Context
from potstill.pipeline.teach import accepted_rows, lessons_key
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Message, Record

SYSTEM = "You are a clerk in Wells."
ASK = (Message(role="system", content=SYSTEM), Message(role="user", content="6 - 2?"))


def taught(folder, reasoning):
    """A run that was asked and checked, and the teacher."""
    run, teacher = RunDir(folder), FakeTeacher(lambda *_: "Two less than six.\nAnswer: 4")
    tree = {
        "name": "x", "task": "math", "teacher": "t", "student": "s", "train_data": "a.jsonl",
        "checks": ["finished"],
        "generation": {"pilot": 0, "prompting": "chain_of_thought", "reasoning": reasoning},
    }  # fmt: skip
    ctx = Context(parse_config(tree), run)
    for split, path in (("train", run.train), ("validation", run.validation)):
        records = [Record(id=f"{split}-{n}", messages=ASK) for n in range(2)]
        write_jsonl(path, records)
        work = generate(teacher, records, run.responses, task=ctx.task, part=split,
                        config=ctx.config.generation)  # fmt: skip
        asyncio.run(work)
    with Ledger(run.responses) as answers:
        facts = sort_answers(ctx, answers.with_records)
    return ctx, teacher, facts


def rows(ctx, split):
    """(prompt, what is learned) of each training row, as text."""
    tokenizer = tiny_tokenizer()
    found = []
    for row in accepted_rows(ctx, tokenizer, split):
        start = row.loss_mask.index(1)
        found.append((tokenizer.decode(row.ids[:start]), tokenizer.decode(row.ids[start:-1])))
    return found


def test_both_teaches_two_tasks_and_watches_the_one_that_is_asked_for(tmp_path):
    ctx, teacher, facts = taught(tmp_path, "both")
    assert facts["num_train"] == len(read_jsonl(ctx.run.accepted, Record)) == 2
    found = rows(ctx, "train")
    assert [answer for _, answer in found] == ["4", "Two less than six.\nAnswer: 4"] * 2
    told = teacher.asked[0].messages[-1].content
    assert [told in prompt for prompt, _ in found] == [False, True] * 2
    assert [answer for _, answer in rows(ctx, "validation")] == ["4", "4"]


@pytest.mark.parametrize(
    ("reasoning", "learned"),
    [("answer", ["4"] * 2), ("reasoning", ["Two less than six.\nAnswer: 4"] * 2)],
)
def test_the_other_modes_teach_one(tmp_path, reasoning, learned):
    ctx, _, _ = taught(tmp_path, reasoning)
    assert [answer for _, answer in rows(ctx, "train")] == learned


@pytest.mark.parametrize("reasoning", ["answer", "reasoning", "both"])
def test_the_users_system_prompt_reaches_the_teacher_and_the_student(tmp_path, reasoning):
    ctx, teacher, _ = taught(tmp_path, reasoning)
    assert all(record.messages[0] == ASK[0] for record in teacher.asked)
    for split in ("train", "validation"):
        assert all(prompt.count(SYSTEM) == 1 for prompt, _ in rows(ctx, split))


def test_training_begins_anew_when_the_lessons_change(tmp_path):
    keys = {name: lessons_key(taught(tmp_path / name, name)[0]) for name in ("answer", "both")}
    assert keys["answer"] != keys["both"]
