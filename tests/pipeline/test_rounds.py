"""As many rows as were wanted: asking and checking take turns, and nothing is asked in vain."""

import asyncio
from collections import Counter

import pytest
from teach.fakes import FakeTeacher, prompts

from potstill.config import PriceConfig, parse_config
from potstill.errors import ConfigError, TeacherError, TeacherRefused
from potstill.pipeline.check import sort_answers
from potstill.pipeline.context import Context
from potstill.pipeline.rounds import Plan, answered_rounds, ask_until_enough
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.teach.ledger import Ledger
from potstill.teach.requests import seed_of
from potstill.types import Record


def passes_from(**samples):
    """A teacher whose answers to a record are empty before a sample; `r3=2` fails twice."""

    def say(record, sampling):
        at = next(n for n in range(64) if seed_of(0, record.id, 0, n) == sampling.seed)
        return f"{record.id} says {at}" if at >= samples.get(record.id, 0) else ""

    return say


@pytest.fixture
def asking(tmp_path):
    """Asks for rows in a run folder; a second call goes on with it."""
    (tmp_path / "config.json").write_text("{}")
    events = []

    def ask(teacher, records, *, task="qa", checks=("finished",), test=(), **generation):
        run = RunDir(tmp_path / "run")
        for path, rows in ((run.train, records), (run.validation, ()), (run.test, test)):
            write_jsonl(path, rows)
        tree = {
            "name": "x", "task": task, "teacher": str(tmp_path), "student": "s",
            "train_data": "a.jsonl", "checks": list(checks),
            "generation": {"pilot": 0, **generation},
        }  # fmt: skip
        if generation.get("max_cost"):
            tree["teacher"] = {"source": str(tmp_path), "price": {"output": 1.0}}
        ctx = Context(parse_config(tree), run, on_event=events.append)
        counts, facts = asyncio.run(ask_until_enough(ctx, teacher, ctx.config.generation))
        return counts, facts, ctx

    ask.notes = lambda: [event.text for event in events if event.kind == "note"]
    return ask


def accepted(ctx, facts):
    """The rows that the stage check keeps."""
    with Ledger(ctx.run.responses) as ledger:

        def with_answers(split, records):
            if split == "train":
                return answered_rounds(ctx.run, ledger, len(facts["rounds"]))
            return iter(())

        found = sort_answers(ctx, with_answers)
    rows = read_jsonl(ctx.run.accepted, Record)
    assert len(rows) == found["num_train"]
    return [row.id for row in rows]


def test_no_more_is_asked_than_rows_are_wanted(asking):
    teacher = FakeTeacher(passes_from())
    counts, facts, ctx = asking(teacher, prompts(10), num_accepted=6)
    assert [record.id for record in teacher.asked] == [f"r{n}" for n in range(6)]
    assert (counts.requested, facts["found"], facts["wanted"]) == (6, 6, 6)
    assert accepted(ctx, facts) == [f"r{n}" for n in range(6)]


def test_what_is_missing_is_asked_of_new_prompts_first_and_then_again(asking):
    teacher = FakeTeacher(passes_from(r0=1, r1=2, r4=1))
    counts, facts, ctx = asking(teacher, prompts(5), num_accepted=5)
    assert facts["rounds"] == [{"asked": 5, "accepted": 2}, {"asked": 3, "accepted": 2},
                               {"asked": 1, "accepted": 1}]  # fmt: skip
    assert Counter(record.id for record in teacher.asked) == {
        "r0": 2, "r1": 3, "r2": 1, "r3": 1, "r4": 2,
    }  # fmt: skip
    assert sorted(accepted(ctx, facts)) == ["r0#1", "r1#2", "r2", "r3", "r4#1"]
    assert counts.requested == counts.answered == 9


def test_new_prompts_come_before_second_samples(asking):
    teacher = FakeTeacher(passes_from(r0=1))
    _, facts, _ = asking(teacher, prompts(4), num_accepted=3)
    assert [record.id for record in teacher.asked] == ["r0", "r1", "r2", "r3"]
    assert facts["found"] == 3


def test_it_ends_when_the_candidates_are_used_up_and_says_so(asking):
    teacher = FakeTeacher(passes_from(r0=9, r1=9))
    counts, facts, _ = asking(teacher, prompts(4), num_accepted=4, max_candidates=7)
    assert (counts.requested, facts["found"]) == (7, 2)
    (note,) = asking.notes()
    assert note == "2 of 4 wanted rows after 7 answers: generation.max_candidates"


def test_a_prompt_with_a_right_answer_is_not_asked_for_another(asking):
    _, facts, _ = asking(FakeTeacher(passes_from()), prompts(3), num_accepted=5)
    assert facts["found"] == 3
    assert "no prompt is left to ask again" in asking.notes()[0]


