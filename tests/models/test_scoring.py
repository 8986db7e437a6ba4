"""A server that scores text is recognised, and what it tells is read or refused, never guessed."""

import asyncio
import copy

import numpy as np
import pytest
import torch
from fake_endpoint import FakeEndpoint, FakeVllm, serving
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import PriceConfig
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.chat_format import NotAnAnswer
from potstill.models.endpoint import EndpointModel
from potstill.models.scoring import read_prompt_logprobs, read_tokens
from potstill.types import Message

IDS = [5, 9, 7]
TOLD = [
    None,
    {"9": {"logprob": -0.5, "rank": 1, "decoded_token": "i"},
     "4": {"logprob": -1.5, "rank": 2, "decoded_token": "d"}},
    {"7": {"logprob": -6.0, "rank": 31, "decoded_token": "g"},
     "3": {"logprob": -1.25, "rank": 2, "decoded_token": "c"},
     "8": {"logprob": -0.75, "rank": 1, "decoded_token": None}},
]  # fmt: skip


def reply(told):
    return {"choices": [{"index": 0, "text": "!", "prompt_logprobs": told}]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tiny_llama(tmp_path_factory.mktemp("m") / "teacher", seed=5)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def ask(fake, work, **settings):
    """What `work(scorer)` gives, at a server that is up meanwhile."""

    async def no_sleep(seconds):
        await asyncio.sleep(0)

    async def main():
        async with serving(fake):
            endpoint = EndpointModel(fake.url, "fake", sleep=no_sleep, **settings)
            try:
                return await work(endpoint.open_scorer())
            finally:
                await endpoint.close()

    return asyncio.run(main())


def test_the_k_largest_are_told_apart_from_the_token_that_was_given():
    found = read_prompt_logprobs(reply(TOLD), IDS, 2)
    assert found.sampled_N.tolist() == [9, 7]
    assert found.ids_NK.tolist() == [[9, 4], [8, 3]]  # 7 is the third of three
    np.testing.assert_allclose(found.logprobs_NK, [[-0.5, -1.5], [-0.75, -1.25]])
    np.testing.assert_allclose(found.tail_N, 1 - np.exp(found.logprobs_NK).sum(-1), atol=1e-6)


def test_only_positions_from_the_start_are_read():
    found = read_prompt_logprobs(reply([None, "not looked at", TOLD[2]]), IDS, 2, start=2)
    assert found.ids_NK.tolist() == [[8, 3]]


def test_fewer_than_k_are_marked_and_nothing_is_minus_9999():
    told = [None, TOLD[1], {"7": {"logprob": -9999.0, "rank": 1}}]
    found = read_prompt_logprobs(reply(told), IDS, 2)
    assert found.ids_NK[1].tolist() == [7, -1]
    assert found.logprobs_NK[1].tolist() == [-60.0, -np.inf] and found.tail_N[1] == 1


def changed(at, token, **entry):
    told = copy.deepcopy(TOLD)
    told[at].setdefault(token, {}).update(entry)
    return told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "no prompt_logprobs for 3 tokens"),
        (TOLD[:2], "2 prompt_logprobs for 3 tokens"),
        ([*TOLD, None], "4 prompt_logprobs"),
        ([None, None, TOLD[2]], "at 1 are not those of token 9"),
        ([TOLD[1], TOLD[2], TOLD[1]], "at 1 are not those of token 9"),
        ([None, {}, TOLD[2]], "at 1 are not those of token 9"),
        (changed(1, "9", logprob=None), "a log-probability of None at 1"),
        (changed(2, "8", logprob="-1"), "a log-probability of '-1' at 2"),
        (changed(1, "9", logprob=True), "a log-probability of True at 1"),
        (changed(1, "9", logprob=float("nan")), "a log-probability of nan at 1"),
        (changed(1, "4", logprob=-0.1), "sum to 1.5"),
        (changed(1, "x", logprob=-8.0), "a token id of 'x'"),
        (changed(1, "4", rank="2", logprob=-0.5), "an unknown form"),
        (changed(1, str(2**40), logprob=-0.6), "an unknown form"),
        ([None, {"9": -0.5}, TOLD[2]], "an unknown form"),
        ([None, {"9": {}}, TOLD[2]], "an unknown form"),
    ],
)
def test_damaged_scores_are_no_answer(told, message):
    with pytest.raises(NotAnAnswer, match=message):
        read_prompt_logprobs(reply(told), IDS, 2)


