"""Serves one GGUF file with Ollama, from a store of its own that ends with it.

ollama.py PROGRAM FILE --host HOST --port PORT --name NAME: as other engines are started. Ollama
serves what is in its store, so the file is put there first, by a server that nobody else knows.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SLOTS, CONTEXT = 4, 4096
"""Answers at once, and tokens of each: as of llama.cpp's server."""

_START_SECONDS = 60.0
# Ollama's own defaults cut the distribution and punish words that come again.
_SAMPLERS = {"repeat_penalty": "1", "top_k": "0", "top_p": "1", "min_p": "0"}


def main(arguments: list[str]) -> int:
    """Runs Ollama to its end; returns its exit code."""
    program, file, *options = arguments
    given = dict(zip(options[::2], options[1::2], strict=True))
    store = Path(tempfile.mkdtemp(prefix="potstill-ollama-"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        code = _put_into(store, program, Path(file), given["--name"])
        if code != 0:
            return code
        server = _serve(store, program, f"{given['--host']}:{given['--port']}")
        try:
            return server.wait()
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _put_into(store: Path, program: str, file: Path, name: str) -> int:
    """Makes the model in the store; returns the exit code of `ollama create`."""
    recipe = store / "Modelfile"
    recipe.write_text(modelfile(file), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    server = _serve(store, program, host)
    try:
        until = time.monotonic() + _START_SECONDS
        while not _is_up(host):
            if server.poll() is not None:
                return server.returncode or 1
            if time.monotonic() > until:
                sys.stderr.write(f"ollama serve did not answer within {_START_SECONDS:g} s\n")
                return 1
            time.sleep(0.1)
        command = [program, "create", name, "-f", str(recipe)]
        return subprocess.run(command, env=_environment(store, host), check=False).returncode
    finally:
        server.terminate()
        server.wait()


def modelfile(file: Path) -> str:
    """What Ollama is told: the Modelfile beside the weights, with samplers that cut nothing.

    Where there is none, Ollama reads the chat template inside the GGUF file.
    """
    beside = file.with_name("Modelfile")
    told = beside.read_text(encoding="utf-8").splitlines() if beside.exists() else []
    kept = [line for line in told if not line.startswith(("FROM ", "PARAMETER repeat_penalty"))]
    samplers = [f"PARAMETER {name} {value}" for name, value in _SAMPLERS.items()]
    return "\n".join([f"FROM {file.absolute()}", *kept, *samplers]) + "\n"


def _serve(store: Path, program: str, host: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([program, "serve"], env=_environment(store, host))


def _environment(store: Path, host: str) -> dict[str, str]:
    return {
        **os.environ,
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": str(store / "models"),
        "OLLAMA_CONTEXT_LENGTH": str(CONTEXT),
        "OLLAMA_NUM_PARALLEL": str(SLOTS),
        "OLLAMA_KEEP_ALIVE": "-1",
    }


def _is_up(host: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}/api/version", timeout=2):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