def test_open_prompts_give_several_rows(asking):
    teacher = FakeTeacher(passes_from())
    _, facts, ctx = asking(teacher, prompts(3), task="conversation", num_accepted=8)
    assert facts["found"] == 8
    assert len(set(accepted(ctx, facts))) == 8


def test_greedy_answers_are_not_asked_for_twice(asking):
    teacher = FakeTeacher(lambda record, sampling: "" if record.id == "r0" else "fine")
    asking(teacher, prompts(3), num_accepted=3, temperature=0)
    assert len(teacher.asked) == 3


def test_nothing_more_is_asked_when_nothing_at_all_passes(asking):
    teacher = FakeTeacher(lambda *_: "")
    asking(teacher, prompts(40), num_accepted=20)
    assert len(teacher.asked) == 20
    assert "not one passed its checks" in asking.notes()[0]


def test_the_checks_of_the_set_count(asking):
    teacher = FakeTeacher(lambda record, sampling: "the same")
    same = [r.model_copy(update={"messages": prompts(1)[0].messages}) for r in prompts(6)]
    _, facts, ctx = asking(
        teacher, [*same, *prompts(3, start=6)], num_accepted=4, checks=["finished", "no_duplicates"]
    )
    assert facts["found"] == len(accepted(ctx, facts)) == 4


def test_an_interrupted_asking_goes_on_and_ends_the_same(asking):
    fails = {"r1": 2, "r4": 1, "r6": 3}
    said, num_left = passes_from(**fails), 11

    def stops(record, sampling):
        nonlocal num_left
        num_left -= 1
        return TeacherRefused("no more") if num_left < 0 else said(record, sampling)

    with pytest.raises(TeacherRefused):
        asking(FakeTeacher(stops, max_in_flight=1), prompts(9), num_accepted=9)
    again = FakeTeacher(said)
    counts, facts, ctx = asking(again, prompts(9), num_accepted=9)
    assert counts.requested == 9 + 6
    assert len(again.asked) == 9 + 6 - 11
    assert counts.reused == 11
    assert sorted(accepted(ctx, facts)) == sorted(
        f"r{n}#{fails[f'r{n}']}" if f"r{n}" in fails else f"r{n}" for n in range(9)
    )
    third = FakeTeacher(said)
    asking(third, prompts(9), num_accepted=9)
    assert not third.asked


def test_failures_are_bounded_over_all_rounds_together(asking):
    said = passes_from(r3=1)

    def fails(record, sampling):
        text = said(record, sampling)
        return TeacherError("no luck") if text == "r3 says 1" else text

    _, facts, _ = asking(FakeTeacher(fails), prompts(20), num_accepted=20, min_success_ratio=0.9)
    assert facts["found"] == 20
    with pytest.raises(TeacherError, match=r"1 of 21 .*min_success_ratio = 0\.99"):
        asking(FakeTeacher(fails), prompts(20), num_accepted=20, min_success_ratio=0.99, top_p=0.9)


def test_the_bill_is_bounded_over_all_rounds_together(asking):
    said = passes_from(**{f"r{n}": 1 for n in range(6)})
    teacher = FakeTeacher(said, price=PriceConfig(output=100.0))  # 0.001 for ten tokens
    with pytest.raises(TeacherError, match="max_cost"):
        asking(teacher, prompts(8), num_accepted=8, max_cost=0.0105, max_new_tokens=10)
    assert len(teacher.asked) == 10


def test_a_plan_asks_every_prompt_as_often_as_the_others():
    plan = Plan(3, most_samples=2, again=True)
    assert plan.next(2) == ([0, 1], 0)
    plan.accepted(0)
    assert plan.next(5) == ([2], 0)
    assert plan.next(2) == ([1, 2], 1), "those without a row come first"
    assert plan.next(2) == ([0], 1)
    assert plan.next(2) == ([], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_accepted": 5, "max_candidates": 4}, "max_candidates = 4 cannot give"),
        ({"max_candidates": 4}, "is the bound of generation.num_accepted"),
        ({"num_accepted": 5, "num_responses": 2}, "leave generation.num_responses out"),
        ({"num_accepted": 5, "choose": "vote"}, "leave generation.choose out"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    tree = {"name": "x", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    with pytest.raises(ConfigError, match=message):
        parse_config({**tree, "generation": changes})


@pytest.mark.parametrize("task", ["conversation", "summarization", "translation"])
def test_open_tasks_have_no_reasoned_rows(task):
    tree = {"name": "x", "task": task, "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    with pytest.raises(ConfigError, match="reasoning: both is not for task"):
        parse_config({**tree, "generation": {"reasoning": "both"}})


@pytest.mark.parametrize("changes", [{"generation": {"num_accepted": 5}}, {"data_generation": {}}])
def test_without_a_teacher_nothing_is_counted_or_written(changes):
    tree = {"name": "x", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    with pytest.raises(ConfigError, match="none is asked; leave it out"):
        parse_config({**tree, "data": {"logged_answers": "reuse"}, **changes})
