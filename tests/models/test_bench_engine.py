"""llama.cpp's real server streams, is put under load, and says its memory."""

import pytest

from potstill.config import LoadConfig

pytest.importorskip("xllamacpp")


@pytest.mark.slow
def test_a_real_engine_has_all_figures(smollm2):
    from potstill.library import bench
    from potstill.types import Sampling

    load = LoadConfig(concurrency=(1, 2), num_requests=10, e2e_seconds=600)
    found = bench(smollm2.source, sampling=Sampling(max_new_tokens=12), num_calls=8, load=load)
    metrics = found.metrics
    assert found.setting["engine"] == "llama.cpp" and found.setting["answer_tokens"]["most"] <= 12
    assert 0 < metrics["tpot"].value < metrics["ttft"].value < metrics["latency"].value < 600
    # 8 calls, of each of which ttft + 11 tpot is the whole: so are the medians, nearly.
    whole = metrics["ttft"].value + 11 * metrics["tpot"].value
    assert whole == pytest.approx(metrics["latency"].value, rel=0.5)
    # 30 layers with 3 key-value heads of 64 numbers of 16 bits each, twice.
    assert metrics["memory.cache_token"].value == 2 * 30 * 3 * 64 * 2
    assert 60e6 < metrics["memory.weights"].value < 100e6
    assert metrics["memory"].value > metrics["memory.weights"].value
    assert found.load["users"]["value"] == 2
    assert all(level["num_failed"] == 0 for level in found.load["levels"])
