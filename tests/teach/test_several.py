"""Every answer of several teachers is kept under the name of its own, and none is asked twice."""

import asyncio
import json

import pytest
from teach.fakes import FakeTeacher, prompts

from potstill.config import GenerationConfig, PriceConfig, Where
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.several import Member, SeveralTeachers
from potstill.rundir import JsonLines, write_jsonl
from potstill.tasks import get_task
from potstill.teach.accept import check_responses
from potstill.teach.checks import build_checks
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Message, Record, Response

QA = get_task("qa")
SORRY = "I'm sorry, but I can't help with that."
CHECKS = build_checks(["finished", "not_refusal"], QA)


def will_do(record, response):
    return all(check(record, response) is None for check in CHECKS)


def several(how, *teachers, rules=None):
    rules = rules or [None] * len(teachers)
    members = [Member(t.name, t, rule) for t, rule in zip(teachers, rules, strict=True)]
    return SeveralTeachers(members, how, task=QA, will_do=will_do, look_seconds=0.01)


def teacher(name, said=None, **settings):
    """Says its name, or what `said` has for the record."""
    return FakeTeacher(lambda r, s: (said or {}).get(r.id, name), name=name, **settings)


def ask(model, records, folder, task=QA, source="", **config):
    settings = GenerationConfig(**{"pilot": 0, **config})
    return asyncio.run(generate(model, records, folder, task=task, config=settings, source=source))


def said(folder):
    with Ledger(folder) as ledger:
        return [(r.record_id, r.sample, r.text or r.error, r.teacher) for r in ledger.rows("train")]


def test_what_will_not_do_goes_to_the_next_and_all_of_it_is_kept(tmp_path):
    a = teacher("a", {"r1": TeacherError("gone"), "r2": SORRY})
    b = teacher("b")
    found = ask(several("fallback", a, b), prompts(4), tmp_path)
    assert (found.requested, found.answered, found.failed) == (4, 4, 0)
    assert [text for _, _, text, _ in said(tmp_path)] == ["a", "b", "b", "a"]
    assert [label for *_, label in said(tmp_path)] == ["a", "b", "b", "a"]
    lines = [line for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert sorted((row["record_id"], row["teacher"]) for row in rows) == [
        ("r0", "a"), ("r1", "a"), ("r1", "b"), ("r2", "a"), ("r2", "b"), ("r3", "a"),
    ]  # fmt: skip


def test_asking_again_asks_nobody(tmp_path):
    a, b = teacher("a", {"r1": TeacherError("gone"), "r2": SORRY}), teacher("b")
    model = several("fallback", a, b)
    ask(model, prompts(4), tmp_path)
    before = len(a.asked), len(b.asked)
    found = ask(model, prompts(4), tmp_path)
    assert (len(a.asked), len(b.asked)) == before == (4, 2)
    assert (found.answered, found.reused) == (4, 4)


def test_rows_of_a_file_are_looked_at_again_where_an_answer_may_not_do(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, prompts(40))
    a, b = teacher("a", {f"r{n}": SORRY for n in range(40)}), teacher("b", {"r30": SORRY})
    model = several("fallback", a, b)
    ask(model, JsonLines(path, Record), tmp_path / "out", source="s")
    c = teacher("c")
    ask(several("fallback", a, b, c), JsonLines(path, Record), tmp_path / "out", source="s")
    assert [record.id for record in c.asked] == ["r30"]
    assert (len(a.asked), len(b.asked)) == (40, 40)


def test_what_the_second_teacher_failed_to_mend_it_is_asked_again(tmp_path):
    """Though the file is the same, and so are its first requests."""
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, prompts(40))
    a, b = teacher("a", {"r30": SORRY}), teacher("b", {"r30": TeacherError("gone")})
    ask(several("fallback", a, b), JsonLines(path, Record), tmp_path / "out", source="s")
    assert said(tmp_path / "out")[30] == ("r30", 0, SORRY, "a")
    b.say = lambda record, sampling: "b"
    ask(several("fallback", a, b), JsonLines(path, Record), tmp_path / "out", source="s")
    assert said(tmp_path / "out")[30] == ("r30", 0, "b", "b")
    assert len(a.asked) == 40


