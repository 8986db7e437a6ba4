"""A model under load: so many users at once, and how many of them are answered in time."""

import asyncio

import pytest
from examine.fake_models import Topics, failing, record
from examine.streaming import Speaking

from potstill.config import LoadConfig
from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.load import measure_load, meets
from potstill.examine.measured import Load, objective_text
from potstill.examine.report_speed import load_table
from potstill.examine.times import Call
from potstill.models.failures import Failure, gave_up
from potstill.types import Sampling

RECORDS = [record(i, reference="a") for i in range(7)]


def measure(model, records=RECORDS, **settings):
    settings = {"num_requests": 20, "concurrency": (1, 2, 4, 8), **settings}
    return asyncio.run(
        measure_load(
            model, records, task=Topics(), sampling=Sampling(), config=LoadConfig(**settings)
        )
    )


def at(found, users):
    return next(level for level in found.levels if level.concurrency == users)


def test_two_slots_answer_twice_as_many_as_one_user_asks_for():
    found = measure(Speaking(first=0.01, slots=2), e2e_seconds=1, concurrency=(1, 2))
    one, two = (at(found, users).metrics for users in (1, 2))
    ratio = two["requests_per_second"].value / one["requests_per_second"].value
    assert 1.5 < ratio < 2.5
    assert two["goodput"].value == two["requests_per_second"].value
    assert two["tokens_per_second"].value == pytest.approx(3 * two["goodput"].value)


def test_the_objective_and_not_the_throughput_decides_how_many_users_are_carried():
    # Two at once take 20 ms; four wait for each other and take 40.
    found = measure(Speaking(first=0.02, slots=2), e2e_seconds=0.031)
    assert found.users.value == 2
    assert [level.concurrency for level in found.levels] == [1, 2, 4]
    assert at(found, 4).share_met.value < 0.95 and "the objective is missed" in found.ended
    assert at(found, 4).metrics["goodput"].value < at(found, 4).metrics["requests_per_second"].value
    assert found.carried.concurrency == 2


def test_as_many_are_open_as_the_level_says():
    model = Speaking(first=0.002)
    measure(model, concurrency=(1, 4), num_requests=12)
    assert model.most_open == 4


def test_a_level_counts_what_comes_after_every_user_was_answered_once():
    class Late(Speaking):
        """The first answer to the last of four users takes long."""

        num_calls = 0

        async def stream(self, record, sampling, on_token):
            self.num_calls += 1
            await asyncio.sleep(0.3 if self.num_calls == 4 else 0)
            return await super().stream(record, sampling, on_token)

    model = Late(first=0.003)
    [level] = measure(model, concurrency=(4,), num_requests=16).levels
    assert level.n == 16
    assert len(model.asked) > 3 * 16, "the others go on meanwhile, and nobody counts it"


def test_the_sweep_ends_where_goodput_falls():
    class Crowded(Speaking):
        """Takes longer for each the more there are: four together are slower than one."""

        num_here = 0

        async def stream(self, record, sampling, on_token):
            self.num_here += 1
            await asyncio.sleep(0.002 * self.num_here**2)
            self.num_here -= 1
            return await super().stream(record, sampling, on_token)

    found = measure(Crowded(first=0.001), concurrency=(1, 2, 6, 12), e2e_seconds=None)
    assert "goodput falls" in found.ended
    assert found.best < found.levels[-1].concurrency
    assert found.users.value is None and "no objective" in found.users.note


def test_a_sweep_that_never_broke_says_that_more_may_do():
    found = measure(Speaking(first=0.001), concurrency=(1, 2))
    assert found.users.value == 2 and "it may hold as well" in found.users.note


def test_users_who_pause_are_more_by_what_comes_while_they_do():
    found = measure(Speaking(first=0.01), concurrency=(1, 2), think_seconds=0.5)
    carried = found.carried
    per_second = carried.metrics["requests_per_second"].value
    assert found.users_with_pauses == carried.concurrency + 0.5 * per_second
    assert measure(Speaking(), concurrency=(1,)).users_with_pauses is None


