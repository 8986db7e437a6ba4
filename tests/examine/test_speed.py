"""Speed is measured on answers, in alternation; memory in a process of its own."""

import asyncio
import os

import numpy as np
import pytest
from examine.fake_models import Answering, Topics, failing, record
from examine.streaming import Speaking

from potstill.errors import DataError, TeacherError
from potstill.examine.memory import disk_bytes, memory_of, own_peak_bytes, peak_resident_bytes
from potstill.examine.report_speed import setting_cells
from potstill.examine.speed import interleaved_latency, measure_latency, timed
from potstill.examine.times import Call, energy, quantiles
from potstill.models.failures import Failure, gave_up
from potstill.types import Sampling

RECORDS = [record(i, reference="a") for i in range(5)]


def measure(model, **more):
    more = {"num_calls": 8, "num_warmup": 2, **more}
    return asyncio.run(measure_latency(model, RECORDS, task=Topics(), sampling=Sampling(), **more))


def interleaved(models, **more):
    more = {"num_calls": 4, "num_warmup": 3, **more}
    return asyncio.run(
        interleaved_latency(models, RECORDS, task=Topics(), sampling=Sampling(), **more)
    )


def test_the_three_times_are_what_their_definitions_say():
    model = Speaking(first=0.02, gap=0.005, num_tokens=4)
    found = interleaved({"it": model}, num_calls=3)
    for call in found.calls["it"]:
        assert 0.02 <= call.first_seconds < call.seconds - 3 * 0.004
        assert call.token_seconds == (call.seconds - call.first_seconds) / (4 - 1)
        assert call.token_seconds >= 0.004
    metrics = found.models["it"]
    assert metrics["ttft"].value == np.median([c.first_seconds for c in found.calls["it"]])
    assert metrics["tpot"].value == np.median([c.token_seconds for c in found.calls["it"]])
    assert "(e2e - ttft) / (answer tokens - 1)" in metrics["tpot"].signature


def test_the_first_calls_are_not_timed():
    model = Speaking()
    found = interleaved({"it": model}, num_calls=4, num_warmup=3)
    assert (len(model.asked), len(found.calls["it"])) == (7, 4)
    assert found.settings["it"]["warm_up_calls"] == 3


def test_what_was_asked_of_whom_stands_beside_the_times():
    found = interleaved({"it": Speaking(num_tokens=5)}).settings["it"]
    assert (found["engine"], found["threads"]) == ("fake", 1)
    assert found["prompt_tokens"] == {"least": 11, "median": 11, "most": 11}
    assert found["answer_tokens"]["median"] == 5
    assert (found["timed_calls"], found["different_prompts"]) == (4, 5)


def test_a_model_that_does_not_stream_has_no_first_token_and_says_so():
    found = measure(Answering(lambda r: "a"))
    assert found["ttft"].value is None and "does not stream" in found["ttft"].note
    assert found["tpot"].value is None and found["latency"].value > 0


def test_an_answer_of_one_token_has_no_further_ones():
    found = measure(Speaking(num_tokens=1))
    assert found["tpot"].value is None and "two tokens" in found["tpot"].note
    assert found["ttft"].value > 0


def test_fewer_than_thirty_calls_are_said_to_be_few():
    assert "no interval is to be trusted" in measure(Speaking(), num_calls=29)["ttft"].note
    assert not measure(Speaking(), num_calls=30)["ttft"].note


def test_the_very_slow_end_needs_a_thousand_calls():
    found = quantiles("ttft", [1.0] * 990 + [9.0] * 10, seed=0)
    assert 1.0 < found["ttft.p99"].value < 9.1 and found["ttft"].value == 1.0
    assert quantiles("ttft", [1.0] * 999, seed=0)["ttft.p99"].value is None


class Counting:
    """A meter on which answer after answer takes 2 J, 4 J, 6 J."""

    num_restarts = 0

    def restart(self):
        self.num_restarts += 1

    def joules(self):
        return 2.0 * self.num_restarts


def test_energy_is_of_single_answers_and_absent_where_nothing_tells_it():
    record_ = RECORDS[0]

    async def main():
        meter = Counting()
        return [await timed(Speaking(), record_, Sampling(), meter) for _ in range(3)]

    calls = asyncio.run(main())
    assert energy(calls, seed=0, source="processor (RAPL)")["energy"].value == 4.0
    assert energy([Call(1.0, 3)], seed=0, source="not measured") == {}


