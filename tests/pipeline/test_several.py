"""A run with several teachers: each is called, reckoned, screened and judged as its own."""

import asyncio
import json

import pytest
from fake_endpoint import FakeEndpoint, completion, served
from teach.fakes import FakeTeacher

from potstill.config import parse_config
from potstill.errors import ConfigError, DataError, TeacherRefused
from potstill.models.private import PrivateModel
from potstill.models.several import Member, SeveralTeachers
from potstill.pipeline.audition import audition
from potstill.pipeline.context import Context
from potstill.pipeline.estimate import estimate
from potstill.pipeline.labelled import ask_teacher
from potstill.pipeline.preflight import preflight, privacy_of, teacher_key
from potstill.pipeline.teachers import open_teachers, refuse_unrouted, screened
from potstill.rundir import RunDir, write_jsonl
from potstill.tasks import get_task
from potstill.types import Message, Record

REFUSED = (401, {"error": {"message": "Incorrect API key provided"}})
LAW = {"field": "topic", "equals": "law"}


@pytest.fixture
def context(tmp_path):
    """A context for teachers and settings; what is told in it goes to its `told`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [
        {"question": f"What is w{n}?" + " Say it." * n, "topic": "law" if n < 2 else "tax",
         "answer": f"w{n}"}
        for n in range(6)
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(teachers, generation=None, secrets=None, **changes):
        tree = {
            "name": "x", "task": "qa", "student": str(tmp_path / "model"), "teacher": teachers,
            "train_data": str(tmp_path / "train.jsonl"), "generation": generation or {},
            "data": {"validation": 0}, **changes,
        }  # fmt: skip
        told = []
        ctx = Context(parse_config(tree), RunDir(tmp_path / "run"), secrets=secrets or {},
                      on_event=told.append)  # fmt: skip
        ctx.told = told
        return ctx

    make.folder = str(tmp_path / "model")
    return make


def endpoints(*fakes):
    return [{"url": fake.url, "model": name} for fake, name in zip(fakes, "abc", strict=False)]


def test_each_teacher_is_called_once_before_the_run(context):
    one, two = FakeEndpoint(), FakeEndpoint()
    with served(one, two):
        preflight(context(endpoints(one, two), {"teachers": "vote", "temperature": 0.5}))
    assert [fake.bodies[0]["temperature"] for fake in (one, two)] == [0.5, 0.5]
    assert (len(one.bodies), len(two.bodies)) == (1, 1)


def test_one_that_fails_ends_the_run_unless_another_takes_its_place(context):
    bad, good = FakeEndpoint(*[REFUSED] * 4), FakeEndpoint()
    with served(bad, good):
        ctx = context(endpoints(bad, good), {"teachers": "fallback"})
        preflight(ctx)
        (note,) = [event.text for event in ctx.told]
        assert note.startswith("warning: a fails, so others take its place: ")
        with pytest.raises(TeacherRefused, match="refuses"):
            preflight(context(endpoints(bad, good), {"teachers": "vote"}))
        with pytest.raises(TeacherRefused, match="refuses"):
            preflight(context(endpoints(bad, bad), {"teachers": "fallback"}))


def test_terms_are_each_teachers_own(context):
    forbids = "llama-3-8b-instruct"
    with pytest.raises(ConfigError, match=r"forbid .*--accept-terms or teacher\.1\.accept_terms"):
        preflight(context([forbids_not := "qwen3-8b", forbids], {"teachers": "fallback"}))
    accepted = {"source": forbids, "accept_terms": True}
    both = r"accept-terms or teacher\.0\.accept_terms=true$"
    with pytest.raises(ConfigError, match=both):
        preflight(context([forbids, accepted, forbids_not], {"teachers": "fallback"}))
    ctx = context([accepted, forbids_not], {"teachers": "fallback"})
    preflight(ctx)
    assert "forbid training on its outputs" in ctx.told[0].text


def test_a_key_given_in_clear_reaches_no_one_of_several(context):
    from pydantic import SecretStr

    one, two = FakeEndpoint(), FakeEndpoint()
    secrets = {"teacher": SecretStr("canary-key-77")}
    with served(one, two):
        preflight(context(endpoints(one, two), {"teachers": "vote"}, secrets))
        assert not any("canary" in str(fake.headers) for fake in (one, two))
        preflight(context(endpoints(one)[0], secrets=secrets))
    assert "canary" in str(one.headers)


def test_personal_data_is_hidden_from_endpoints_and_from_no_one_here(context):
    remote, here = {"url": "http://a.example/v1", "model": "m"}, {"source": context.folder}
    ctx = context([{**remote, "when": LAW}, here])
    modes = [privacy_of(ctx, teacher).mode for teacher in ctx.config.teachers]
    assert (modes, privacy_of(ctx).mode) == (["auto", "off"], "auto")
    here_too = context([{**here, "when": LAW}, here])
    assert privacy_of(here_too).mode == "off"


def test_only_the_records_of_a_screened_teacher_count_as_hidden():
    def record(topic):
        message = Message(role="user", content="a@b.example")
        return Record(id=topic, messages=(message,), metadata={"topic": topic})

    from potstill.config import PrivacyConfig, Where
    from potstill.data.privacy import Privacy

    privacy = Privacy(PrivacyConfig(mode="pseudonymise"), leaves=True)
    members = [Member("a", PrivateModel(FakeTeacher(), privacy), Where(**LAW)),
               Member("b", FakeTeacher())]  # fmt: skip
    records = [record("law"), record("tax")]
    routed = SeveralTeachers(members, "route", task=get_task("qa"))
    assert list(screened(routed, records)) == records[:1]
    voting = SeveralTeachers(members, "vote", task=get_task("qa"))
    assert list(screened(voting, records)) == records
    assert list(screened(FakeTeacher(), records)) == []
    assert list(screened(members[0].model, records)) == records


def test_checks_of_the_config_say_when_the_next_teacher_is_asked(context):
    fakes = [FakeEndpoint(answer=lambda body, text=text: completion(text))
             for text in ("I'm sorry, but I cannot help with that.", "Rome")]  # fmt: skip
    asked = Record(id="r", messages=(Message(role="user", content="Capital?"),))

    async def answer(ctx):
        from potstill.types import Sampling

        model = open_teachers(ctx, batch_size=1)
        try:
            return (await model.respond(asked, Sampling())).text
        finally:
            await model.close()

    with served(*fakes):
        default = context(endpoints(*fakes), {"teachers": "fallback"})
        assert asyncio.run(answer(default)) == "Rome"
        changes = {"teachers": "fallback", "fallback_checks": ["finished"]}
        assert asyncio.run(answer(context(endpoints(*fakes), changes))).startswith("I'm sorry")


def routed(*last):
    return [{"url": "http://a.example/v1", "model": "m", "when": LAW}, *last]


def test_records_are_counted_by_teacher_and_one_without_is_named(context):
    ctx = context(routed("qwen3-8b"))
    records = [
        Record(id=f"r{n}", messages=(Message(role="user", content="x"),),
               metadata={"topic": "law" if n < 2 else "tax"})
        for n in range(5)
    ]  # fmt: skip
    write_jsonl(ctx.run.train, records)
    refuse_unrouted(ctx)
    assert [event.text for event in ctx.told] == ["records by teacher: m 2, qwen3-8b 3"]
    last = {"source": "big", "when": {"field": "topic", "equals": "house"}}
    with pytest.raises(DataError, match=r"holds for record r2, whose metadata has topic\."):
        refuse_unrouted(context(routed(last)))
    write_jsonl(ctx.run.train, records[:2])
    write_jsonl(ctx.run.test, records[2:])
    with pytest.raises(DataError, match="holds for record r2"):
        refuse_unrouted(context(routed(last)))
    refuse_unrouted(context(routed(last), evaluate={"teacher": False}))


def test_another_rule_is_another_key_of_the_stage(context):
    assert teacher_key(context(routed("qwen3-8b"))) != teacher_key(
        context([{**routed()[0], "when": {"field": "topic", "equals": "tax"}}, "qwen3-8b"])
    )


def reckoned(context, how, **changes):
    price = {"input": 1.0, "output": 10.0}
    teachers = [{"url": f"http://{name}.example/v1", "model": name, "price": price}
                for name in "ab"]  # fmt: skip
    if how == "route":
        teachers[0]["when"] = LAW
    teachers[1] |= changes
    return estimate(context(teachers, {"teachers": how, "max_new_tokens": 10}))


def test_an_estimate_adds_up_what_each_teacher_is_asked(context):
    one = {"url": "http://a.example/v1", "model": "a", "price": {"input": 1.0, "output": 10.0}}
    alone = estimate(context(one, {"max_new_tokens": 10}))
    routed, voted, reserve = (reckoned(context, how) for how in ("route", "vote", "fallback"))
    assert (routed.num_requests, routed.answer_tokens.most) == (6, 60)
    assert routed.cost.most == pytest.approx(alone.cost.most)
    assert (voted.num_requests, voted.cost.most) == (12, pytest.approx(2 * alone.cost.most))
    assert reserve.cost.most == pytest.approx(2 * alone.cost.most)
    assert reserve.cost.likely == pytest.approx(alone.cost.likely)
    assert reserve.num_requests == 6


def test_dear_teachers_cost_what_they_are_asked(context):
    dear = {"price": {"input": 1.0, "output": 1000.0}}
    found = reckoned(context, "route", **dear)
    assert found.cost.most > 4 * 10 * 1000 / 1e6 > reckoned(context, "route").cost.most
    unknown = reckoned(context, "vote", price=None)
    assert unknown.cost is None
    assert any(note.startswith("b: the teacher's price is not known") for note in unknown.notes)


def test_before_the_run_a_vote_is_judged_by_its_most_frequent_answer(context):
    ctx = context([f"http://{name}.example/v1" for name in "abc"], {"teachers": "vote", "pilot": 0})
    said = {"a": "Bern", "b": "Rome", "c": "rome"}
    members = [Member(name, FakeTeacher(lambda r, s, text=text: text, name=name))
               for name, text in said.items()]  # fmt: skip
    voting = SeveralTeachers(members, "vote", task=ctx.task)
    records = [Record(id=f"r{n}", messages=(Message(role="user", content="?"),)) for n in range(2)]
    work = ask_teacher(ctx, voting, records, part="trial", stage="teach")
    counts, responses = asyncio.run(work)
    assert [response.text for response in responses] == ["Rome", "Rome"]
    assert counts.answered == 6


def test_an_audition_asks_each_of_them_all_rows_alone(context, tmp_path):
    from tiny import tiny_llama

    right = FakeEndpoint(answer=lambda body: completion(word(body)))
    wrong = FakeEndpoint(answer=lambda body: completion("nonsense"))

    def word(body):
        return body["messages"][-1]["content"].split("?")[0].split()[-1]

    settings = {"teachers": "vote", "pilot": 0, "max_new_tokens": 8}
    with served(right, wrong):
        ctx = context(endpoints(right, wrong), settings, student=str(tiny_llama(tmp_path / "s")),
                      evaluate={"num_latency_calls": 0})  # fmt: skip
        found = audition(ctx)
    rows = {one.name: one for one in found.candidates}
    assert (rows["a"].num_accepted, rows["a"].metrics["accuracy"].value) == (6, 1.0)
    assert (rows["b"].metrics["accuracy"].value, rows["b"].num_answers) == (0.0, 6)
