"""`potstill bench` measures any endpoint or weights, and says what it did not measure."""

import json

import pytest
from examine.streaming import StreamingEndpoint, spoken
from fake_endpoint import served

from potstill.cli import main

FEW = ("--calls", "4", "--requests", "10", "--concurrency", "1,2", "--max-new-tokens", "8")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    return stop.value.code


@pytest.fixture
def endpoint():
    # The first piece waits so long that a busy machine turns no order round.
    pauses = (0.1, *[0.002] * 9)
    events = list(zip(pauses, spoken("The", " sea", "."), strict=False))
    fake = StreamingEndpoint(events)
    with served(fake):
        yield fake


def test_an_endpoint_is_timed_and_put_under_load(endpoint, capsys):
    code = run(endpoint.url, "--model", "fake", "--ttft", "0.5", "--think", "2", "--json", *FEW)
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "endpoint"
    times = [found["metrics"][name]["value"] for name in ("tpot", "ttft", "latency")]
    assert 0.001 < times[0] < times[1] < times[2] < 1
    assert found["metrics"]["latency.p95"]["value"] is None
    levels = found["load"]["levels"]
    assert [level["concurrency"] for level in levels] == [1, 2]
    assert found["load"]["objective"] == {"e2e_seconds": 5.0, "ttft_seconds": 0.5, "share": 0.95}
    assert found["load"]["users"]["value"] == 2 < found["load"]["users_with_pauses"]
    assert found["setting"]["includes_network"] is False, "loopback is no network"
    assert "memory" not in found["metrics"], "its weights are elsewhere"
    assert endpoint.most_open == 2


def test_people_read_the_same_as_a_table(endpoint, capsys):
    assert run(endpoint.url, "--model", "fake", *FEW) == 0
    out = capsys.readouterr().out
    assert "first token (ttft)" in out and "users at once" in out
    assert "objective: the whole answer within 5 s" in out
    assert "not known: needs 100 calls, there are 4" in out


def test_load_is_left_out_where_nobody_wants_it(endpoint, capsys):
    assert run(endpoint.url, "--model", "fake", "--calls", "2", "--concurrency", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["load"] is None


def test_a_machines_price_makes_a_price_of_answers(endpoint, capsys):
    price = ("--machine-price", "3.6", "--currency", "EUR")
    assert run(endpoint.url, "--model", "fake", *FEW, *price, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["value"] > 0 and found["currency"] == "EUR"
    assert "goodput with 2 at once" in found["cost"]["note"]


@pytest.mark.parametrize("levels", ["2,1", "one", "0,1"])
def test_levels_that_make_no_sense_are_a_wrong_question(levels, capsys):
    assert run("http://127.0.0.1:9/v1", "--concurrency", levels) == 2
    assert "concurrency" in capsys.readouterr().err


def test_weights_are_timed_token_by_token_with_their_memory(tmp_path, capsys):
    from tiny import tiny_llama

    from potstill.library import bench

    folder = tiny_llama(tmp_path / "model")
    found = bench(folder, num_calls=3, memory=False)
    assert found.setting["engine"] == "transformers" and found.setting["dtype"]
    assert 0 < found.metrics["ttft"].value < found.metrics["latency"].value
    assert found.setting["prompt_tokens"]["least"] > 3
    assert found.load is None and found.cost is None
    assert found.notes == (), "as many prompts as calls"


@pytest.mark.slow
def test_memory_of_weights_is_measured_apart_and_told_by_parts(tmp_path):
    from tiny import tiny_llama

    from potstill.examine.footprint import BYTES_OF
    from potstill.library import bench, profile_memory_consumption

    folder = tiny_llama(tmp_path / "model", hidden=64)
    measured = bench(folder, num_calls=2)
    found, num_bytes = measured.metrics, BYTES_OF[measured.setting["dtype"]]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert found["memory.weights"].value == pytest.approx(size / 4 * num_bytes, rel=0.1)
    assert found["memory.cache_token"].value == 2 * 2 * 2 * 16 * num_bytes
    assert found["memory"].value > 0
    assert profile_memory_consumption(folder) > 0
