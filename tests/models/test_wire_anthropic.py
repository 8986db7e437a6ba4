"""Anthropic's messages API is spoken as its official client speaks it."""

import asyncio

import pytest
from fake_anthropic import FakeAnthropic, error, message
from fake_endpoint import serving
from pydantic import SecretStr

from potstill.config import PriceConfig
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.endpoint import EndpointModel
from potstill.models.wire_anthropic import AnthropicWire
from potstill.types import Message, Record, Sampling

THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"}
SPENT = "enforced_spend_limit_reached"
REFUSAL = {"type": "refusal", "category": "bio", "explanation": "It could do harm."}


async def no_sleep(seconds):
    pass


def ask(fake, *turns, sampling=None, model="fake", dry=None, **settings):
    """The response of a call to the fake server; of a dry call where `dry` says with what."""
    messages = [Message(role=role, content=content) for role, content in turns]
    record = Record(id="r1", messages=messages or [Message(role="user", content="Is it?")])
    settings = {"key": SecretStr(fake.key), "sleep": no_sleep, "jitter": lambda: 0.0, **settings}

    async def main():
        async with serving(fake):
            endpoint = EndpointModel(fake.url, model, api="anthropic", **settings)
            try:
                if dry is not None:
                    return await endpoint.dry_call(**dry)
                return await endpoint.respond(record, sampling or Sampling(temperature=0.7))
            finally:
                await endpoint.close()

    return asyncio.run(main())


def test_the_fake_server_satisfies_the_official_client():
    """Otherwise everything below would be tested against our own misunderstanding."""
    anthropic = pytest.importorskip("anthropic")
    fake = FakeAnthropic(
        (200, message(THOUGHT, "Yes.")),
        (200, message("cu", stop_reason="max_tokens")),
        (200, message(stop_reason="refusal", stop_details=REFUSAL)),
        (529, error("overloaded_error", "Overloaded")),
        (429, error("rate_limit_error", "slow", error_code=SPENT)),
    )

    async def main():
        async with serving(fake):

            async def say(key=fake.key, **fields):
                client = anthropic.AsyncAnthropic(base_url=fake.url, api_key=key, max_retries=0)
                turn = {"role": "user", "content": "Is it?"}
                try:
                    return await client.messages.create(
                        **{"model": "fake", "max_tokens": 9, "messages": [turn], **fields}
                    )
                except anthropic.APIStatusError as caught:
                    return caught.status_code, caught.error_code or caught.type
                finally:
                    await client.close()

            got = [await say() for _ in range(5)]
            wrong = [await say(key="wrong"), await say(extra_body={"temperature": 0.7})]
            return got, wrong

    (said, cut, refused, overloaded, limited), (unknown, version) = asyncio.run(main())
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert (said.content[1].text, said.stop_reason, said.usage.output_tokens) == (
        ("Yes.", "end_turn", 3)
    )
    assert cut.stop_reason == "max_tokens"
    assert refused.stop_details.explanation == "It could do harm."
    assert overloaded == (529, "overloaded_error")
    assert limited == (429, SPENT)
    assert unknown == (401, "authentication_error")
    # The client sends the version of 2026-10-21, which knows no temperature.
    assert version == (400, "invalid_request_error")


def test_an_answer_carries_text_thoughts_tokens_and_cost():
    usage = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 75,
        "output_tokens": 40,
    }
    fake = FakeAnthropic((200, message(THOUGHT, "Yes", ".", usage=usage)))
    response = ask(fake, price=PriceConfig(input=10, output=100))
    assert (response.text, response.reasoning) == ("Yes.", "Let me see.")
    assert (response.num_prompt_tokens, response.num_new_tokens) == (100, 40)
    assert response.cost == pytest.approx((100 * 10 + 40 * 100) / 1e6)


def test_system_messages_go_first_and_neighbours_of_one_role_become_one_turn():
    fake = FakeAnthropic()
    ask(
        fake,
        ("system", "Be brief."),
        ("user", "A"),
        ("user", "B"),
        ("assistant", "C"),
        ("system", "Be kind."),
        ("user", "D"),
        sampling=Sampling(temperature=0.5, top_p=0.9, max_new_tokens=33, stop=("END",), seed=3),
    )
    assert fake.bodies == [
        {
            "model": "fake",
            "max_tokens": 33,
            "system": "Be brief.\n\nBe kind.",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
                },
                {"role": "assistant", "content": "C"},
                {"role": "user", "content": "D"},
            ],
            "temperature": 0.5,
            "top_p": 0.9,
            "stop_sequences": ["END"],
        }
    ]
    assert fake.headers[0]["x-api-key"] == fake.key
    assert fake.headers[0]["anthropic-version"] == "2023-06-01"
    assert "Authorization" not in fake.headers[0]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "error"),
        ("pause_turn", "error"),
        (None, "error"),
    ],
)
def test_why_an_answer_ended_is_said_in_our_words(reason, finish):
    response = ask(FakeAnthropic((200, message("x", stop_reason=reason))))
    assert response.finish_reason == finish
    assert bool(response.error) == (finish == "error")


def test_a_refusal_without_text_has_its_explanation():
    refused = message(stop_reason="refusal", stop_details=REFUSAL)
    response = ask(FakeAnthropic((200, refused)))
    assert (response.finish_reason, response.text) == ("content_filter", "It could do harm.")


