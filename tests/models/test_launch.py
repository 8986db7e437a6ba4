"""An engine is started for its weights, asked, and never outlives whoever started it."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fake_engine import FakeEngine, on_path
from pages import PAGES, blocks

from potstill.config import TeacherConfig
from potstill.errors import ConfigError, MissingExtra, TeacherRefused
from potstill.models.chat import open_chat_model
from potstill.models.engines import GgufModel
from potstill.models.launched import LaunchedModel
from potstill.types import Message, Record, Sampling

ASK = Record(id="a", messages=(Message(role="user", content="How long does it take?"),))
KEY = "sk-canary-7f3a"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Puts a fake command on PATH that follows a plan."""

    def make(*plan, name="vllm"):
        fake = FakeEngine(tmp_path / "bin", name, *plan)
        monkeypatch.setenv("PATH", on_path(fake))
        return fake

    return make


@pytest.fixture
def folder(tmp_path):
    """A folder that counts as weights."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    return tmp_path / "weights"


def teacher(folder, **settings):
    return TeacherConfig(**{"launch": "vllm", "model": str(folder), **settings})


def answered(config, *, times=1, then=None):
    """Opens the teacher, asks it, and closes it; returns its answers and what `then` says."""

    async def main():
        model = open_chat_model(config)
        try:
            await model.prepare()
            answers = [await model.respond(ASK, Sampling()) for _ in range(times)]
            return answers, then(model) if then else None
        finally:
            await model.close()

    return asyncio.run(main())


def option(start, name):
    return start["argv"][start["argv"].index(name) + 1]


def test_an_engine_answers_once_it_is_healthy_and_nothing_of_it_is_left(
    engine, folder, monkeypatch
):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    fake = engine({"seconds": 0.3})

    def look(model):
        return len(fake.running), model.memory_bytes()

    (answer,), (num_running, memory) = answered(teacher(folder), then=look)
    assert (answer.text, answer.model) == ("It takes 3 days.", "weights")
    assert num_running == 2 and memory > 1e6
    assert not fake.running
    (start,) = fake.starts
    assert start["argv"][:2] == ["serve", str(folder)]
    assert option(start, "--host") == "127.0.0.1"
    assert KEY not in str(start) and start["env"]["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(("wanted", "given"), [(0, None), (20, None), (64, "64")])
def test_vllm_is_started_to_tell_as_much_as_it_will_be_asked_for(engine, folder, wanted, given):
    engine()
    model, plain = (open_chat_model(teacher(folder), top_logprobs=n) for n in (wanted, 0))
    command = model._command
    is_given = "--max-logprobs" in command
    assert (command[command.index("--max-logprobs") + 1] if is_given else None) == given
    assert model.identity == plain.identity
    asyncio.run(model.close())
    asyncio.run(plain.close())


def test_a_llama_server_on_path_takes_a_gguf_file_and_is_waited_for_while_it_reads(
    engine, tmp_path
):
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    fake = engine({"num_loading": 2}, name="llama-server")
    config = teacher(file, launch="llama-server", launch_arguments=["--gpu-layers", "99"])
    (answer,), _ = answered(config)
    assert answer.model == "small"
    (start,) = fake.starts
    assert (option(start, "--model"), option(start, "--gpu-layers")) == (str(file), "99")


def test_without_a_llama_server_on_path_the_one_of_the_wheel_is_started(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("PATH", "")
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    model = open_chat_model(teacher(file, launch="llama-server"))
    assert isinstance(model, GgufModel)
    asyncio.run(model.close())
    with pytest.raises(ConfigError, match="there is none"):
        open_chat_model(teacher(file, launch="llama-server", launch_arguments=["--mlock"]))


def test_an_engine_that_dies_at_its_start_is_quoted(engine, folder):
    fake = engine({"dies_with": "ValueError: not enough memory for the KV cache"})
    with pytest.raises(TeacherRefused, match=r"vllm for weights ended with code 1.*KV cache"):
        answered(teacher(folder))
    assert fake.ends()


def test_an_engine_that_never_answers_is_given_up(engine, folder):
    fake = engine({"seconds": 60})
    with pytest.raises(TeacherRefused, match=r"within 1 s.*reading the weights.*launch_seconds"):
        answered(teacher(folder, launch_seconds=1))
    assert not fake.running


@pytest.mark.parametrize(
    "first", [{"dies_with": "OSError: [Errno 98] Address already in use"}, {"serves_as": "other"}]
)
def test_another_port_is_tried_when_somebody_else_has_taken_it(engine, folder, first):
    fake = engine(first)
    (answer,), _ = answered(teacher(folder))
    assert answer.text == "It takes 3 days."
    one, two = fake.starts
    assert option(one, "--port") != option(two, "--port")


def test_an_engine_that_crashes_ends_the_run_at_once_with_its_last_words(engine, folder):
    fake = engine({"num_answers": 1, "is_stubborn": True})
    started = time.monotonic()
    with pytest.raises(TeacherRefused, match=r"ended with code 3.*CUDA error"):
        answered(teacher(folder), times=2)
    assert time.monotonic() - started < 10
    assert len(fake.starts) == 1 and fake.ends()  # its deaf worker, too


@pytest.mark.slow
def test_an_engine_that_is_deaf_to_sigterm_is_killed(engine, folder):
    fake = engine({"is_stubborn": True})
    answered(teacher(folder))
    assert not fake.running


OWNER = """
import asyncio, sys
from potstill.config import TeacherConfig
from potstill.models.chat import open_chat_model
from potstill.models.offline import forbid_network
from potstill.types import *

