"""What would stop a run is found before anything long starts."""

import asyncio
import importlib.util
import json

import pytest
from fake_batches import FakeOpenAIBatches
from fake_endpoint import FakeEndpoint, serving

from potstill.config import parse_config
from potstill.errors import ConfigError, MissingExtra, TeacherRefused, VocabMismatch
from potstill.pipeline import distill
from potstill.pipeline.context import Context
from potstill.pipeline.preflight import preflight
from potstill.rundir import RunDir


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


def batched(fake, tmp_path, monkeypatch):
    """A check before a run whose teacher is asked through batches."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("TEACHER_KEY", getattr(fake, "key", "k"))

    async def main():
        async with serving(fake):
            config = parse_config(
                {
                    "name": "faq",
                    "task": "classification",
                    "teacher": {
                        "url": fake.url,
                        "model": "fake",
                        "key": "env:TEACHER_KEY",
                        "batch": True,
                    },
                    "student": str(tmp_path),
                    "train_data": "train.jsonl",
                }
            )
            await asyncio.to_thread(preflight, Context(config=config, run=None))

    asyncio.run(main())


def test_batches_are_looked_for_before_the_run(tmp_path, monkeypatch):
    fake = FakeOpenAIBatches().start()
    batched(fake, tmp_path, monkeypatch)
    assert (fake.lists, len(fake.bodies)) == (1, 1)
    with pytest.raises(TeacherRefused, match=r"teacher\.batch: false asks without one"):
        batched(FakeEndpoint(), tmp_path, monkeypatch)


def test_a_model_on_this_machine_has_no_batches(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = parse_config(
        {
            "name": "faq",
            "task": "classification",
            "teacher": {"source": str(tmp_path), "batch": True},
            "student": str(tmp_path),
            "train_data": "train.jsonl",
        }
    )
    with pytest.raises(ConfigError, match=r"is a model on this machine; use teacher\.batch: false"):
        preflight(Context(config=config, run=None))


@pytest.mark.parametrize("accepted", [False, True])
def test_terms_that_forbid_training_stop_a_run_that_has_not_accepted_them(tmp_path, accepted):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"question": "Why?"}\n')
    run, events = RunDir(tmp_path / "run"), []
    teacher = {"source": "llama-3-8b-instruct", "accept_terms": accepted}
    tree = {"name": "faq", "task": "qa", "teacher": teacher, "student": str(tmp_path)}
    config = parse_config({**tree, "train_data": str(tmp_path / "train.jsonl")})
    if not accepted:
        with pytest.raises(ConfigError, match=r"forbid training on its outputs.*--accept-terms"):
            distill(config, run)
        assert not run.config.exists()
        return
    distill(config, run, on_event=events.append, stop_after="load")
    assert "forbid training on its outputs" in events[0].text
    noted = json.loads(run.environment.read_text())["teacher"]
    assert (noted["train_on_outputs"], noted["accepted"]) == ("no", True)
    assert noted["licence"] == "Meta Llama 3 Community License"


def between_layers(tmp_path, teacher):
    from tiny import tiny_llama

    tree = {
        "name": "faq",
        "task": "classification",
        "teacher": teacher,
        "student": str(tiny_llama(tmp_path / "student")),
        "train_data": "train.jsonl",
        "loss": {"hidden": "cosine"},
    }
    preflight(Context(config=parse_config(tree), run=None))


def test_an_endpoint_shows_no_layers(tmp_path):
    with pytest.raises(
        ConfigError, match=r"loss.hidden and loss.attention read.*only returns text"
    ):
        between_layers(tmp_path, {"url": "http://127.0.0.1:9/v1", "model": "m"})


def test_layers_are_compared_on_the_same_tokens_alone(tmp_path):
    from families import tiny_family
    from tiny import tiny_llama

    between_layers(tmp_path, str(tiny_llama(tmp_path / "like", hidden=48)))
    with pytest.raises(VocabMismatch, match=r"teacher's layers token by token, but other and stu"):
        between_layers(tmp_path, str(tiny_family(tmp_path / "other", "gemma2")))


@pytest.mark.parametrize(
    ("package", "train", "message"),
    [
        ("mlflow", {"track": ["mlflow"]}, r"train\.track needs mlflow.*pip install mlflow"),
        ("trackio", {"track": ["trackio"]}, r"train\.track needs trackio.*pip install trackio"),
        ("bitsandbytes", {"adapter": "qlora"}, r"train\.adapter needs bits.*potstill\[qlora\]"),
    ],
)
def test_what_only_training_needs_is_missed_before_the_teacher_is_paid(
    tmp_path, monkeypatch, package, train, message
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    (tmp_path / "config.json").write_text("{}")

    async def main():
        async with serving(FakeEndpoint()) as fake:
            tree = {"name": "faq", "task": "classification", "student": str(tmp_path)}
            teacher = {"url": fake.url, "model": "fake"}
            config = parse_config(
                {**tree, "teacher": teacher, "train_data": "train.jsonl", "train": train}
            )
            with pytest.raises(MissingExtra, match=message):
                await asyncio.to_thread(preflight, Context(config=config, run=None))
            return fake.bodies

    assert asyncio.run(main()) == []