def test_an_answer_is_better_than_the_failure_of_the_next_teacher(tmp_path):
    a, b = teacher("a", {"r0": SORRY}), teacher("b", {"r0": TeacherError("gone")})
    found = ask(several("fallback", a, b), prompts(1), tmp_path)
    assert (found.answered, found.failed) == (1, 0)
    assert said(tmp_path) == [("r0", 0, SORRY, "a")]


def test_where_all_fail_the_record_has_failed_and_is_asked_again(tmp_path):
    a, b = (teacher(name, {"r0": TeacherError("gone")}) for name in "ab")
    found = ask(several("fallback", a, b), prompts(1), tmp_path, min_success_ratio=0)
    assert (found.answered, found.failed) == (0, 1)
    b.say = lambda record, sampling: "back"
    ask(several("fallback", a, b), prompts(1), tmp_path)
    assert said(tmp_path) == [("r0", 0, "back", "b")]
    assert len(a.asked) == len(b.asked) == 2


def test_a_teacher_out_of_quota_leaves_the_rest_to_the_next(tmp_path):
    left = [2]

    def say(record, sampling):
        left[0] -= 1
        return "a" if left[0] >= 0 else TeacherRefused("no quota left")

    a, b = FakeTeacher(say, name="a", max_in_flight=1), teacher("b", max_in_flight=1)
    found = ask(several("fallback", a, b), prompts(6), tmp_path)
    assert found.answered == 6
    assert [label for *_, label in said(tmp_path)] == ["a", "a", "b", "b", "b", "b"]
    assert len(a.asked) == 3


def test_the_run_ends_when_all_teachers_refuse_everything(tmp_path):
    refused = TeacherRefused("no key")
    a = FakeTeacher(lambda r, s: refused if r.id == "r1" else SORRY, name="a", max_in_flight=1)
    b = FakeTeacher(lambda r, s: refused if r.id == "r1" else "b", name="b", max_in_flight=1)
    with pytest.raises(TeacherRefused, match="no key"):
        ask(several("fallback", a, b), prompts(3), tmp_path)
    with Ledger(tmp_path) as ledger:
        assert [r.text for r in ledger.rows("train")] == ["b"]


def test_a_run_stopped_between_two_teachers_goes_on_with_the_second(tmp_path):
    a, b = teacher("a", {"r0": SORRY}), teacher("b", delay=60)
    model = several("fallback", a, b)

    async def stopped():
        work = generate(model, prompts(1), tmp_path, task=QA, config=GenerationConfig(pilot=0))
        asking = asyncio.ensure_future(work)
        while not b.asked:
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(stopped())
    b.delay = 0
    ask(model, prompts(1), tmp_path)
    assert said(tmp_path) == [("r0", 0, "b", "b")]
    assert (len(a.asked), len(b.asked)) == (1, 2)


def test_each_turn_of_a_conversation_may_fall_back(tmp_path):
    messages = [Message(role=role, content=text) for role, text in
                [("user", "one"), ("assistant", "gold"), ("user", "two")]]  # fmt: skip
    talk = Record(id="t", messages=tuple(messages), reference="gold")
    a = FakeTeacher(lambda r, s: SORRY if r.messages[-1].content == "two" else "a", name="a")
    b = teacher("b")
    ask(several("fallback", a, b), [talk], tmp_path, task=get_task("conversation"))
    assert [(text, label) for _, _, text, label in said(tmp_path)] == [("a", "a"), ("b", "b")]
    assert b.asked[0].messages[1].content == "a"


def test_a_pilot_is_not_held_against_the_first_teacher_alone(tmp_path):
    a, b = teacher("a", {f"r{n}": TeacherError("gone") for n in range(4)}), teacher("b")
    assert ask(several("fallback", a, b), prompts(6), tmp_path, pilot=4).answered == 6
    b.say = a.say
    with pytest.raises(TeacherError, match="4 of the first 4 prompts went wrong"):
        ask(several("fallback", a, b), prompts(4), tmp_path / "other", pilot=4, min_success_ratio=0)


