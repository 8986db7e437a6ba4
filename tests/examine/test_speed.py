"""Speed is measured on answers, in alternation; memory in a process of its own."""

import asyncio
import os

import pytest
from examine.fake_models import Answering, Topics, failing, record

from potstill.errors import DataError, TeacherError
from potstill.examine.memory import disk_bytes, memory_of, own_peak_bytes, peak_resident_bytes
from potstill.examine.speed import interleaved_latency, measure_latency
from potstill.types import Sampling

RECORDS = [record(i, reference="a") for i in range(5)]


def measure(model, **more):
    more = {"num_calls": 8, "num_warmup": 2, **more}
    return asyncio.run(measure_latency(model, RECORDS, task=Topics(), sampling=Sampling(), **more))


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
    assert "latency.p99" not in found


def test_a_network_is_flagged():
    assert measure(Answering(lambda r: "a"), includes_network=True)["latency"].note == (
        "includes_network: true"
    )


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
    assert found.models["teacher"]["latency"].note and not found.models["distilled"]["latency"].note


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
