"""Several teachers answer as one: the routed one, the first that will do, or the most frequent."""

import asyncio

import pytest
from teach.fakes import FakeTeacher

from potstill.config import PriceConfig, TeacherConfig, Where
from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.models.several import (
    PATIENCE_SECONDS,
    PROBE_SECONDS,
    Member,
    PassedOver,
    SeveralTeachers,
    labels_of,
)
from potstill.tasks import get_task
from potstill.types import Message, Record, Response, Sampling

LAW = Where(field="topic", equals="law")
LONG = Where(field="metadata.words", at_least=100)


def record(**metadata):
    return Record(
        id="r", messages=(Message(role="user", content="Where is it?"),), metadata=metadata
    )


def several(how, *teachers, rules=None, **settings):
    rules = rules or [None] * len(teachers)
    members = [Member(t.name, t, rule) for t, rule in zip(teachers, rules, strict=True)]
    settings = {"task": get_task("qa"), "look_seconds": 0.001, **settings}
    return SeveralTeachers(members, how, **settings)


def saying(name, what, **settings):
    return FakeTeacher(lambda record, sampling: what, name=name, **settings)


def answer(model, asked=None):
    return asyncio.run(model.respond(asked or record(), Sampling()))


def test_the_first_rule_that_holds_chooses_the_teacher():
    model = several("route", saying("a", "A"), saying("b", "B"), saying("c", "C"),
                    rules=[LAW, LONG, None])  # fmt: skip
    assert answer(model, record(topic="law", words=200)).text == "A"
    assert answer(model, record(topic="tax", words="200")).text == "B"
    assert answer(model, record(topic="tax", words=3)).text == "C"
    assert answer(model, record()).teacher == "c"


def test_a_record_that_no_rule_holds_for_is_an_error_that_names_it():
    model = several("route", saying("a", "A"), saying("b", "B"), rules=[LAW, LONG])
    with pytest.raises(DataError, match=r"record r, whose metadata has topic, words\. Add a last"):
        answer(model, record(topic="tax", words=3))
    with pytest.raises(DataError, match=r"record r .*metadata\.words is 'many', which is no num"):
        answer(model, record(words="many"))


def test_the_next_teacher_is_asked_where_an_answer_will_not_do_and_the_last_one_stays():
    a, b = saying("a", "no"), saying("b", "yes")
    model = several("fallback", a, b, will_do=lambda record, response: response.text == "yes")
    assert (answer(model).text, answer(model).teacher) == ("yes", "b")
    assert (len(a.asked), len(b.asked)) == (2, 2)
    b.say = lambda record, sampling: "perhaps"
    assert answer(model).text == "perhaps"
    b.say = lambda record, sampling: TeacherError("gone")
    assert answer(model).text == "no"


def test_no_answer_of_any_is_the_last_ones_failure():
    model = several("fallback", saying("a", TeacherError("one")), saying("b", TeacherError("two")))
    with pytest.raises(TeacherError, match="two"):
        answer(model)


def test_a_teacher_that_refuses_everything_is_left_out_until_all_do():
    a, b = saying("a", TeacherRefused("no quota")), saying("b", "yes")
    model = several("fallback", a, b)
    assert [answer(model).text for _ in range(3)] == ["yes"] * 3
    assert (len(a.asked), model.state) == (1, "a is out: no quota")
    b.say = lambda record, sampling: TeacherRefused("no key")
    with pytest.raises(TeacherRefused, match="no key"):
        answer(model)


class Paused(FakeTeacher):
    """Never answers while it is paused."""

    state = "paused until 12:00:00, because all fails"

    async def respond(self, record, sampling, *, turn=0, sample=0):
        while self.state.startswith("paused"):
            await asyncio.sleep(0.001)
        return await super().respond(record, sampling, turn=turn, sample=sample)


def test_a_paused_teacher_is_passed_over_but_for_a_probe_now_and_then():
    now = [1000.0]
    a, b = Paused(lambda record, sampling: "A", name="a"), saying("b", "B")
    model = several("fallback", a, b, clock=lambda: now[0])

    async def ask():
        return (await model.respond(record(), Sampling())).text

    async def work():
        probe = asyncio.ensure_future(ask())
        while not model._probed_at:
            await asyncio.sleep(0.001)
        assert await ask() == "B"
        assert not probe.done()
        now[0] += PATIENCE_SECONDS
        assert await probe == "B"
        assert await ask() == "B"
        now[0] += PROBE_SECONDS
        probe = asyncio.ensure_future(ask())
        await asyncio.sleep(0.01)
        a.state = "running"
        return await probe, await ask()

    assert asyncio.run(work()) == ("A", "A")