def test_half_a_key_is_not_left_at_the_end_of_a_cut_message():
    # Where the message is cut, the key stands across the cut.
    for start in (258, 266, 428, 440):
        odd = {"type": "message", "x": "." * start + FakeAnthropic.key}
        with pytest.raises(TeacherError) as caught:
            ask(FakeAnthropic(*[(200, odd)] * 9))
        assert "sk-ant" not in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        (529, error("overloaded_error", "Overloaded")),
        (500, error("api_error", "Internal server error")),
        (429, error("rate_limit_error", "too many")),
        (200, {"type": "message"}),
        (200, message({"type": "text"})),
        (200, {**message("x"), "stop_details": "odd", "content": []}),
        (200, ["odd"]),
    ],
)
def test_what_may_pass_is_tried_again(step):
    fake = FakeAnthropic(step)
    assert ask(fake).text == "Yes."
    assert len(fake.bodies) == 2


def test_an_overload_that_lasts_is_an_error_that_says_so():
    fake = FakeAnthropic(*[(529, error("overloaded_error", "Overloaded"))] * 9)
    with pytest.raises(TeacherError, match="overloaded_error: Overloaded"):
        ask(fake)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            429,
            error("rate_limit_error", "x", error_code=SPENT),
            "no quota",
        ),
        (400, error("invalid_request_error", "Your credit balance is too low"), "no quota"),
        (403, error("permission_error", "not for you"), "not for you"),
        (404, error("not_found_error", "model: fake"), "there is no fake"),
    ],
)
def test_what_no_other_prompt_would_change_ends_the_run(status, body, words):
    fake = FakeAnthropic((status, body))
    with pytest.raises(TeacherRefused, match=words):
        ask(fake)
    assert len(fake.bodies) == 1


def test_a_wrong_key_is_refused_without_naming_it():
    with pytest.raises(TeacherRefused, match="authentication_error") as caught:
        ask(FakeAnthropic(), key=SecretStr("sk-ant-wrong-canary"))
    assert "canary" not in str(caught.value)


def test_a_long_prompt_is_an_error_row():
    text = "prompt is too long: 210000 tokens > 200000 maximum"
    response = ask(FakeAnthropic((400, error("invalid_request_error", text))))
    assert response.finish_reason == "error" and response.error.startswith("too_long")


@pytest.mark.parametrize(
    ("dry", "words"),
    [
        ({"top_logprobs": 5}, "tells no log-probabilities.*generation.logprobs = 5"),
        ({"sampling": Sampling(presence_penalty=1)}, "knows no penalties"),
        ({"sampling": Sampling(temperature=1.5)}, "temperatures from 0 to 1"),
    ],
)
def test_a_dry_call_refuses_what_the_api_cannot_and_asks_nothing(dry, words):
    fake = FakeAnthropic()
    with pytest.raises(TeacherRefused, match=words):
        ask(fake, dry=dry)
    assert not fake.bodies


def test_a_temperature_of_one_is_not_sent_and_another_is_given_up_where_it_is_refused(caplog):
    fake = FakeAnthropic((200, message("A")))
    ask(fake, sampling=Sampling(temperature=1))
    assert "temperature" not in fake.bodies[0]
    text = "`temperature` is deprecated for this model."
    fake = FakeAnthropic((400, error("invalid_request_error", text)))
    assert ask(fake).text == "Yes."
    assert "temperature" not in fake.bodies[1] and "takes no temperature" in caplog.text


def test_the_only_model_needs_no_name():
    fake = FakeAnthropic()
    assert ask(fake, model=None).model == "fake"


def test_the_key_is_in_no_answer_and_no_repr():
    fake = FakeAnthropic(answer=lambda body: message(f"It is {FakeAnthropic.key}"))
    assert ask(fake).text == "It is [key]"
    endpoint = EndpointModel("https://api.anthropic.com", "m", key=SecretStr(fake.key))
    assert isinstance(endpoint._wire, AnthropicWire)
    assert fake.key not in repr(endpoint) + repr(endpoint.__dict__)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("input", [1.0]), ("output", [0.5]), ("nothing", [])],
)
def test_its_limits_for_prompts_and_answers_are_learned_from_a_reply(kind, seconds):
    """A second's worth is 10 tokens: 5 are left for the second request, or none for its prompt."""
    limits = {"input": 10**9, "output": 10**9} | {kind: 600}
    left = {"input": 10**9, "output": 10**9} | {kind: 5 if kind == "output" else 0}
    # What Anthropic says of all tokens repeats the nearer limit, and is none for their sum.
    told = {"anthropic-ratelimit-tokens-limit": "6", "anthropic-ratelimit-tokens-remaining": "0"}
    for name in ("input", "output"):
        told[f"anthropic-ratelimit-{name}-tokens-limit"] = str(limits[name])
        told[f"anthropic-ratelimit-{name}-tokens-remaining"] = str(left[name])
    waited, now = [], 0.0

    async def sleep(seconds):
        nonlocal now
        waited.append(round(seconds, 3))
        now += seconds

    fake = FakeAnthropic((200, message("Yes."), told))
    record = Record(id="r1", messages=(Message(role="user", content="Is it? " * 20),))

    async def main():
        async with serving(fake):
            model = EndpointModel(
                fake.url, "fake", api="anthropic", key=SecretStr(fake.key), sleep=sleep,
                clock=lambda: now,
            )  # fmt: skip
            for _ in range(2):
                await model.respond(record, Sampling(temperature=0.7, max_new_tokens=100))
            await model.close()

    asyncio.run(main())
    assert waited == seconds
