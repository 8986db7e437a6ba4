"""A run starts its teacher's engine when it asks, and has its memory back before it trains."""

import asyncio
import json
import random

import pytest
from fake_engine import FakeEngine, on_path

from potstill.config import parse_config
from potstill.errors import TeacherRefused
from potstill.pipeline.context import Context, prepared, wait
from potstill.pipeline.evaluate import opened, teacher_row
from potstill.pipeline.preflight import privacy_of
from potstill.pipeline.story import distill
from potstill.rundir import RunDir
from potstill.types import Message, Record, Sampling


@pytest.fixture
def case(tmp_path, monkeypatch):
    """The fake engine, a config that launches it, and the run's folder."""
    fake = FakeEngine(tmp_path / "bin")
    monkeypatch.setenv("PATH", on_path(fake))
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    words = [random.Random(n).choices("abcdefghijklmnopqrstuvwxyz   ", k=60) for n in range(8)]
    rows = [{"question": "".join(letters)} for letters in words]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {
            "name": "faq",
            "task": "conversation",
            "teacher": {"launch": "vllm", "model": str(tmp_path / "teacher")},
            "student": str(tmp_path / "student"),
            "train_data": str(file),
            "data": {"validation": 0},
        }
    )
    return fake, config, RunDir(tmp_path / "run")


def test_the_engine_runs_while_it_is_asked_and_no_longer(case):
    fake, config, run = case
    distill(config, run, stop_after="teach")
    assert run.facts("teach")["answered"] == 8
    dry, asked = fake.starts
    assert dry["argv"] != asked["argv"]  # other ports and names, yet one identity
    assert not fake.running
    distill(config, run, stop_after="teach")
    assert len(fake.starts) == 2, "what is answered needs no engine"
    run.mark("teach").unlink()
    distill(config, run, stop_after="teach")
    assert run.facts("teach")["reused"] == 8


def test_the_teachers_row_is_answered_by_the_engine(case):
    fake, config, run = case
    ctx = Context(config, run)
    row = teacher_row(ctx)
    plain = config.model_copy(update={"teacher": config.teacher.model_copy(update={"launch": None,
        "source": config.teacher.model, "model": None})})  # fmt: skip
    assert row.key != teacher_row(Context(plain, run)).key

    async def ask():
        record = Record(id="a", messages=(Message(role="user", content="x"),))
        async with opened(ctx, row, 1) as model:
            return await model.respond(record, Sampling()), len(fake.running)

    answer, num_running = wait(ask())
    assert answer.text == "It takes 3 days." and num_running == 2
    assert not fake.running


def test_nothing_is_hidden_from_a_teacher_that_is_launched_here(case):
    _, config, run = case
    assert privacy_of(Context(config, run)).mode == "off"
    remote = config.teacher.model_copy(update={"launch": None, "url": "http://127.0.0.1:1/v1"})
    assert privacy_of(Context(config.model_copy(update={"teacher": remote}), run)).mode == "auto"


def test_who_waits_is_told_what_for_and_why_it_was_in_vain():
    class Slow:
        name, state = "slow", "vllm starts: reading the weights"

        async def prepare(self):
            await asyncio.sleep(0.05)
            raise TeacherRefused("no memory")

    told = []
    with pytest.raises(TeacherRefused, match="no memory"):
        wait(prepared(Slow(), lambda *given: told.append(given), every_seconds=0.01))
    assert told[0] == (0, None, "0 s, vllm starts: reading the weights")