def test_the_last_teacher_is_waited_for():
    a = Paused(lambda record, sampling: "A", name="a")
    model = several("fallback", saying("b", TeacherError("gone")), a, clock=lambda: 5.0)
    model._probed_at["a"] = 4.0  # nobody else would be let through

    async def work():
        asking = asyncio.ensure_future(model.respond(record(), Sampling()))
        await asyncio.sleep(0.02)
        assert not asking.done()
        a.state = "running"
        return (await asking).text

    assert asyncio.run(work()) == "A"


def test_passing_over_ends_the_request_that_is_not_waited_for():
    a, b = Paused(lambda record, sampling: "A", name="a"), saying("b", "B")
    model = several("fallback", a, b, clock=lambda: 5.0)
    model._probed_at["a"] = 4.0

    async def work():
        with pytest.raises(PassedOver, match="a is paused"):
            await model.ask(model.members[0], record(), Sampling(), is_last=False)
        a.state = "running"
        await asyncio.sleep(0.01)
        return len(a.asked)

    assert asyncio.run(work()) == 0


def test_a_vote_is_for_the_most_frequent_answer_and_of_equals_for_the_earliest():
    names = [saying("a", "Bern"), saying("b", "Rome."), saying("c", "rome")]
    assert answer(several("vote", *names)).text == "Rome."
    assert answer(several("vote", *names)).teacher == "b"
    assert answer(several("vote", *names[:2])).text == "Bern"
    gone = saying("d", TeacherError("gone"))
    assert answer(several("vote", gone, *names[1:])).text == "Rome."
    with pytest.raises(TeacherError, match="gone"):
        answer(several("vote", gone))


def test_what_was_cut_has_no_vote_where_something_whole_came():
    cut = Response(record_id="r", text="Bern", finish_reason="length")
    model = several("vote", saying("a", cut), saying("b", cut), saying("c", "Rome"))
    assert answer(model).text == "Rome"


def test_the_price_of_all_is_a_bound_and_none_where_nobody_has_one():
    a = saying("a", "A", price=PriceConfig(input=1, output=2))
    b = saying("b", "B", price=PriceConfig(input=3, output=1))
    assert several("vote", a, b, saying("c", "C")).price == PriceConfig(input=3, output=2)
    assert several("vote", saying("c", "C")).price is None


def test_another_rule_or_order_is_another_teacher():
    a, b = saying("a", "A"), saying("b", "B")
    found = {
        several("route", a, b, rules=[LAW, None]).identity,
        several("route", a, b, rules=[LONG, None]).identity,
        several("fallback", a, b).identity,
        several("fallback", b, a).identity,
    }
    assert len(found) == 4


def test_as_many_are_asked_at_once_as_all_of_them_take():
    a, b = saying("a", "A", max_in_flight=3), saying("b", "B", max_in_flight=4)
    assert several("route", a, b).max_in_flight == several("vote", a, b).max_in_flight == 7
    assert several("fallback", a, b).max_in_flight == 4


def test_in_a_fallback_one_that_cannot_be_made_ready_is_out():
    class Broken(FakeTeacher):
        async def prepare(self):
            raise TeacherRefused("it did not start")

    broken = Broken(name="a")
    model = several("fallback", broken, saying("b", "B"))
    asyncio.run(model.prepare())
    assert answer(model).text == "B"
    assert not broken.asked
    with pytest.raises(TeacherRefused, match="did not start"):
        asyncio.run(several("route", broken, saying("b", "B"), rules=[LAW, None]).prepare())
    with pytest.raises(TeacherRefused, match="did not start"):
        asyncio.run(several("fallback", broken).prepare())


def test_teachers_of_one_name_are_numbered():
    teachers = [
        TeacherConfig(url="http://a.example/v1", model="m"),
        TeacherConfig(url="http://b.example/v1", model="m"),
        TeacherConfig(source="models/m"),
        TeacherConfig(source="http://a.example/v1"),
    ]
    assert labels_of(teachers) == ("m", "m 2", "m 3", "http://a.example/v1")
