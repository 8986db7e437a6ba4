"""What would stop a run is found before anything long starts."""

import asyncio

from fake_endpoint import FakeEndpoint, serving

from potstill.config import parse_config
from potstill.pipeline.context import Context
from potstill.pipeline.preflight import preflight


def test_a_remote_teacher_is_called_once_as_the_run_will_ask(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    generation = {"temperature": 0.9, "top_p": 0.8, "presence_penalty": 0.5, "stop": ["END"]}

    async def main():
        async with serving(FakeEndpoint()) as fake:
            config = parse_config(
                {
                    "name": "faq",
                    "task": "classification",
                    "teacher": {"url": fake.url, "model": "fake"},
                    "student": str(tmp_path),
                    "train_data": "train.jsonl",
                    "generation": generation,
                }
            )
            await asyncio.to_thread(preflight, Context(config=config, run=None))
            return fake.bodies

    (body,) = asyncio.run(main())
    assert {key: body[key] for key in generation} == generation
