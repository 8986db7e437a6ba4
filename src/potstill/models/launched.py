"""An engine that is started for weights on this machine, asked, and ended with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from potstill.errors import TeacherError, TeacherRefused
from potstill.models.chat_format import NotAnAnswer, read_json
from potstill.models.endpoint import EndpointModel
from potstill.models.keeper import GRACE_SECONDS
from potstill.models.transport import Transport
from potstill.types import Record, Response, Sampling

_MOST_PORTS = 5
_LOOK_SECONDS = 0.2
_LONGEST_SAYING = 4096
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PORT_IS_TAKEN = ("address already in use", "couldn't bind", "errno 98")


class LaunchedModel:
    """Weights behind an engine that is started for them and ends with them: a `ChatModel`.

    The engine listens on loopback alone, without a key, under a name that no other server has;
    so it is told from a stranger who took its port. It starts with `prepare` and ends with
    `close`, or with this process, however that one ends.

    Args:
        engine: What messages call it.
        command: Starts it, but for where it listens and what it calls the model.
        named_by: The option with which it is told what to call the model.
        identity: What answers can be re-used for.
        start_seconds: How long it may take until it answers.
    """

    price = None

    def __init__(
        self,
        engine: str,
        command: tuple[str, ...],
        named_by: str,
        *,
        name: str,
        identity: str,
        max_in_flight: int,
        start_seconds: float,
    ):
        self.engine, self.name, self.identity = engine, name, identity
        self.max_in_flight = max_in_flight
        self._command, self._named_by = command, named_by
        self._start_seconds = start_seconds
        self._model = f"potstill-{secrets.token_hex(4)}"
        self._starting = asyncio.Lock()
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: EndpointModel | None = None
        self._log = tempfile.TemporaryFile()

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {"engine": self.engine, "command": " ".join(self._command[1:])}

    @property
    def is_alive(self) -> bool:
        """Whether the engine's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def state(self) -> str:
        """What the engine says while it starts; afterwards `running`, or why it is paused."""
        if self._endpoint is not None:
            return self._endpoint.state
        said = self._last_words(1)
        return f"{self.engine} starts: {said[:80]}" if said else f"{self.engine} starts"

    @property
    def num_retries(self) -> int:
        """Requests that were sent again."""
        return self._endpoint.num_retries if self._endpoint else 0

    @property
    def num_in_flight(self) -> int:
        """Requests that are open now."""
        return self._endpoint.num_in_flight if self._endpoint else 0

    async def prepare(self) -> None:
        """Starts the engine and waits until it answers.

        Raises:
            TeacherRefused: If it ends first, or does not answer within `start_seconds`. It is
                not started again.
        """
        async with self._starting:
            if self._failure:
                raise TeacherRefused(self._failure)
            if self._endpoint is None:
                try:
                    self._endpoint = await self._launch()
                except TeacherRefused as error:
                    self._failure = str(error)
                    raise

    async def dry_call(
        self, sampling: Sampling | None = None, *, top_logprobs: int = 0
    ) -> Response:
        """As `EndpointModel.dry_call`, once the engine answers."""
        await self.prepare()
        assert self._endpoint is not None
        return await self._endpoint.dry_call(sampling, top_logprobs=top_logprobs)

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`.

        Raises:
            TeacherRefused: If the engine did not start, or has ended.
            TeacherError: If it gave up on this prompt.
        """
        await self.prepare()
        assert self._endpoint is not None and self._process is not None
        asking = asyncio.ensure_future(
            self._endpoint.respond(record, sampling, turn=turn, sample=sample)
        )
        try:
            # An engine that has ended is not waited for as an endpoint in trouble is.
            while not (await asyncio.wait({asking}, timeout=_LOOK_SECONDS))[0]:
                self._refuse_if_ended()
            response = asking.result()
        except TeacherError:
            self._refuse_if_ended()
            raise
        finally:
            asking.cancel()
        return response.model_copy(update={"model": self.name})

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `EndpointModel.stream`, once the engine answers."""
        await self.prepare()
        assert self._endpoint is not None
        response = await self._endpoint.stream(record, sampling, on_token, on_text=on_text)
        return response.model_copy(update={"model": self.name})

    async def complete(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `EndpointModel.complete`, once the engine answers."""
        await self.prepare()
        assert self._endpoint is not None
        response = await self._endpoint.complete(record, sampling, on_token, on_text=on_text)
        return response.model_copy(update={"model": self.name})

    def memory_bytes(self) -> int | None:
        """Most resident memory of the engine's processes so far; None where nobody tells it.

        Memory of a GPU is not in it.
        """
        found = 0
        for pid in _members(self._process.pid) if self._process else ():
            with contextlib.suppress(OSError, ValueError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                for line in status.splitlines():
                    if line.startswith("VmHWM:"):
                        found += int(line.split()[1]) * 1024
        return found or None

    async def close(self) -> None:
        """Ends the engine and all that it started; its memory is free afterwards."""
        if self._endpoint is not None:
            await self._endpoint.close()
        await asyncio.to_thread(self._end)
        self._log.close()

    async def _launch(self) -> EndpointModel:
        until = time.monotonic() + self._start_seconds
        for _ in range(_MOST_PORTS):
            base = self._start()
            if await self._answers(base, until):
                return EndpointModel(
                    base,
                    self._model,
                    name=self.name,
                    timeout_seconds=3600,
                    max_in_flight=self.max_in_flight,
                    start_in_flight=self.max_in_flight,
                    logprobs_mode="raw",
                )
            await asyncio.to_thread(self._end)
        raise TeacherRefused(f"{self.engine} found each of {_MOST_PORTS} free ports taken")

    def _start(self) -> str:
        """Starts the engine; returns the address that it will have."""
        port = _free_port()
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", str(Path(__file__).with_name("keeper.py"))),
                *self._command,
                *("--host", "127.0.0.1", "--port", str(port), self._named_by, self._model),
            ],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is ours, and all of it can be killed at once
            env=_environment(),
        )
        return f"http://127.0.0.1:{port}"

    async def _answers(self, base: str, until: float) -> bool:
        """Waits until the engine is up; False where its port turned out to be somebody else's."""
        assert self._process is not None
        transport = Transport(timeout_seconds=5.0)
        try:
            while True:
                if self._process.poll() is not None:
                    said = self._last_words(20).lower()
                    if any(words in said for words in _PORT_IS_TAKEN):
                        return False
                    raise TeacherRefused(self._why_it_ended())
                names = await self._names(transport, base)
                if names is not None:
                    return self._model in names
                if time.monotonic() > until:
                    raise TeacherRefused(
                        f"{self.engine} did not answer within {self._start_seconds:g} s; its last "
                        f"words: {self._last_words(5) or 'nothing'}. If it only needs longer, "
                        f"raise teacher.launch_seconds"
                    )
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await transport.close()

    async def _names(self, transport: Transport, base: str) -> list[str] | None:
        """What the server at an address calls its models; None while none is up."""
        try:
            reply = await transport.send("GET", f"{base}/health", {}, None)
            if reply.status == 503:
                return None  # llama-server listens before it has read the weights
            reply = await transport.send("GET", f"{base}/v1/models", {}, None)
            names = [str(entry["id"]) for entry in read_json(reply.body)["data"]]
            return [name.removesuffix(":latest") for name in names]  # Ollama's
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        except (NotAnAnswer, KeyError, TypeError):
            return []

    def _refuse_if_ended(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise TeacherRefused(
                f"{self._why_it_ended()} All answers so far are kept: the same command continues"
            )

    def _why_it_ended(self) -> str:
        assert self._process is not None
        return (
            f"{self.engine} for {self.name} ended with code {self._process.returncode}; its last "
            f"words: {self._last_words(5) or 'nothing'}. Does it take this model, and is there "
            f"memory for it?"
        )

    def _last_words(self, num_lines: int) -> str:
        """The last lines that the engine wrote, as one."""
        with contextlib.suppress(ValueError, OSError):
            # Read at a place: the file's own position is where the engine writes.
            size = os.fstat(self._log.fileno()).st_size
            start = max(0, size - _LONGEST_SAYING)
            text = os.pread(self._log.fileno(), _LONGEST_SAYING, start).decode("utf-8", "replace")
            lines = [line.strip() for line in _ESCAPES.sub("", text).splitlines()]
            lines = [line for line in lines if line]
            return " / ".join(lines[-num_lines:])
        return ""

    def _end(self) -> None:
        """Asks the engine to end, kills what does not, and waits until nothing of it is left."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            _signal_group(process.pid, signal.SIGTERM)
            process.wait(GRACE_SECONDS)
        until = time.monotonic() + GRACE_SECONDS
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        while _members(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        if process.stdin is not None:
            process.stdin.close()
        self._process = None


def _environment() -> dict[str, str]:
    """This process's variables without keys, which the engine needs none of and might demand."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return {**kept, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _members(group: int) -> list[int]:
    """Processes of a group that have not ended; none where the system has no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found
