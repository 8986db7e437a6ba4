"""What local weights keep while they answer is what scoring finds, and changes no answer."""

import asyncio
from itertools import cycle, product

import numpy as np
import pytest
import torch
from tiny import VOCAB_SIZE, tiny_llama

from potstill.data.render import render_prompt
from potstill.models.local import LocalModel
from potstill.models.logprobs import Capture, logprob_arrays
from potstill.types import Message, Record, Sampling

PROMPTS = ["Hi", "Where is my order?", "12 - 3 = ?", "The old man reads the news. " * 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights whose head is wider than the tokenizer, and that like to end."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    path = tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    model = LlamaForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(VOCAB_SIZE + 27, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight *= 8
        model.lm_head.weight[1] *= 3
    model.save_pretrained(path)
    return path


def asked(folder, *, capture=None, heat=0.0, then=None, limits=(20,)):
    """Responses for each limit of new tokens, and what `then` finds out about them."""

    async def main():
        model = LocalModel(folder, dtype="float32", batch_size=len(PROMPTS), capture=capture)
        try:
            answers = await asyncio.gather(
                *(
                    model.respond(record, Sampling(temperature=heat, seed=n, max_new_tokens=limit))
                    for n, (limit, record) in enumerate(product(limits, records()))
                )
            )
            return answers, then(model, answers) if then else None
        finally:
            await model.close()

    return asyncio.run(main())


def records():
    return [Record(id=text, messages=(Message(role="user", content=text),)) for text in PROMPTS]


@pytest.mark.parametrize("heat", [0.0, 1.3])
@pytest.mark.parametrize("capture", [Capture(1), Capture(8, 2.0), Capture(5000)])
def test_answers_and_fingerprints_are_the_same_with_any_capture_and_with_none(
    folder, capture, heat
):
    kept, _ = asked(folder, capture=capture, heat=heat)
    plain, _ = asked(folder, heat=heat)
    assert all(response.logprobs is None for response in plain)
    assert all(response.logprobs.k == min(capture.k, VOCAB_SIZE) for response in kept)
    untimed = {"logprobs": None, "seconds": 0.0}
    assert [r.model_copy(update=untimed) for r in kept] == [
        r.model_copy(update=untimed) for r in plain
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_token_has_the_probabilities_that_a_second_look_finds(folder, temperature):
    def looked(model, answers):
        found = []
        for record, response in zip(cycle(records()), answers, strict=False):
            prompt = render_prompt(model.tokenizer, record.messages)
            sampled = logprob_arrays(response.logprobs).sampled_N.tolist()
            ids = torch.tensor([[*prompt, *sampled]])
            positions = torch.zeros_like(ids, dtype=torch.bool)
            positions[0, len(prompt) - 1 : -1] = True
            found.append(model.logits(ids, positions) / temperature)
        return found

    capture = Capture(16, temperature)
    # A third of random answers end within 20 tokens, whatever the processor's rounding: of 24
    # with 60, some do, and of those with 1, some do not.
    limits = (1, *[60] * 6)
    answers, looks = asked(folder, capture=capture, heat=1.0, then=looked, limits=limits)
    assert {response.logprobs.has_end for response in answers} == {True, False}
    for response, z_NV in zip(answers, looks, strict=True):
        told, arrays = response.logprobs, logprob_arrays(response.logprobs)
        whole = z_NV[:, :VOCAB_SIZE].log_softmax(-1)
        np.testing.assert_allclose(arrays.logprobs_NK, whole.topk(16).values, atol=5e-3)
        there = whole.gather(-1, torch.from_numpy(arrays.ids_NK.astype(np.int64)))
        np.testing.assert_allclose(arrays.logprobs_NK, there, atol=5e-3)
        np.testing.assert_allclose(arrays.tail_N, 1 - there.exp().sum(-1), atol=1e-4)
        beyond = z_NV.softmax(-1)[:, VOCAB_SIZE:].sum().item()
        assert told.mass_dropped == pytest.approx(beyond, rel=1e-3) and beyond > 0
        assert (told.mode, told.temperature) == ("raw", temperature)
        assert told.vocab_fingerprint is not None and not told.tokens
        assert (arrays.sampled_N[-1] == 1) == told.has_end
        assert len(arrays.sampled_N) == response.num_new_tokens