@pytest.mark.parametrize("tree", [None, [], {}, {"choices": []}, {"choices": [{}]}, "x"])
def test_what_is_no_completion_is_no_answer(tree):
    with pytest.raises(NotAnAnswer):
        read_prompt_logprobs(tree, IDS, 2)
    with pytest.raises(NotAnAnswer, match="no token ids"):
        read_tokens(tree)


@pytest.mark.parametrize("tokens", ["12", [1, "2"], [1, -2], [True], [1.5], None])
def test_ids_that_are_none_are_refused(tokens):
    with pytest.raises(NotAnAnswer, match="no token ids"):
        read_tokens({"tokens": tokens})


def test_a_server_scores_as_its_weights_do_and_what_it_read_is_paid(weights):
    model, tokenizer = weights
    fake = FakeVllm(model, tokenizer, str)
    ids = tokenizer("The answer is that a refund takes thirty days.")["input_ids"]

    async def work(scorer):
        return await scorer.score_tokens(ids, 4, start=3), scorer.cost, scorer.num_prompt_tokens

    found, cost, num_tokens = ask(fake, work, price=PriceConfig(input=2.0, output=9.0))
    assert num_tokens == len(ids) and cost == pytest.approx(2e-6 * len(ids))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, 2:-1].log_softmax(-1).topk(4)
    np.testing.assert_array_equal(found.ids_NK, wanted.indices)
    np.testing.assert_allclose(found.logprobs_NK, wanted.values, atol=1e-5)


@pytest.mark.parametrize(
    ("server", "can"),
    [
        (lambda *given: FakeVllm(*given), True),
        (lambda *given: FakeVllm(*given, most=5), False),
        (lambda *given: FakeVllm(*given, tells=False), False),
        (lambda *given: FakeEndpoint(), False),
    ],
)
def test_one_probe_says_whether_a_server_can(weights, server, can):
    fake = server(*weights, str)
    assert ask(fake, lambda scorer: scorer.can_score(6)) is can
    assert len(getattr(fake, "scored", [1])) == 1 and not fake.bodies


def test_a_server_in_trouble_is_probed_once():
    class Troubled(FakeEndpoint):
        num_asked = 0

        def add_routes(self, router):
            router.add_post("/tokenize", self.fails)
            return super().add_routes(router)

        async def fails(self, request):
            from aiohttp import web

            self.num_asked += 1
            return web.Response(status=502, text="bad gateway")

    fake = Troubled()
    assert ask(fake, lambda scorer: scorer.can_score(6)) is False
    assert fake.num_asked == 1


def test_a_server_writes_prompts_with_its_own_template_and_text_with_nothing_added(weights):
    async def work(scorer):
        prompt = await scorer.tokens_of([Message(role="user", content="Is it?")])
        return prompt, await scorer.tokens_in("Is it?<|im_end|>")

    prompt, text = ask(FakeVllm(*weights, str), work)
    tokenizer = weights[1]
    assert tokenizer.decode(prompt) == "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert text[-1] == tokenizer.eos_token_id and tokenizer.decode(text) == "Is it?<|im_end|>"


def test_a_text_that_is_too_long_is_refused_alone_and_a_wrong_key_for_all(weights):
    async def work(scorer):
        with pytest.raises(TeacherError, match=r"status 400: .*maximum context length is 8") as one:
            await scorer.score_tokens(list(range(9)), 3)
        assert not isinstance(one.value, TeacherRefused)
        fake.most_scores = 0
        with pytest.raises(TeacherRefused, match="401"):
            await scorer.score_tokens([1, 2, 3], 3)

    fake = FakeVllm(*weights, str, most_tokens=8)
    ask(fake, work)


def test_a_field_that_is_called_otherwise_is_sent_so_once_and_not_for_ever(weights):
    class Renamed(FakeVllm):
        def _error(self, status, message):
            return super()._error(status, "use max_completion_tokens")

    fake = Renamed(*weights, str, most_tokens=2)

    async def work(scorer):
        with pytest.raises(TeacherError, match="use max_completion_tokens"):
            await scorer.score_tokens([1, 2, 3], 3)

    ask(fake, work)
    assert ["max_tokens" in body for body in fake.scored] == [True, False]


@pytest.mark.parametrize(
    "url", ["https://api.openai.com", "https://x.openai.azure.com", "https://api.anthropic.com"]
)
def test_providers_that_score_nothing_are_not_probed(url):
    assert EndpointModel(url, "m").open_scorer() is None
