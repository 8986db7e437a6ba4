"""Each API is spoken as its official client speaks it, and told from the others by its host."""

import asyncio

import pytest
from fake_endpoint import FakeAzure, FakeEndpoint, completion, serving
from pages import PAGES, blocks
from pydantic import SecretStr

from potstill.config import PriceConfig, TeacherConfig
from potstill.errors import ConfigError, TeacherRefused
from potstill.models.chat import open_chat_model
from potstill.models.endpoint import EndpointModel
from potstill.models.quirks import Quirks
from potstill.models.wire import AzureWire, OpenAIWire, open_wire
from potstill.models.wire_anthropic import AnthropicWire
from potstill.models.workspace import read_workspace
from potstill.types import Message, Record, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))
VERSION = "2024-10-21"


def ask(fake, *, path="", calls=1, sampling=None, model="fake", **settings):
    """Responses of calls to a fake server, all in flight at once."""

    async def main():
        async with serving(fake):
            endpoint = EndpointModel(fake.url + path, model, **settings)
            try:
                asked = (endpoint.respond(ASK, sampling or Sampling()) for _ in range(calls))
                return await asyncio.gather(*asked)
            finally:
                await endpoint.close()

    return asyncio.run(main())


def ask_azure(fake, **settings):
    return ask(fake, **{"api": "azure", "key": SecretStr(FakeAzure.key), **settings})


def official(fake, talk):
    """What `talk` makes of OpenAI's official client, pointed at the fake's address."""
    openai = pytest.importorskip("openai")

    async def main():
        async with serving(fake):
            return await talk(openai, fake.url)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "settings", "kind", "chat_url"),
    [
        ("https://h", {}, OpenAIWire, "https://h/v1/chat/completions"),
        ("https://h/v1?k=1", {}, OpenAIWire, "https://h/v1/chat/completions?k=1"),
        (
            "https://api.anthropic.com",
            {},
            AnthropicWire,
            "https://api.anthropic.com/v1/messages",
        ),
        (
            "https://h/anthropic",
            {"api": "anthropic"},
            AnthropicWire,
            "https://h/anthropic/v1/messages",
        ),
        ("https://h/v1/messages", {"api": "anthropic"}, AnthropicWire, "https://h/v1/messages"),
        (
            "https://r.openai.azure.com",
            {},
            AzureWire,
            "https://r.openai.azure.com/openai/v1/chat/completions",
        ),
        (
            "https://r.cognitiveservices.azure.com/",
            {"api_version": VERSION},
            AzureWire,
            "https://r.cognitiveservices.azure.com/openai/deployments/m/chat/completions"
            f"?api-version={VERSION}",
        ),
        (
            f"https://r.openai.azure.com/openai/deployments/x/chat/completions?api-version={VERSION}",
            {},
            AzureWire,
            f"https://r.openai.azure.com/openai/deployments/x/chat/completions?api-version={VERSION}",
        ),
        (
            "https://r.openai.azure.com/openai/v1/",
            {"api_version": "preview"},
            AzureWire,
            "https://r.openai.azure.com/openai/v1/chat/completions?api-version=preview",
        ),
        ("https://r.openai.azure.com/v1", {"api": "openai"}, OpenAIWire, None),
    ],
)
def test_the_host_says_which_api_it_is_unless_the_config_does(url, settings, kind, chat_url):
    wire = open_wire(url, **settings)
    assert type(wire) is kind
    assert chat_url is None or wire.chat_url("m") == chat_url


def test_a_version_for_an_api_without_versions_is_refused():
    with pytest.raises(ConfigError, match=r"teacher\.api: azure"):
        open_wire("https://h/v1", api_version=VERSION)


def test_a_teacher_of_the_config_is_asked_in_its_api(monkeypatch):
    config = TeacherConfig(url="https://h/", model="m", api="azure", api_version=VERSION)
    wire = open_chat_model(config)._wire
    assert wire.chat_url("m").endswith(f"/deployments/m/chat/completions?api-version={VERSION}")
    names = {"gpt": {"url": "https://h/", "model": "m", "api": "anthropic"}}
    teacher = open_chat_model("gpt", workspace=names)
    assert isinstance(teacher._wire, AnthropicWire)