def test_failures_are_counted_and_met_no_objective():
    model = Speaking(fails={n: failing("down") for n in range(1, 30, 2)})
    found = measure(model, concurrency=(1,), num_requests=10)
    [level] = found.levels
    assert level.num_failed == 5 and level.share_met.value == 0.5 and level.share_met.n_error == 5
    assert level.metrics["latency"].n == 5


def test_failures_are_told_by_their_reason_and_why_the_sweep_ended():
    fails = {n: gave_up(Failure.CONNECTION, "gone") for n in range(1, 30, 2)}
    model = Speaking(fails={**fails, 3: gave_up(Failure.TIMEOUT, "late"), 5: failing()})
    found = measure(model, concurrency=(1, 2), num_requests=10)
    [level] = found.levels
    assert level.failures == {"connection": 3, "timeout": 1, "other": 1}
    said = "5 of 10 requests failed (3 connection, 1 other, 1 timeout)"
    assert said in found.ended and said in found.users.note and found.users.n_error == 5
    assert "5 requests failed: 3 connection, 1 other, 1 timeout" in load_table("", found).notes
    assert measure(Speaking(), concurrency=(1,)).levels[0].failures == {}


def test_a_model_that_answers_nobody_is_an_error_and_not_a_rate_of_zero():
    with pytest.raises(TeacherError, match="answered nobody under load: down"):
        measure(Speaking(fails={n: failing("down") for n in range(99)}))
    with pytest.raises(TeacherRefused):
        measure(Speaking(fails={3: TeacherRefused("no such key")}))
    with pytest.raises(DataError):
        measure(Speaking(), [])


def test_a_level_ends_when_its_time_is_over():
    [level] = measure(Speaking(first=0.02), concurrency=(1,), seconds=0.1).levels
    assert 10 > level.n >= 3 and level.seconds >= 0.1


def test_percentiles_under_load_need_their_hundred_too():
    [few] = measure(Speaking(), concurrency=(1,)).levels
    [many] = measure(Speaking(), concurrency=(1,), num_requests=100).levels
    assert few.metrics["latency.p95"].value is None
    assert many.metrics["latency.p95"].value >= many.metrics["latency"].value
    assert many.metrics["latency"].signature.endswith("1 users at once")


@pytest.mark.parametrize(
    ("limits", "is_met"),
    [({"e2e_seconds": 1.0}, True), ({"e2e_seconds": 0.9}, False),
     ({"e2e_seconds": None, "ttft_seconds": 0.2}, True), ({"ttft_seconds": 0.1}, False),
     ({"tpot_seconds": 0.2}, True), ({"tpot_seconds": 0.19}, False)],
)  # fmt: skip
def test_an_answer_meets_every_limit_or_none(limits, is_met):
    call = Call(seconds=1.0, num_new_tokens=5, first_seconds=0.2)  # tpot 0.2
    assert meets(call, LoadConfig(**limits)) is is_met


def test_what_cannot_be_timed_meets_no_limit_on_it():
    whole = Call(seconds=0.1, num_new_tokens=5)
    assert meets(whole, LoadConfig()) and not meets(whole, LoadConfig(ttft_seconds=9))
    one = Call(seconds=0.1, num_new_tokens=1, first_seconds=0.1)
    assert meets(one, LoadConfig(tpot_seconds=0.001)), "one token has no further ones"


def test_a_load_survives_its_json():
    found = measure(Speaking(), concurrency=(1,), num_requests=10)
    assert Load.model_validate_json(found.model_dump_json()) == found
    assert found.setting["engine"] == "fake" and found.setting["different_prompts"] == 7
    assert objective_text(found.objective) == "the whole answer within 5 s, for 95% of the requests"


def test_levels_must_rise():
    for levels in ([4, 2], [1, 1], []):
        with pytest.raises(ValueError, match="rising"):
            LoadConfig(concurrency=levels)
