"""An endpoint is asked again when that may help, and never when it costs the key or money."""

import asyncio
import json

import pytest
from fake_endpoint import FakeEndpoint, TellingEndpoint, completion, serving
from pydantic import SecretStr

from potstill.config import PriceConfig
from potstill.errors import ConfigError, TeacherError, TeacherRefused
from potstill.models.endpoint import EndpointModel
from potstill.models.logprobs import logprob_arrays
from potstill.models.transport import Transport
from potstill.types import Message, Record, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))
CANARY = "sk-canary-5f0c7e"


def run(fake, *, sampling=None, calls=1, model="fake", **settings):
    """Responses (or the error) of calls to a fake server, and the waits between attempts."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async def main():
        async with serving(fake):
            endpoint = EndpointModel(
                settings.pop("url", fake.url),
                model,
                sleep=sleep,
                jitter=lambda: 0.5,
                wall_clock=lambda: 1_000_000.0,
                **settings,
            )
            try:
                return [await endpoint.respond(ASK, sampling or Sampling()) for _ in range(calls)]
            finally:
                await endpoint.close()

    return asyncio.run(main()), waits


def refused(fake, kind=TeacherRefused, **settings):
    with pytest.raises(kind) as caught:
        run(fake, **settings)
    return str(caught.value)


def test_the_fake_server_satisfies_the_official_client():
    """Otherwise everything below would be tested against our own misunderstanding."""
    openai = pytest.importorskip("openai")

    async def main():
        async with serving(FakeEndpoint()) as fake:
            client = openai.AsyncOpenAI(base_url=fake.url, api_key="none")
            got = await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "Is it?"}], seed=1
            )
            names = [model.id async for model in client.models.list()]
            await client.close()
            return got.choices[0].message.content, got.usage.completion_tokens, names

    assert asyncio.run(main()) == ("Yes.", 3, ["fake"])


def test_the_fakes_log_probabilities_satisfy_the_official_client(tmp_path):
    openai = pytest.importorskip("openai")
    from tiny import tiny_llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_llama(tmp_path / "m")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )

    async def main():
        async with serving(TellingEndpoint(model, tokenizer, lambda text: "It is here.")) as fake:
            client = openai.AsyncOpenAI(base_url=fake.url, api_key="none", max_retries=0)
            got = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": "Is it?"}],
                logprobs=True,
                top_logprobs=2,
            )
            await client.close()
            return got.choices[0].logprobs.content

    told = asyncio.run(main())
    assert b"".join(bytes(place.bytes) for place in told).decode() == "It is here."
    for place in told:
        first, second = (entry.logprob for entry in place.top_logprobs)
        assert place.logprob <= first <= 0 and second <= first


def test_an_answer_carries_text_tokens_cost_and_its_request():
    fake = FakeEndpoint()
    sampling = Sampling(temperature=0.7, seed=5, stop=("END",))
    (response,), waits = run(fake, sampling=sampling, price=PriceConfig(input=10, output=100))
    assert response.text == "Yes."
    assert (response.num_prompt_tokens, response.num_new_tokens) == (7, 3)
    assert response.cost == pytest.approx((7 * 10 + 3 * 100) / 1e6)
    assert fake.bodies[0]["stop"] == ["END"]
    assert fake.bodies[0]["seed"] == 5
    assert not waits


@pytest.mark.parametrize(
    "step",
    [
        (408, "slow"),
        (409, "conflict"),
        (429, {"error": {"message": "busy"}}),
        (500, "oops"),
        (503, "<html>"),
        "drop",
        b'{"choices": [{"mess',
        b"<html>fine</html>",
        b"",
    ],
)
def test_what_may_pass_is_tried_again(step):
    (response,), waits = run(FakeEndpoint(step))
    assert response.text == "Yes."
    assert len(waits) == 1


def test_it_gives_up_after_six_attempts():
    fake = FakeEndpoint(*[(500, "oops")] * 20)
    message = refused(fake, TeacherError)
    assert "failed 6 times" in message and "oops" in message
    assert len(fake.bodies) == 6


def test_being_too_fast_does_not_count_as_an_attempt():
    (response,), waits = run(FakeEndpoint(*[(429, "busy", {"Retry-After": "1"})] * 30))
    assert response.text == "Yes."
    assert len(waits) == 30


def test_an_endpoint_that_is_busy_for_ever_ends_in_an_error():
    fake = FakeEndpoint(*[(429, "busy", {"Retry-After": "600"})] * 30)
    assert "was too busy for anyone for" in refused(fake, TeacherError)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "bad key"}}, "env:POTSTILL_TEST_KEY"),
        (403, {"error": {"message": "no access"}}, "no access"),
        (404, {"error": {"code": "model_not_found", "message": "gone"}}, "teacher.model"),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, "no quota left"),
        (402, {"error": {"message": "Insufficient Balance"}}, "no quota left"),
        (302, "", "not followed"),
    ],
)
def test_a_refusal_ends_the_run_at_once(monkeypatch, status, body, words):
    monkeypatch.setenv("POTSTILL_TEST_KEY", CANARY)
    fake = FakeEndpoint((status, body, {"Location": "http://elsewhere/"}))
    message = refused(fake, key="env:POTSTILL_TEST_KEY")
    assert words in message and str(status) in message and CANARY not in message
    assert len(fake.bodies) == 1


def test_a_prompt_that_is_declined_is_an_error_row_and_the_next_one_is_answered():
    fake = FakeEndpoint((400, {"error": {"message": "maximum context length is 8192 tokens"}}))
    (first, second), waits = run(fake, calls=2)
    assert first.finish_reason == "error" and first.error.startswith("too_long: status 400")
    assert second.text == "Yes."
    assert not waits


def test_the_key_is_in_no_message_and_no_answer(monkeypatch):
    monkeypatch.setenv("POTSTILL_TEST_KEY", CANARY)
    echo = {"error": {"message": f"who is Bearer {CANARY}? " + "x" * 480 + CANARY}}
    for status in (400, 401, 404, 500):
        fake = FakeEndpoint(*[(status, echo)] * 6)
        try:
            (response,), _ = run(fake, key="env:POTSTILL_TEST_KEY")
            said = response.model_dump_json()
        except TeacherError as error:
            said = str(error)
        assert "sk-" not in said and "[key]" in said
    fake = FakeEndpoint(answer=lambda body: completion(f"It is {CANARY}"))
    (response,), _ = run(fake, key=SecretStr(CANARY))
    assert response.text == "It is [key]"
    assert fake.headers[0]["Authorization"] == f"Bearer {CANARY}"
    assert CANARY not in repr(EndpointModel("http://h/v1", "m", key=SecretStr(CANARY)).__dict__)


def test_an_absent_key_is_found_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("POTSTILL_NO_KEY", raising=False)
    fake = FakeEndpoint()
    assert "POTSTILL_NO_KEY holds no key" in refused(fake, ConfigError, key="env:POTSTILL_NO_KEY")
    assert not fake.bodies


def test_a_key_in_clear_is_not_taken_for_a_reference():
    with pytest.raises(ConfigError) as caught:
        EndpointModel("http://h/v1", "m", key=CANARY)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "finish", "text"),
    [
        (completion("cut", finish_reason="length"), "length", "cut"),
        (completion(None, message={"refusal": "I can't."}), "content_filter", "I can't."),
        (completion(None), "stop", ""),
        (completion([{"type": "text", "text": "in parts"}]), "stop", "in parts"),
        (completion("x", finish_reason="tool_calls"), "error", "x"),
        (completion("x", usage=None), "stop", "x"),
    ],
)
def test_dialects_of_an_answer_are_understood(given, finish, text):
    (response,), _ = run(FakeEndpoint((200, given)))
    assert (response.finish_reason, response.text) == (finish, text)


def test_reasoning_beside_the_answer_is_kept():
    fake = FakeEndpoint((200, completion("B", message={"reasoning_content": "because"})))
    (response,), _ = run(fake)
    assert (response.reasoning, response.text) == ("because", "B")


def test_half_a_surrogate_pair_does_not_spoil_the_answer():
    data = json.dumps(completion("odd \ud800 text")).encode()
    (response,), _ = run(FakeEndpoint(data))
    assert response.text == "odd ? text"


def test_without_usage_tokens_are_zero_and_the_cost_is_unknown():
    (response,), _ = run(
        FakeEndpoint((200, completion("x", usage=None))), price=PriceConfig(input=1, output=1)
    )
    assert (response.num_new_tokens, response.cost) == (0, None)


def test_log_probabilities_are_ranked_and_limited_to_what_was_asked():
    entry = {"token": "é", "bytes": [195, 169], "logprob": -3.0}
    tops = [
        {"token": "a", "bytes": [97], "logprob": -2.0},
        {"token": "b", "bytes": None, "logprob": -0.1},
        {"token": "c", "bytes": [99], "logprob": None},
        entry,
    ]
    fake = FakeEndpoint(
        (200, completion("é", logprobs={"content": [{**entry, "top_logprobs": tops}]}))
    )
    (response,), _ = run(fake, sampling=Sampling(top_logprobs=2))
    arrays = logprob_arrays(response.logprobs)
    spelled = [bytes.fromhex(token) for token in response.logprobs.tokens]
    assert spelled[arrays.sampled_N[0]] == "é".encode()
    assert [spelled[i] for i in arrays.ids_NK[0]] == [b"b", b"a"]
    assert arrays.logprobs_NK[0] == pytest.approx([-0.1, -2.0], rel=2**-11)
    assert fake.bodies[0]["top_logprobs"] == 2


def test_an_endpoint_without_log_probabilities_is_refused_when_they_are_needed():
    assert "tells no log-probabilities" in refused(
        FakeEndpoint(), sampling=Sampling(top_logprobs=5)
    )


def test_a_field_that_the_endpoint_calls_otherwise_is_learned_once():
    hint = "Unsupported parameter: use 'max_completion_tokens' instead"
    fake = FakeEndpoint((400, {"error": {"message": hint}}))
    responses, waits = run(fake, calls=2)
    assert [response.text for response in responses] == ["Yes.", "Yes."]
    assert "max_tokens" not in fake.bodies[2] and len(fake.bodies) == 3
    assert not waits


def test_an_endpoint_with_one_model_needs_no_name():
    fake = FakeEndpoint()
    (response,), _ = run(fake, model=None)
    assert response.model == "fake"
    fake.models = [f"m{n}" for n in range(9)]
    message = refused(fake, ConfigError, model=None)
    assert "has 9: m0, m1, m2, m3, m4 …" in message


def test_a_body_without_end_is_cut_off():
    transport = Transport(timeout_seconds=10, largest_bytes=10_000)
    fake = FakeEndpoint(b"x" * 200_000)
    assert "sent more than" in refused(fake, TeacherError, transport=transport)
    assert len(fake.bodies) == 1


def test_nobody_there_is_an_error_that_names_the_host():
    assert "127.0.0.1:9" in refused(FakeEndpoint(), TeacherError, url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://h", "https://h/v1"),
        ("https://h/", "https://h/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/openai/deployments/x?api-version=1", "https://h/openai/deployments/x"),
    ],
)
def test_urls_are_taken_as_people_write_them(url, base):
    assert EndpointModel(url, "m").identity == f"{base} m"


def test_a_password_in_the_url_is_refused_without_repeating_it():
    with pytest.raises(ConfigError) as caught:
        EndpointModel("https://me:hunter2@h/v1", "m")
    assert "hunter2" not in str(caught.value)


def test_one_dry_call_finds_what_would_stop_a_run():
    async def main(fake, **wanted):
        async with serving(fake):
            endpoint = EndpointModel(fake.url, "fake")
            try:
                await endpoint.dry_call(**wanted)
            finally:
                await endpoint.close()

    asyncio.run(main(FakeEndpoint()))
    with pytest.raises(TeacherRefused, match="log-probabilities"):
        asyncio.run(main(FakeEndpoint(), top_logprobs=5))
    with pytest.raises(TeacherRefused, match="does not answer a tiny request"):
        asyncio.run(main(FakeEndpoint((422, {"detail": "messages: wrong"}))))
