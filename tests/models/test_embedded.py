"""Folders of other engines answer like any model."""

import asyncio
import os
import subprocess
import sys
import time

import pytest
from installed import needs_engine
from tiny import tiny_llama

from potstill.errors import ConfigError, DataError, TeacherError
from potstill.export.ctranslate import export_ctranslate2
from potstill.export.onnx_genai import export_onnx
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.embedded import is_installed
from potstill.models.embedded_model import EmbeddedModel
from potstill.models.weights import cached_folder
from potstill.types import Message, Record, Sampling

ASKED = Record(id="1", messages=(Message(role="user", content="Where is my order?"),))


@pytest.fixture(params=["ctranslate2", pytest.param("onnx", marks=pytest.mark.slow)])
def model(tmp_path, request):
    """A tiny Llama in each engine."""
    needs_engine(request.param)
    if request.param == "ctranslate2":
        export_ctranslate2(tiny_llama(tmp_path / "m"), tmp_path / "out", quant="float32")
    else:
        export_onnx(tiny_llama(tmp_path / "m", hidden=64), tmp_path / "out", quant="fp32")
    opened = open_chat_model(tmp_path / "out")
    yield opened
    # One that is left to the garbage collector may be freed by a thread of another's, and abort.
    asyncio.run(opened.close())


def respond(model, sampling, record=ASKED):
    return asyncio.run(model.respond(record, sampling))


def test_greedy_answers_repeat_and_drawn_ones_differ(model):
    texts = [
        respond(model, Sampling(temperature=temperature, max_new_tokens=12)).text
        for temperature in (0.0, 0.0, 1.5)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_ends_at_its_length_and_at_a_stop_text(model):
    whole = respond(model, Sampling(max_new_tokens=6))
    assert (whole.finish_reason, whole.num_new_tokens) == ("length", 6)
    word = whole.text[2:4]
    cut = respond(model, Sampling(max_new_tokens=6, stop=(word,)))
    assert cut.finish_reason == "stop" and cut.text == whole.text.partition(word)[0]
    assert cut.num_new_tokens < 6  # none are computed after it


def test_tokens_and_text_are_told_as_they_come(model):
    tokens, pieces = [], []
    sampling = Sampling(max_new_tokens=5)
    response = asyncio.run(
        model.stream(ASKED, sampling, lambda: tokens.append(1), on_text=pieces.append)
    )
    assert len(tokens) == response.num_new_tokens == 5
    assert len(pieces) > 1 and "".join(pieces) == response.text
    assert response == respond(model, sampling).model_copy(update={"seconds": response.seconds})


def test_no_part_of_a_stop_text_is_told(model):
    word = respond(model, Sampling(max_new_tokens=6)).text[2:4]
    pieces = []
    sampling = Sampling(max_new_tokens=6, stop=(word,))
    response = asyncio.run(model.stream(ASKED, sampling, lambda: None, on_text=pieces.append))
    assert "".join(pieces) == response.text and word not in response.text


def test_plain_text_goes_on_without_a_template(model):
    plain = Record(id="3", messages=(Message(role="user", content="order"),))
    response = asyncio.run(model.complete(plain, Sampling(max_new_tokens=4), lambda: None))
    assert response.num_prompt_tokens < respond(model, Sampling(), plain).num_prompt_tokens
    assert response.num_new_tokens == 4


def test_an_answer_that_nobody_waits_for_stops(model):
    async def give_up():
        begun, tokens = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def on_token():
            tokens.append(1)
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.001)

        long = Sampling(max_new_tokens=400)
        task = asyncio.create_task(model.stream(ASKED, long, on_token))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        short = await model.respond(ASKED, Sampling(max_new_tokens=1))  # once the engine is free
        return len(tokens), short

    told, short = asyncio.run(give_up())
    assert told < 200 and short.num_new_tokens == 1


def test_a_prompt_that_is_too_long_is_an_error_row(model):
    long = Record(id="2", messages=(Message(role="user", content="order " * 600),))
    response = respond(model, Sampling(), long)
    assert response.finish_reason == "error" and response.error.startswith("too_long")
    assert "reads 512" in response.error


def test_a_closed_model_says_so(model):
    asyncio.run(model.close())
    with pytest.raises(TeacherError, match="was closed"):
        respond(model, Sampling())


_LEFT_OPEN = """
import os, sys
from pathlib import Path
from potstill.models.embedded import open_embedded
from potstill.types import Sampling
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
engine = open_embedded(Path(sys.argv[1]), threads=1)
engine.generate(engine.encode("order"), Sampling(max_new_tokens=4))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="one core is Linux's to give")
def test_a_program_that_leaves_a_model_open_ends_well(model, tmp_path):
    command = [sys.executable, "-c", _LEFT_OPEN, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_weights_are_another_identity(tmp_path):
    needs_engine("ctranslate2")
    export_ctranslate2(tiny_llama(tmp_path / "m"), tmp_path / "out", quant="float32")
    export_ctranslate2(tiny_llama(tmp_path / "n", seed=1), tmp_path / "other", quant="float32")
    (tmp_path / "other" / "manifest.json").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    found = [EmbeddedModel(find_model(str(tmp_path / name))) for name in ("out", "other")]
    assert found[0].identity != found[1].identity
    assert "ctranslate2" in found[0].known_as and found[0].setting["engine"] == "ctranslate2"
    for one in found:
        asyncio.run(one.close())


@pytest.mark.parametrize(
    ("file", "kind"), [("genai_config.json", "onnx"), ("model.bin", "ctranslate2")]
)
def test_a_folder_is_known_by_its_engines_file(tmp_path, file, kind):
    (tmp_path / file).write_text("{}")
    ref = find_model(str(tmp_path))
    assert ref.kind == kind
    with pytest.raises(ConfigError, match=f"made for {kind}.*has no weights here"):
        cached_folder(ref)
    if is_installed(kind):
        with pytest.raises((DataError, OSError), match="cannot load"):
            open_chat_model(ref)
