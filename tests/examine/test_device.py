"""A model is run under a device's limits, and one that does not fit is ended."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installed import needs_engine
from tiny import tiny_llama

from potstill.errors import ConfigError, DataError
from potstill.examine.device import notes_of, try_on_device
from potstill.examine.limited import MemoryLimit, taken_bytes
from potstill.models.apart import open_apart
from potstill.models.catalog import find_model
from potstill.models.devices import Device
from potstill.models.machine import work_seconds
from potstill.types import Message, Record, Sampling

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="Linux tells what a process takes"
)
PROMPTS = [(Message(role="user", content="Where is my order?"),)]
ASKED = Record(id="1", messages=PROMPTS[0])
SMALL = Device(name="small", memory_bytes=2_000_000_000, threads=1, context=256)
_TAKES = (
    "import sys, time; held = bytearray(int(sys.argv[1])); print('up', flush=True); time.sleep(60)"
)


def taking(num_bytes):
    """A process that holds so many bytes."""
    command = [sys.executable, "-c", _TAKES, str(num_bytes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def engines_of(folder):
    """Commands of processes that run for a folder now."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(place.read_bytes())
    return [words for words in found if str(folder).encode() in words and b"_server" in words]


def made(kind, folder):
    """A tiny model as an artefact of one engine; skips where the engine is not installed."""
    source = tiny_llama(folder / "source", hidden=64)
    if kind == "huggingface":
        return source
    if kind == "gguf":
        pytest.importorskip("xllamacpp")
        from potstill.export.gguf import export_gguf

        return export_gguf(source, folder / "gguf", quant="f16")
    needs_engine(kind)
    if kind == "ctranslate2":
        from potstill.export.ctranslate import export_ctranslate2

        export_ctranslate2(source, folder / kind, quant="int8")
    else:
        from potstill.export.onnx_genai import export_onnx

        export_onnx(source, folder / kind, quant="fp32")
    return folder / kind


def test_a_process_that_takes_too_much_is_ended_and_another_is_left():
    much, little = taking(80_000_000), taking(1)
    try:
        little.stdout.readline()
        with MemoryLimit(much, 50_000_000) as limit, MemoryLimit(little, 50_000_000) as other:
            assert much.wait(timeout=20) == -9
            other.look()
            assert little.poll() is None
        assert limit.is_exceeded and not other.is_exceeded
        assert 0 < other.peak_bytes < 50_000_000
    finally:
        for process in (much, little):
            process.kill()
            process.communicate()


def test_memory_that_was_given_back_before_anybody_looked_counts():
    program = "held = bytearray(90_000_000); del held; print('up', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()
        limit = MemoryLimit(process, 60_000_000)
        limit.look()
        assert limit.is_exceeded and process.wait(timeout=20) == -9
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_has_ended_takes_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert taken_bytes(process.pid) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "ctranslate2", "onnx", "huggingface"])
def test_an_artefact_fits_under_a_wide_limit_and_is_ended_under_a_narrow_one(kind, tmp_path):
    ref = find_model(str(made(kind, tmp_path)))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    wide = asyncio.run(try_on_device(ref, SMALL, PROMPTS))
    assert wide.fits and not wide.why
    memory = wide.metrics["memory"].value
    assert 10e6 < memory < SMALL.memory_bytes
    assert wide.metrics["load"].n in (1, 3), "a slow one is loaded once"
    assert wide.metrics["ttft"].n == wide.metrics["tokens_per_second"].n >= 5
    assert wide.metrics["tokens_per_second"].low < wide.metrics["tokens_per_second"].high
    filled = wide.metrics["ttft.full"]
    assert filled.n == 1 and 220 < int(filled.signature.split()[6]) <= 240, filled.signature
    assert wide.setting["threads"] == 1 and wide.setting["processor"]["cores"] >= 1
    narrow = SMALL.model_copy(update={"memory_bytes": int(0.6 * memory)})
    found = asyncio.run(try_on_device(ref, narrow, PROMPTS))
    assert not found.fits and "it took more than" in found.why
    assert "ttft" not in found.metrics and found.metrics["memory"].value > narrow.memory_bytes
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not engines_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "ctranslate2", "onnx", "huggingface"])
def test_an_engine_gets_the_devices_number_of_threads(kind, tmp_path):
    ref = find_model(str(made(kind, tmp_path)))

    async def threads_of(number):
        model = open_apart(ref, threads=number, context=256)
        try:
            await model.respond(ASKED, Sampling(max_new_tokens=8))
            assert model.setting["threads"] == number
            lines = Path(f"/proc/{model.process.pid}/status").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("Threads:")))
        finally:
            await model.close()

    one, three = (asyncio.run(threads_of(number)) for number in (1, 3))
    assert three - one >= 2


@pytest.mark.slow
def test_a_model_that_cannot_be_read_is_no_model_that_does_not_fit(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be read"):
        asyncio.run(try_on_device(find_model(str(folder)), SMALL, PROMPTS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "ctranslate2"])
@pytest.mark.parametrize("num_words", [90, 300])
def test_a_prompt_longer_than_the_devices_context_is_told_with_the_way_out(
    kind, num_words, tmp_path
):
    """Both engines would read the first, and leave too little room for the answer."""
    ref = find_model(str(made(kind, tmp_path)))
    long = [(Message(role="user", content="order " * num_words),)]
    with pytest.raises(ConfigError, match=r"more than the 256 tokens.*--device small:1:1024"):
        asyncio.run(try_on_device(ref, SMALL, long))


@pytest.mark.slow
def test_the_process_of_a_folder_ends_with_whoever_started_it(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    program = (
        "import os, sys; from pathlib import Path; from potstill.models.apart import ApartModel\n"
        "model = ApartModel('m', Path(sys.argv[1]), threads=1)\n"
        "print(model.process.pid, flush=True); model._read(); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    pid, ends = int(done.stdout), time.monotonic() + 20
    while taken_bytes(pid) and time.monotonic() < ends:
        time.sleep(0.05)
    assert taken_bytes(pid) == 0


def test_more_threads_than_cores_and_other_work_are_told():
    many = SMALL.model_copy(update={"threads": 63})
    told, cores, busy = notes_of(many, other_cores=1.25)
    assert "not the device's" in told and "63 threads on" in cores and "slower here" in cores
    assert "other processes took 1.2 of" in busy
    assert notes_of(SMALL, other_cores=0.1) == (told,)


def test_the_work_of_a_process_is_part_of_the_machines():
    before, own = work_seconds(), work_seconds(os.getpid())
    began = time.process_time()
    while time.process_time() - began < 0.3:
        sum(range(50_000))
    assert 0.2 < work_seconds(os.getpid()) - own < 0.5
    assert work_seconds() - before > 0.2


@pytest.mark.slow
def test_llama_cpp_keeps_nothing_of_earlier_prompts_as_on_a_device(smollm2):
    """Its server would keep 7 MB of each of these prompts, and the peak would grow with them."""
    pytest.importorskip("xllamacpp")

    async def peaks():
        model = open_apart(find_model(smollm2.source), threads=1, context=512)
        try:
            for i in range(4):
                message = Message(role="user", content=f"{i} " + "one two three " * 80)
                record = Record(id=str(i), messages=(message,))
                await model.respond(record, Sampling(max_new_tokens=4))
                yield taken_bytes(model.process.pid)
        finally:
            await model.close()

    async def all_of_them():
        return [peak async for peak in peaks()]

    first, *_, last = asyncio.run(all_of_them())
    assert last - first < 5_000_000
