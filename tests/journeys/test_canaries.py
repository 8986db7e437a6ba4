"""A key and a customer's name are in no file, message, traceback or process list of a whole run.

The run is one of a user's: the command line in a process of its own, over an endpoint that repeats
the key in everything it says, with a crash in the middle.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from fake_endpoint import FakeEndpoint, completion, served
from tiny import tiny_llama

from potstill.rundir import RunDir, read_jsonl
from potstill.types import Record

pytestmark = pytest.mark.journey

KEY = f"sk-canary-{uuid.uuid4().hex}"
NAME = f"Canary{uuid.uuid4().hex}"
NUM_ROWS, NUM_BEFORE_THE_CRASH = 16, 9


class Parrot(FakeEndpoint):
    """Repeats the key and the prompt, in answers and in errors; hangs after some requests."""

    hangs = True

    async def handle(self, request):
        if self.hangs and len(self.bodies) >= NUM_BEFORE_THE_CRASH:
            while self.hangs:
                await asyncio.sleep(0.05)
            return web.Response(status=503)  # to nobody: who asked has crashed
        return await super().handle(request)

    def refuses(self, request, body):
        said = f"{request.headers['Authorization']} asked {json.dumps(body['messages'])}"
        number = len(self.bodies)
        if number in (3, 12):
            return 500, {"error": {"message": said}}
        if any(f"order {n} " in said for n in (2, 5, 7)):
            return 400, {"error": {"message": said}}
        if number in (5, 14):
            return 200, f"<html>{said}</html>"
        return 200, completion(f"Noted by {request.headers['Authorization']}: {said[-90:]}")


def prepare(folder, url):
    """The files of a user: a log with a customer's name, the list of names, the config."""
    rows = []
    for n in range(NUM_ROWS):
        question = f"I am {NAME}, and where is order {n} with {'abcdefghijklmnop'[n]} in it?"
        choice = {"message": {"role": "assistant", "content": "Soon."}, "finish_reason": "stop"}
        asked = [{"role": "user", "content": question}]
        rows.append({"id": f"c{n}", "model": "gpt-4o", "messages": asked, "choices": [choice]})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "names.txt").write_text(f"{NAME}\n")
    tree = {
        "name": "canary", "task": "conversation", "train_data": "log.jsonl",
        "student": str(tiny_llama(folder / "student")),
        "teacher": {"url": url, "model": "fake", "key": "env:CANARY_KEY"},
        "generation": {"pilot": 0, "max_in_flight": 2, "min_success_ratio": 0.3},
        "data": {"privacy": {"names": "names.txt"}, "test": 0.2},
        "checks": ["finished"], "loss": {"kind": "sft"},
        "train": {"max_steps": 2, "precision": "fp32"},
        "evaluate": {"baselines": ["untouched"], "num_latency_calls": 0, "max_new_tokens": 8},
    }  # fmt: skip
    (folder / "distill.yaml").write_text(yaml.safe_dump(tree))


def start(folder):
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    places = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "potstill.cli", "run", "distill.yaml"],
        cwd=folder,
        env={**os.environ, **places, "POTSTILL_HOME": str(folder / "home"), "CANARY_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def told_by_processes():
    """The command lines of all processes of the machine."""
    told = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            told += path.read_bytes() + b"\n"
    return told


def holding(folder, word):
    """The files that hold a word, in their names or in what is in them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder)
        for path in files
        if word.encode() in path.read_bytes() or word in str(path)
    }


def allowed(path):
    """Where a customer's words belong: the user's own files, the run's data and its reports."""
    if path.parts[0] in ("log.jsonl", "names.txt"):
        return True
    if path.parts[:2] != ("runs", "canary"):
        return False
    folders = [part for part in path.parts[2:] if part != "audition"]  # a run inside the run
    is_index = path.suffix not in (".jsonl", ".json", ".md", ".html")
    return folders[0] in ("data", "reports") and not is_index


def test_key_and_customer_are_nowhere_they_must_not_be_even_when_it_crashes(tmp_path):
    fake = Parrot()
    with served(fake):
        prepare(tmp_path, fake.url)
        process = start(tmp_path)
        deadline = time.monotonic() + 120
        while len(fake.bodies) < NUM_BEFORE_THE_CRASH and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes = told_by_processes()
        process.send_signal(signal.SIGABRT)
        crashed = b"".join(process.communicate(timeout=60))
        assert process.returncode == -signal.SIGABRT, crashed.decode()
        assert b"Fatal Python error: Aborted" in crashed
        after_the_crash = holding(tmp_path, KEY)
        fake.hangs = False
        process = start(tmp_path)
        processes += told_by_processes()
        said = b"".join(process.communicate(timeout=240))
        assert process.returncode == 0, said.decode()
        sent = json.dumps([fake.bodies, [{**h, "Authorization": ""} for h in fake.headers]])
    run = RunDir(tmp_path / "runs" / "canary")
    assert run.report_html.exists()
    assert b"distill.yaml" in processes, "the run was in the list"
    assert any(NAME in record.messages[0].content for record in read_jsonl(run.accepted, Record))
    rejected = run.rejected.read_text()
    assert "[key] asked" in rejected, "the endpoint repeated the key, and it was blotted out"

    for output in (crashed, said, processes):
        assert KEY.encode() not in output
        assert NAME.encode() not in output
    assert holding(tmp_path, KEY) | after_the_crash == set()
    assert NAME.casefold() not in sent.casefold()
    assert KEY not in sent
    assert {path for path in holding(tmp_path, NAME) if not allowed(path)} == set()
