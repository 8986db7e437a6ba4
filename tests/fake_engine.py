"""Commands that behave like `vllm serve` and `llama-server`, or fail as a plan says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SCRIPT = """#!{python} -I
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

folder = os.path.dirname(os.path.abspath(__file__))
given = sys.argv[1:]


def after(*names):
    return next(given[given.index(name) + 1] for name in names if name in given)


with open(os.path.join(folder, "starts.jsonl"), "a+") as file:
    file.seek(0)
    plan = json.load(open(os.path.join(folder, "plan.json")))[len(file.readlines()):] or [{{}}]
    plan = plan[0]
    if plan.get("is_stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    start = {{"argv": given, "env": dict(os.environ), "pids": [os.getpid(), worker.pid]}}
    file.write(json.dumps(start) + "\\n")
print("reading the weights", file=sys.stderr, flush=True)
if "dies_with" in plan:
    worker.kill()
    sys.exit(plan["dies_with"])
time.sleep(plan.get("seconds", 0))
name = plan.get("serves_as", after("--served-model-name", "--alias"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

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
        if plan.get("num_loading", 0) > 0:
            plan["num_loading"] -= 1
            self.send(503, {{"error": {{"code": 503, "message": "Loading model"}}}})
        elif self.path == "/health":
            self.send(200, {{"status": "ok"}})
        else:
            self.send(200, {{"object": "list", "data": [{{"id": name}}]}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if plan.get("num_answers", 1) < 1:
            print("CUDA error: an illegal memory access", file=sys.stderr, flush=True)
            os._exit(3)
        if "num_answers" in plan:
            plan["num_answers"] -= 1
        if asked["model"] != name or self.headers["Authorization"]:
            self.send(404, {{"error": {{"message": "no such model, or a key"}}}})
            return
        message = {{"role": "assistant", "content": "It takes 3 days."}}
        choice = {{"index": 0, "message": message, "finish_reason": "stop"}}
        usage = {{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        self.send(200, {{"model": name, "choices": [choice], "usage": usage}})


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server((after("--host"), int(after("--port"))), Handler).serve_forever()
"""


class FakeEngine:
    """A command in a folder of its own; each start does what the next part of the plan says.

    A part may have `seconds` until it listens, `dies_with` (its last words), `serves_as` (a
    stranger's name), `num_loading` (times that it says it is not ready), `num_answers` (before it
    crashes) and `is_stubborn` (deaf to SIGTERM). Each start begins a worker process too.
    """

    def __init__(self, folder: Path, name: str = "vllm", *plan: dict):
        folder.mkdir()
        self.folder = folder
        (folder / "plan.json").write_text(json.dumps(plan))
        command = folder / name
        command.write_text(SCRIPT.format(python=sys.executable))
        command.chmod(0o755)

    @property
    def starts(self) -> list[dict]:
        """What each start was given, and its processes."""
        file = self.folder / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def running(self) -> list[int]:
        """Processes of all starts that have not ended."""
        return [pid for start in self.starts for pid in start["pids"] if is_running(pid)]

    def ends(self, seconds: float = 10.0) -> bool:
        """Whether all of it is gone within a time."""
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:
            time.sleep(0.02)
        return not self.running


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def on_path(engine: FakeEngine, before: str | None = None) -> str:
    """A PATH on which the engine comes first."""
    return f"{engine.folder}{os.pathsep}{before or os.environ['PATH']}"
