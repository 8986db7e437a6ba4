"""llama.cpp's server answers for a GGUF file and never outlives who started it."""

import asyncio
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from potstill.errors import TeacherError
from potstill.models.endpoint import EndpointModel
from potstill.models.engines import GgufModel
from potstill.models.logprobs import logprob_arrays
from potstill.types import Message, Record, Sampling

pytest.importorskip("xllamacpp")
ASK = Record(id="a", messages=(Message(role="user", content="Name three colours."),))


@pytest.fixture
def gguf(smollm2):
    return smollm2.source


@pytest.mark.slow
def test_a_file_that_is_no_model_is_named(tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)

    async def main():
        model = GgufModel(file)
        try:
            await model.respond(ASK, Sampling())
        finally:
            await model.close()

    with pytest.raises(TeacherError, match=r"broken\.gguf ended with code"):
        asyncio.run(main())


@pytest.mark.slow
def test_a_gguf_file_answers_with_its_own_template_and_says_its_memory(gguf):
    async def main():
        model = GgufModel(gguf, name="smol", threads=1)
        try:
            sampling = Sampling(max_new_tokens=8)
            answers = await asyncio.gather(*(model.respond(ASK, sampling) for _ in range(4)))
            return answers, model.memory_bytes(), model._process
        finally:
            await model.close()

    answers, memory, process = asyncio.run(main())
    assert all(answer.finish_reason == "length" for answer in answers)
    # The template puts a system turn of its own in front.
    assert answers[0].num_prompt_tokens > 30 and answers[0].num_new_tokens == 8
    assert memory > 80e6
    assert process.poll() is not None


@pytest.mark.slow
def test_log_probabilities_of_a_real_server_have_the_models_ids_and_no_temperature(gguf):
    gguf_package = pytest.importorskip("gguf")

    async def main():
        model = GgufModel(gguf, threads=1)
        try:
            return [
                await model.respond(
                    ASK, Sampling(max_new_tokens=1, temperature=heat, seed=1, top_logprobs=5)
                )
                for heat in (0.0, 2.0)
            ]
        finally:
            await model.close()

    cold, hot = asyncio.run(main())
    arrays, heated = logprob_arrays(cold.logprobs), logprob_arrays(hot.logprobs)
    assert cold.logprobs.mode == "raw" and not cold.logprobs.tokens
    assert arrays.ids_NK.shape == (1, 5)
    tokens = gguf_package.GGUFReader(gguf).fields["tokenizer.ggml.tokens"].contents()
    assert tokens[arrays.sampled_N[0]] == cold.text and arrays.sampled_N[0] == arrays.ids_NK[0, 0]
    kept = np.exp(arrays.logprobs_NK.astype(float)).sum(-1)
    assert kept + arrays.tail_N == pytest.approx(1.0, abs=2e-3) and 0 < arrays.tail_N[0] < 1
    np.testing.assert_array_equal(arrays.ids_NK, heated.ids_NK)
    np.testing.assert_allclose(arrays.logprobs_NK, heated.logprobs_NK, rtol=1e-2)


@pytest.mark.slow
def test_what_a_real_server_tells_are_the_targets_of_the_row_that_its_answer_becomes(gguf):
    from pathlib import Path

    from transformers import AutoTokenizer

    from potstill.data.render import render, template_fingerprint, vocab_fingerprint
    from potstill.teach.kept import Fitted, Lesson, Source, fitted
    from potstill.teach.score import target_settings

    sampling = Sampling(max_new_tokens=150, top_logprobs=5)
    record = Record(id="a", messages=(Message(role="user", content="Say hello, nothing else."),))

    async def main():
        model = GgufModel(gguf, threads=1)
        try:
            return await model.respond(record, sampling)
        finally:
            await model.close()

    response = asyncio.run(main())
    assert response.finish_reason == "stop"
    path = Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    settings = target_settings(
        len(tokenizer), k=5, temperatures=(1.0,), vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
    )  # fmt: skip
    row = render(tokenizer, record.messages, response.text.strip())
    lesson = Lesson(row, response.text.strip(), response, is_as_asked=True)
    found = fitted(lesson, settings, source=Source(None, is_plain=False), words=dict)
    assert isinstance(found, Fitted), (found, response.text)
    ids, logprobs, log_odds = found.encoded
    learned = [id_ for id_, is_learned in zip(*row, strict=True) if is_learned]
    assert ids[:, 0].tolist() == learned  # greedy
    # Each value has 11 bits, so that p is off by p |log p| / 2048 at most: 1.8e-4 at p = 1/e.
    assert np.exp(logprobs).sum(-1) * (1 + np.exp(log_odds[:, 0])) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_a_real_server_answers_the_same_through_openais_api_and_anthropics(gguf):
    turns = (Message(role="system", content="Be brief."), *ASK.messages)
    record = Record(id="a", messages=turns)

    async def main():
        model = GgufModel(gguf, threads=1)
        try:
            await model.prepare()
            other = EndpointModel(model._endpoint._wire.base, api="anthropic")
            answers = [await m.respond(record, Sampling(max_new_tokens=8)) for m in (model, other)]
            await other.close()
            return answers
        finally:
            await model.close()

    first, second = asyncio.run(main())
    for field in ("text", "finish_reason", "num_prompt_tokens", "num_new_tokens"):
        assert getattr(first, field) == getattr(second, field), field
    assert first.text and first.num_prompt_tokens > 10


@pytest.mark.slow
def test_the_server_ends_when_its_owner_is_killed(gguf):
    code = (
        "import asyncio, sys\n"
        "from potstill.models.engines import GgufModel\n"
        f"model = GgufModel({gguf!r}, threads=1)\n"
        "asyncio.run(model.prepare())\n"
        "print(model._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    pid = int(owner.stdout.readline())
    os.kill(pid, 0)
    owner.kill()
    owner.wait()
    for _ in range(200):
        state = _state_of(pid)
        if state in (None, "Z"):
            return
        time.sleep(0.05)
    pytest.fail(f"the server {pid} is still there: {state}")


def _state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None