def test_the_examples_of_the_page_speak_three_apis(tmp_path):
    file = tmp_path / "potstill.yaml"
    file.write_text(blocks(PAGES / "concepts.md")["yaml workspace"])
    models = read_workspace(file).models
    wires = {name: open_chat_model(name, workspace=models)._wire for name in models}
    assert {type(wire) for wire in wires.values()} == {OpenAIWire, AzureWire, AnthropicWire}


def test_the_fake_azure_satisfies_the_official_client():
    refused = {"error": FakeAzure.filtered}
    fake = FakeAzure((200, completion("Yes.")), (400, refused), (200, completion("Yes.")))

    async def talk(openai, url):
        def talker(key):
            return openai.AsyncAzureOpenAI(
                azure_endpoint=url, api_key=key, api_version=VERSION, max_retries=0
            )

        async def say(client, model="fake"):
            messages = [{"role": "user", "content": "Is it?"}]
            try:
                got = await client.chat.completions.create(model=model, messages=messages)
                return got.choices[0].message.content
            except openai.APIStatusError as error:
                return error.status_code, error.code
            finally:
                await client.close()

        v1 = openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key=fake.key, max_retries=0)
        key = fake.key
        return [
            await say(talker(key)),
            await say(talker(key)),
            await say(v1),
            await say(talker(key), "other"),
            await say(talker("wrong")),
        ]

    assert official(fake, talk) == [
        "Yes.",
        (400, "content_filter"),
        "Yes.",
        (404, "DeploymentNotFound"),
        (401, "401"),
    ]


@pytest.mark.parametrize("settings", [{}, {"api_version": VERSION}])
def test_azure_is_asked_at_both_its_addresses_with_the_key_in_its_own_header(settings):
    fake = FakeAzure()
    (response,) = ask_azure(fake, **settings)
    assert response.text == "Yes."
    assert fake.headers[0]["api-key"] == fake.key and "Authorization" not in fake.headers[0]


def test_a_prompt_that_azure_withholds_is_an_outcome_of_this_prompt():
    fake = FakeAzure((400, {"error": FakeAzure.filtered}))
    first, second = ask_azure(fake, calls=2)
    withheld, answered = sorted((first, second), key=lambda response: response.text)
    assert withheld.finish_reason == "content_filter"
    assert withheld.error.startswith("content_filter: status 400")
    assert answered.text == "Yes."


def test_an_answer_that_azure_withholds_has_no_text():
    filtered = completion(None, finish_reason="content_filter")
    del filtered["choices"][0]["message"]["content"]
    (response,) = ask_azure(FakeAzure((200, filtered)))
    assert (response.finish_reason, response.text) == ("content_filter", "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "other"}, "DeploymentNotFound"),
        ({"key": SecretStr("wrong-canary")}, "it refuses the key that was given"),
    ],
)
def test_azure_refuses_a_deployment_or_a_key_without_naming_the_key(settings, words):
    with pytest.raises(TeacherRefused, match=words) as caught:
        ask_azure(FakeAzure(), **settings)
    assert "canary" not in str(caught.value)


def test_azure_needs_the_name_of_a_deployment():
    with pytest.raises(ConfigError, match=r"deployment in teacher\.model"):
        ask_azure(FakeAzure(), model=None)


def test_requests_in_flight_together_are_all_asked_again_in_the_manner_that_one_learned():
    hint = {"error": {"message": "'max_tokens' is not supported; use 'max_completion_tokens'"}}
    fake = FakeEndpoint(*[(400, hint)] * 5)
    responses = ask(fake, calls=5)
    assert [response.text for response in responses] == ["Yes."] * 5
    assert all("max_completion_tokens" in body for body in fake.bodies[5:])


