"""Ollama is started with one model in a store of its own, and nothing of it is left."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from fake_engine import is_running

from potstill.config import TeacherConfig
from potstill.errors import ConfigError, MissingExtra, TeacherRefused
from potstill.models.chat import open_chat_model
from potstill.models.ollama import modelfile
from potstill.types import Message, Record, Sampling

ASK = Record(id="a", messages=(Message(role="user", content="How long does it take?"),))
FAKE = """#!{python} -I
import json, os, sys, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

store, host = os.environ["OLLAMA_MODELS"], os.environ["OLLAMA_HOST"]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "starts.jsonl"), "a") as file:
    told = {{"argv": sys.argv[1:], "host": host, "store": store, "pid": os.getpid()}}
    file.write(json.dumps(told) + "\\n")
if sys.argv[1] == "create":
    urllib.request.urlopen(f"http://{{host}}/api/version")
    recipe = open(sys.argv[4]).read()
    if "broken" in recipe:
        sys.exit("Error: unsupported architecture")
    os.makedirs(store, exist_ok=True)
    open(os.path.join(store, sys.argv[2]), "w").write(recipe)
    sys.exit(0)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send(self, status, tree):
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/api/version":
            return self.send(200, {{"version": "0.12"}})
        if self.path == "/v1/models":
            names = os.listdir(store) if os.path.isdir(store) else []
            return self.send(200, {{"data": [{{"id": name + ":latest"}} for name in names]}})
        self.send(404, {{}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(os.path.join(store, asked["model"])) as file:
            text = file.read().splitlines()[0]
        message = {{"role": "assistant", "content": text}}
        choice = {{"index": 0, "message": message, "finish_reason": "stop"}}
        usage = {{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        self.send(200, {{"model": asked["model"], "choices": [choice], "usage": usage}})


address, port = host.split(":")
ThreadingHTTPServer((address, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """A fake `ollama` on PATH; calling it tells what each of its starts was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ollama").write_text(FAKE.format(python=sys.executable))
    (folder / "ollama").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    log = folder / "starts.jsonl"
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def answer(file: Path, **settings):
    async def main():
        model = open_chat_model(TeacherConfig(launch="ollama", model=str(file), **settings))
        try:
            return await model.respond(ASK, Sampling())
        finally:
            await model.close()

    return asyncio.run(main())


def weights(tmp_path, name="small"):
    file = tmp_path / f"{name}.gguf"
    file.write_bytes(b"GGUF")
    return file


def test_ollama_answers_with_the_file_and_leaves_nothing_behind(starts, tmp_path):
    file = weights(tmp_path)
    response = answer(file)
    assert (response.text, response.model) == (f"FROM {file}", "small")
    first, create, second = starts()
    assert [first["argv"], create["argv"][0], second["argv"]] == [["serve"], "create", ["serve"]]
    assert first["host"] == create["host"] != second["host"]
    assert not Path(second["store"]).exists() and not any((tmp_path / "temporary").iterdir())
    assert not any(is_running(start["pid"]) for start in starts())


def test_a_file_that_ollama_does_not_take_is_refused_with_its_words(starts, tmp_path):
    with pytest.raises(TeacherRefused, match=r"ended with code 1.*unsupported architecture"):
        answer(weights(tmp_path, "broken"))
    assert not any((tmp_path / "temporary").iterdir())


def test_the_exported_modelfile_is_taken_and_its_samplers_are_replaced(tmp_path):
    file = weights(tmp_path)
    (tmp_path / "Modelfile").write_text(
        'FROM ./small.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER stop "<|im_end|>"\n'
        "PARAMETER repeat_penalty 1.3\n"
    )
    lines = modelfile(file).splitlines()
    assert lines[:3] == [
        f"FROM {file}",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "<|im_end|>"',
    ]
    assert [line for line in lines if "repeat_penalty" in line] == ["PARAMETER repeat_penalty 1"]


def test_ollama_is_refused_where_it_is_not_installed_or_takes_no_arguments(
    starts, tmp_path, monkeypatch
):
    file = weights(tmp_path)
    with pytest.raises(ConfigError, match="ollama serve takes none"):
        answer(file, launch_arguments=["--verbose"])
    with pytest.raises(ConfigError, match="ollama reads GGUF files"):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "config.json").write_text("{}")
        answer(tmp_path / "folder")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="ollama on PATH"):
        answer(file)