def test_an_exchanged_teacher_is_asked_its_rows_and_no_other(tmp_path):
    """Also those behind the first rows, by whose requests an unchanged file is told."""
    path = tmp_path / "rows.jsonl"
    rows = [r.model_copy(update={"metadata": {"n": n}}) for n, r in enumerate(prompts(40))]
    write_jsonl(path, rows)
    rules = [Where(field="n", at_most=30), None]
    a, b, c = teacher("a"), teacher("b"), teacher("c")
    for second in (b, c):
        model = several("route", a, second, rules=rules)
        ask(model, JsonLines(path, Record), tmp_path / "out", source="s")
    assert (len(a.asked), len(b.asked), len(c.asked)) == (31, 9, 9)
    assert said(tmp_path / "out")[-1] == ("r39", 0, "c", "c")


def test_in_a_vote_a_sample_is_an_answer_of_one_teacher(tmp_path):
    model = several("vote", teacher("a"), teacher("b"), teacher("c"))
    found = ask(model, prompts(2), tmp_path, num_responses=3, temperature=0)
    assert (found.requested, found.answered) == (6, 6)
    assert said(tmp_path)[:3] == [("r0", 0, "a", "a"), ("r0", 1, "b", "b"), ("r0", 2, "c", "c")]


def test_the_bill_of_all_teachers_is_bounded_by_each_ones_price(tmp_path):
    dear = PriceConfig(input=0, output=1e6 / 512)  # an answer may cost 1
    a = teacher("a", price=dear, max_in_flight=1)
    b = teacher("b", max_in_flight=1)
    rules = [Where(field="n", equals=0), None]
    rows = [r.model_copy(update={"metadata": {"n": n % 2}}) for n, r in enumerate(prompts(8))]
    model = several("route", a, b, rules=rules)
    with pytest.raises(TeacherError, match=r"max_cost = 1 is reached"):
        ask(model, rows, tmp_path, max_cost=1, max_in_flight=1)
    # The first answer cost 0.001, so that a second one does not fit; b's cost nothing.
    assert (len(a.asked), len(b.asked)) == (1, 1)
    free = several("route", b, a, rules=[None, None])
    assert ask(free, prompts(5), tmp_path / "free", max_cost=0.5).answered == 5


def voted(texts, **config):
    record = prompts(1)[0]
    responses = [
        Response(record_id="r0", sample=n, text=text, finish_reason="stop", teacher="abcd"[n])
        for n, text in enumerate(texts)
    ]
    settings = GenerationConfig(teachers="vote", **config)
    checks = build_checks(["finished", "not_refusal"], QA)
    accepted, rejected = check_responses([record], responses, checks, QA, config=settings)
    return [(r.reference, r.metadata["teacher"]) for r in accepted], [r.reason for r in rejected]


@pytest.mark.parametrize(
    ("texts", "settings", "accepted", "reasons"),
    [
        (["Rome", "rome.", "Bern"], {}, [("Rome", "a")], ["duplicate", "disagrees"]),
        (["Bern", "Rome", "rome"], {}, [("Rome", "b")], ["disagrees", "duplicate"]),
        (["Bern", "Rome", "Oslo"], {}, [], ["disagrees"] * 3),
        (["Rome", "Rome", "Bern"], {"min_agreement": 3}, [], ["disagrees"] * 3),
        (["Rome", "Bern", "Rome", "Bern"], {}, [], ["disagrees"] * 4),
        ([SORRY, SORRY, "Rome"], {}, [], ["refusal", "refusal", "disagrees"]),
    ],
)
def test_the_first_of_enough_agreeing_teachers_is_learned(texts, settings, accepted, reasons):
    assert voted(texts, **settings) == (accepted, reasons)


def test_a_disagreement_says_who_said_what():
    record = prompts(1)[0]
    responses = [
        Response(record_id="r0", sample=n, text=text, finish_reason="stop", teacher=text.lower())
        for n, text in enumerate(["Rome", "Bern"])
    ]
    config = GenerationConfig(teachers="vote")
    _, rejected = check_responses([record], responses, [], QA, config=config)
    assert rejected[0].detail == "1 agree, 2 must; rome: Rome; bern: Bern"