async def main():
    model = open_chat_model(TeacherConfig(launch="vllm", model=sys.argv[1]))
    record = Record(id="a", messages=[Message(role="user", content="x")])
    try:
        print((await model.respond(record, Sampling())).text, flush=True)
        await asyncio.sleep(0 if sys.argv[2] == "leaves" else 60)
    finally:
        if sys.argv[2] == "closes":
            await model.close()

forbid_network()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("closes", signal.SIGINT),
        ("stays", signal.SIGTERM),
        ("stays", signal.SIGKILL),
        ("leaves", None),
    ],
)
def test_an_engine_ends_however_its_owner_does_and_is_allowed_offline(engine, folder, how, number):
    fake = engine()
    command = [sys.executable, "-c", OWNER, str(folder), how]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout.readline() == "It takes 3 days.\n"
    if number is not None:
        assert len(fake.running) == 2
        owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    assert fake.ends()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent")
def test_an_engine_ends_with_the_process_that_watches_it(engine, folder):
    fake = engine()

    async def main():
        model = open_chat_model(teacher(folder))
        try:
            await model.prepare()
            os.kill(model._process.pid, signal.SIGKILL)
            pid = fake.starts[0]["pids"][0]
            while pid in fake.running:
                await asyncio.sleep(0.02)
        finally:
            await model.close()

    asyncio.run(asyncio.wait_for(main(), 10))
    assert not fake.running


def test_answers_are_told_apart_by_weights_and_arguments_not_by_ports(engine, folder):
    engine()
    plain, same = (open_chat_model(teacher(folder)) for _ in range(2))
    other = open_chat_model(teacher(folder, launch_arguments=["--quantization", "fp8"]))
    assert isinstance(plain, LaunchedModel)
    assert plain.identity == same.identity != other.identity
    (folder / "config.json").write_text('{"vocab_size": 7}')
    assert open_chat_model(teacher(folder)).identity != plain.identity


def test_what_cannot_be_launched_is_refused_with_the_way_out(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtra, match="pip install vllm"):
        open_chat_model(teacher(folder))
    with pytest.raises(ConfigError, match="reads GGUF files"):
        open_chat_model(teacher(folder, launch="llama-server"))
    with pytest.raises(ConfigError, match="leave launch out"):
        open_chat_model(teacher("http://127.0.0.1:1/v1"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"launch": "vllm"}, "needs model"),
        ({"launch": "vllm", "model": "m", "source": "s"}, "give one"),
        ({"launch": "vllm", "model": "m", "url": "http://x/v1"}, "elsewhere"),
        ({"launch": "vllm", "model": "m", "key": "env:KEY"}, "key is for endpoints"),
        ({"launch": "vllm", "model": "m", "launch_arguments": ["--api-key=x"]}, "list of process"),
        ({"launch": "vllm", "model": "m", "launch_arguments": ["--port", "1"]}, "itself"),
        ({"source": "s", "launch_arguments": ["--mlock"]}, "set launch"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TeacherConfig.model_validate(settings)


def test_the_pages_example_is_valid_and_survives_being_written():
    tree = yaml.safe_load(blocks(PAGES / "concepts.md")["yaml launch"])
    config = TeacherConfig.model_validate(tree["teacher"])
    assert (config.place, config.launch) == ("models/qwen3-8b", "vllm")
    assert TeacherConfig.model_validate(config.model_dump()) == config


@pytest.mark.slow
def test_the_wheels_server_is_launched_for_real_weights(smollm2):
    pytest.importorskip("xllamacpp")
    config = TeacherConfig(launch="llama-server", model=smollm2.name)

    async def main():
        model = open_chat_model(config)
        try:
            await model.dry_call()
            return await model.respond(ASK, Sampling(max_new_tokens=8))
        finally:
            await model.close()

    answer = asyncio.run(main())
    assert answer.num_new_tokens == 8 and answer.model == "smollm2-135m"