def test_latency_is_the_median_time_of_a_call():
    model = Answering(lambda r: "a", seconds=0.01)
    found = measure(model)
    assert len(model.asked) == 10
    assert 0.009 < found["latency"].value < 0.05
    assert found["latency"].low <= found["latency"].value <= found["latency"].high
    assert (found["latency"].n, found["latency"].unit) == (8, "seconds")
    assert found["tokens_per_second"].value == pytest.approx(3 / 0.01, rel=0.5)


def test_the_slow_end_needs_a_hundred_calls():
    assert measure(Answering(lambda r: "a"))["latency.p95"].value is None
    found = measure(Answering(lambda r: "a"), num_calls=100)
    assert found["latency.p95"].value >= found["latency"].value
    assert found["latency.p99"].value is None
    assert found["latency.p99"].note == "needs 1,000 calls, there are 100"


def test_a_network_is_flagged():
    found = measure(Answering(lambda r: "a"), includes_network=True, num_calls=30)
    assert found["latency"].note == found["tokens_per_second"].note == "includes_network: true"
    settings = interleaved({"t": Answering(lambda r: "a")}, over_network=["t"]).settings
    assert settings["t"]["includes_network"] is True


def test_one_request_is_open_at_a_time():
    model = Answering(lambda r: "a", seconds=0.001)
    measure(model)
    assert model.most_open == 1


def test_models_take_turns_and_the_ratio_is_of_their_medians():
    order = []

    def model(name, seconds):
        return Answering(lambda r: order.append(name) or "a", name=name, seconds=seconds)

    models = {"teacher": model("t", 0.008), "distilled": model("d", 0.002)}
    found = asyncio.run(
        interleaved_latency(
            models, RECORDS, task=Topics(), sampling=Sampling(), num_calls=12, num_warmup=1,
            over_network=["teacher"],
        )
    )  # fmt: skip
    assert order[:6] == ["t", "d", "d", "t", "t", "d"]
    assert list(found.ratios) == ["distilled"]
    ratio = found.ratios["distilled"]
    assert 0.15 < ratio.value < 0.6 and ratio.low <= ratio.value <= ratio.high
    notes = [found.models[role]["latency"].note for role in models]
    assert ["includes_network" in note for note in notes] == [True, False]


class Stumbling(Speaking):
    """Fails now and then when it streams, and answers patiently otherwise."""

    num_patient = 0

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.num_patient += 1
        return await Answering(lambda r: "a").respond(record, sampling)


def test_a_call_that_failed_is_counted_and_timed_anew():
    model = Stumbling(fails={4: failing(), 5: gave_up(Failure.CONNECTION, "gone")})
    found = interleaved({"it": model}, num_calls=4, num_warmup=3)
    assert len(found.calls["it"]) == 4 and found.settings["it"]["failed_calls"] == 2
    assert found.settings["it"]["failures"] == {"other": 1, "connection": 1}
    assert "2 failed (1 connection, 1 other)" in setting_cells(found.settings["it"])[3]
    assert model.num_patient == 2
    with pytest.raises(TeacherError):
        interleaved({"it": Stumbling(fails={n: failing() for n in range(4, 7)})})


def test_a_failed_answer_has_no_latency():
    with pytest.raises(TeacherError):
        measure(Answering(lambda r: failing()))


def test_nothing_to_measure_is_an_error():
    with pytest.raises(DataError, match="at least two"):
        measure(Answering(lambda r: "a"), num_calls=1)


def test_the_peak_of_a_process_is_at_least_its_present_size():
    assert own_peak_bytes() > 20_000_000
    assert peak_resident_bytes(os.getpid()) == pytest.approx(own_peak_bytes(), rel=0.1)


def test_the_size_on_disk_is_that_of_all_files(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner" / "b").write_bytes(b"123")
    assert disk_bytes(tmp_path) == 8
    assert disk_bytes(tmp_path / "a") == 5
    with pytest.raises(DataError, match="does not exist"):
        disk_bytes(tmp_path / "none")


@pytest.mark.slow
def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(DataError, match="could not be measured"):
        memory_of(tmp_path, "hello")