def test_an_endpoint_that_goes_on_refusing_a_field_is_not_asked_for_ever():
    fake = FakeEndpoint(*[(400, {"error": {"message": "use max_completion_tokens"}})] * 9)
    (response,) = ask(fake)
    assert response.finish_reason == "error" and len(fake.bodies) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Unsupported value: 'temperature' does not support 0.7 with this model.",
        "`temperature` is deprecated for this model.",
    ],
)
def test_a_model_without_temperature_is_asked_without_one_and_that_is_said(text, caplog):
    fake = FakeEndpoint((400, {"error": {"message": text}}))
    (response,) = ask(fake, sampling=Sampling(temperature=0.7))
    assert response.text == "Yes."
    assert fake.bodies[0]["temperature"] == 0.7 and "temperature" not in fake.bodies[1]
    assert "fake takes no temperature: its own is used, not 0.7" in caplog.text


def test_a_temperature_out_of_range_is_for_the_user_to_mend():
    quirks = Quirks("temperature", "seed")
    assert not quirks.learns({"temperature": 3}, "temperature must be between 0 and 2")
    assert not quirks.learns({"seed": 1}, "the prompt exceeds the context")


def test_an_unknown_field_for_token_ids_is_left_out_after_one_refusal():
    text = "Unrecognized request argument supplied: return_tokens_as_token_ids"
    told = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}]}
    fake = FakeEndpoint(
        (400, {"error": {"message": text}}), answer=lambda b: completion(logprobs=told)
    )
    (response,) = ask(fake, sampling=Sampling(top_logprobs=2))
    assert response.logprobs is not None
    assert "return_tokens_as_token_ids" not in fake.bodies[1]
    assert fake.bodies[1]["top_logprobs"] == 2


@pytest.mark.parametrize(
    "usage",
    [
        # OpenAI counts reasoning among completion_tokens; xAI and Gemini only in the total.
        {
            "prompt_tokens": 10,
            "completion_tokens": 100,
            "total_tokens": 110,
            "completion_tokens_details": {"reasoning_tokens": 90},
        },
        {
            "prompt_tokens": 10,
            "completion_tokens": 10,
            "total_tokens": 110,
            "completion_tokens_details": {"reasoning_tokens": 90},
        },
        {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": None},
    ],
)
def test_tokens_of_reasoning_are_counted_and_paid(usage):
    fake = FakeEndpoint((200, completion("B", usage=usage)))
    (response,) = ask(fake, price=PriceConfig(input=0, output=1e6))
    assert (response.num_prompt_tokens, response.num_new_tokens, response.cost) == (10, 100, 100)


@pytest.mark.parametrize(
    ("status", "tree", "finish"),
    [
        (400, {"error": {"code": "invalid_prompt", "message": "flagged"}}, "content_filter"),
        (
            403,
            {"error": {"code": 403, "message": "no", "metadata": {"flagged_input": "x"}}},
            "content_filter",
        ),
        (
            400,
            {
                "error": {
                    "message": "Could not finish the message because max_tokens or model output "
                    "limit was reached. Please try again with higher max_tokens."
                }
            },
            "length",
        ),
        (400, {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}, "error"),
        (400, {"error": {"code": ["odd"], "message": "odd"}}, "error"),
    ],
)
def test_a_refusal_of_one_prompt_says_what_became_of_it(status, tree, finish):
    (response,) = ask(FakeEndpoint((status, tree)))
    assert response.finish_reason == finish and response.error


def test_the_official_client_reads_cut_and_refused_answers_of_the_fake():
    refusal = completion(None, message={"refusal": "I can't."})
    fake = FakeEndpoint((200, completion("cu", finish_reason="length")), (200, refusal))

    async def talk(openai, url):
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        got = [
            (await client.chat.completions.create(model="fake", messages=[])).choices[0]
            for _ in range(2)
        ]
        await client.close()
        return got[0].finish_reason, got[1].message.refusal

    assert official(fake, talk) == ("length", "I can't.")
