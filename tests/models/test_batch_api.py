"""The batch interfaces are spoken as the providers' official clients speak them."""

import asyncio
import io
import json

import pytest
from fake_anthropic import error, message
from fake_batches import FakeAnthropicBatches, FakeOpenAIBatches
from fake_endpoint import FakeAzure, FakeEndpoint, serving
from pydantic import SecretStr

from potstill.errors import ConfigError, TeacherRefused
from potstill.models.batches import BatchModel, in_batches
from potstill.models.endpoint import EndpointModel

NOW = 1_800_000_000.0
INVALID = error("invalid_request_error", "max_tokens: too large")


async def no_sleep(seconds):
    pass


def some_fate(number, body):
    content = body["messages"][0]["content"]
    return {"late": "expired", "bad": (400, INVALID)}.get(content, "done")


def opened(fake, api):
    return EndpointModel(
        fake.url, "fake", api=api, key=SecretStr(fake.key), sleep=no_sleep, jitter=lambda: 0.0
    )


def test_the_fake_server_satisfies_openais_official_client():
    """Otherwise everything would be tested against our own misunderstanding."""
    openai = pytest.importorskip("openai")
    fake = FakeOpenAIBatches().start(fate=some_fate)
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "fake", "messages": [{"role": "user", "content": name}]},
        }
        for name in ("good", "late", "bad")
    ]

    async def main():
        async with serving(fake):
            client = openai.AsyncOpenAI(base_url=fake.url, api_key=fake.key, max_retries=0)
            data = io.BytesIO("\n".join(json.dumps(line) for line in lines).encode())
            file = await client.files.create(file=("in.jsonl", data), purpose="batch")
            made = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"why": "test"},
            )
            listed = [batch.id async for batch in client.batches.list(limit=1)]
            states = [(await client.batches.retrieve(made.id)).status for _ in range(2)]
            ended = await client.batches.retrieve(made.id)
            texts = [
                (await client.files.content(name)).text
                for name in (ended.output_file_id, ended.error_file_id)
            ]
            await client.close()
            return file, made, listed, states, ended, texts

    file, made, listed, states, ended, (output, errors) = asyncio.run(main())
    assert (file.purpose, file.filename) == ("batch", "in.jsonl")
    assert (made.metadata, made.status, listed) == ({"why": "test"}, "in_progress", [made.id])
    assert states == ["in_progress", "expired"]
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
    assert json.loads(output)["response"]["body"]["choices"][0]["message"]["content"] == "Yes."
    assert {json.loads(line)["custom_id"] for line in errors.splitlines()} == {"late", "bad"}


def test_the_fake_server_satisfies_anthropics_official_client():
    anthropic = pytest.importorskip("anthropic")
    fake = FakeAnthropicBatches(answer=lambda body: message("Yes.")).start(fate=some_fate)
    rows = [
        {
            "custom_id": name,
            "params": {
                "model": "fake",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": name}],
            },
        }
        for name in ("good", "late", "bad")
    ]

    async def main():
        async with serving(fake):
            client = anthropic.AsyncAnthropic(base_url=fake.url, api_key=fake.key, max_retries=0)
            batches = client.messages.batches
            made = await batches.create(requests=rows)
            second = await batches.create(requests=rows[:1])
            listed = [batch.id async for batch in batches.list(limit=1)]
            states = [(await batches.retrieve(made.id)).processing_status for _ in range(2)]
            ended = await batches.retrieve(made.id)
            results = [row async for row in await batches.results(made.id)]
            await client.close()
            return made, second, listed, states, ended, results

    made, second, listed, states, ended, results = asyncio.run(main())
    assert (made.request_counts.processing, listed) == (3, [second.id, made.id])
    assert states == ["in_progress", "ended"]
    counts = ended.request_counts
    assert (counts.succeeded, counts.expired, counts.errored) == (1, 1, 1)
    found = {row.custom_id: row.result for row in results}
    assert found["good"].message.content[0].text == "Yes."
    assert found["late"].type == "expired"
    assert found["bad"].error.error.message == "max_tokens: too large"


@pytest.mark.parametrize(
    "kind, api", [(FakeOpenAIBatches, "openai"), (FakeAnthropicBatches, "anthropic")]
)
def test_the_list_is_read_page_by_page_and_no_further_than_needed(kind, api):
    fake = kind().start()
    fake.clock = iter(range(350)).__next__
    for _ in range(350):
        fake.make([("id", {})], {"potstill_intent": "x"})

    async def main():
        async with serving(fake):
            endpoint = opened(fake, api)
            try:
                return await endpoint.open_batches().made_since(160.0)
            finally:
                await endpoint.close()

    found = asyncio.run(main())
    assert [batch.created_at for batch in found] == list(range(349, 159, -1))
    assert fake.lists == 2


def test_an_endpoint_without_batches_is_refused_with_the_way_out():
    async def main():
        async with serving(FakeEndpoint()) as fake:
            fake.key = "k"
            model = BatchModel(opened(fake, "openai"))
            try:
                await model.batches.check()
            finally:
                await model.close()

    with pytest.raises(TeacherRefused, match=r"no batch interface \(teacher.batch: false asks"):
        asyncio.run(main())


def test_azure_and_models_on_this_machine_have_no_batches():
    azure = EndpointModel("https://x.openai.azure.com", "d", key=SecretStr(FakeAzure.key))
    with pytest.raises(ConfigError, match=r"asked as azure; use teacher.batch: false"):
        in_batches(azure)

    class Local:
        name = "smol"

    with pytest.raises(ConfigError, match=r"smol is asked on this machine; use teacher.batch"):
        in_batches(Local())
