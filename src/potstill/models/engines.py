"""Starts and stops llama.cpp's server for a GGUF teacher or student, and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill.errors import MissingExtra, TeacherError
from potstill.models.endpoint import EndpointModel
from potstill.models.fingerprint import weights_identity
from potstill.models.llama_server import AS_ON_DEVICE
from potstill.models.machine import num_cores
from potstill.types import Record, Response, Sampling


class GgufModel:
    """A GGUF file behind llama.cpp's server on a loopback port: a `ChatModel`.

    The chat template is the file's own. The server starts here and reads the weights while
    the caller goes on; it ends with `close`, or with this process.

    Args:
        context: Longest prompt and answer together, in tokens, of each slot.
        slots: Answers computed at once.
        threads: All cores by default.
        as_on_device: Without a GPU.
        when_asked: Starts the server when something is asked for the first time, and not here.

    Raises:
        MissingExtra: If xllamacpp is not installed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        context: int = 4096,
        slots: int = 4,
        threads: int | None = None,
        start_seconds: float = 600.0,
        as_on_device: bool = False,
        when_asked: bool = False,
    ):
        if not has_llama_cpp():
            raise MissingExtra('running GGUF files needs an extra: pip install "potstill[export]"')
        self.path = Path(path)
        self.name = name or self.path.stem
        self.identity = weights_identity(self.path)
        self.max_in_flight = 2 * slots
        self._start_seconds = start_seconds
        self._threads = threads or num_cores()
        self._slots = slots
        self._context = context
        self._as_on_device = as_on_device
        self._log = tempfile.TemporaryFile()
        self._endpoint: EndpointModel | None = None
        self._starting = threading.Lock()
        self._process = None if when_asked else self._started()

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {
            "engine": "llama.cpp",
            "threads": self._threads,
            "batch": self._slots,
            "context": self._context,
        }

    @property
    def is_alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process."""
        assert self._process is not None
        return self._process

    @property
    def known_as(self) -> str:
        """What its answers depend on besides prompt and sampling."""
        version = metadata.version("xllamacpp")
        return f"{self.identity} xllamacpp {version} context {self._context}"

    async def prepare(self) -> None:
        """Waits until the server is up.

        Raises:
            TeacherError: If it ends or says nothing for `start_seconds`.
        """
        if self._endpoint is None:
            await asyncio.to_thread(self._wait_for_address)

    async def dry_call(
        self, sampling: Sampling | None = None, *, top_logprobs: int = 0
    ) -> Response:
        """As `EndpointModel.dry_call`, once the server is up."""
        await self.prepare()
        assert self._endpoint is not None
        return await self._endpoint.dry_call(sampling, top_logprobs=top_logprobs)

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`.

        Raises:
            TeacherError: If the server ended, or gave up on this prompt.
        """
        await self.prepare()
        assert self._endpoint is not None
        if not self.is_alive:
            raise TeacherError(self._why_it_ended())
        response = await self._endpoint.respond(record, sampling, turn=turn, sample=sample)
        return response.model_copy(update={"model": self.name})

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `EndpointModel.stream`, once the server is up."""
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
        """As `EndpointModel.complete`, once the server is up."""
        await self.prepare()
        assert self._endpoint is not None
        response = await self._endpoint.complete(record, sampling, on_token, on_text=on_text)
        return response.model_copy(update={"model": self.name})

    def memory_bytes(self) -> int | None:
        """Most resident memory that the server had so far; None where the system tells none."""
        if self._process is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None

    async def close(self) -> None:
        """Ends the server and frees its memory."""
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._process is not None:
            await self._end(self._process)
        if not self._log.closed:
            self._log.close()

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it has nothing to save
        await asyncio.to_thread(process.wait)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        numbers = (self._context, self._slots, self._threads)
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "potstill.models.llama_server", str(self.path)),
                *(str(number) for number in numbers),
                *([AS_ON_DEVICE] if self._as_on_device else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def _wait_for_address(self) -> None:
        with self._starting:
            if self._endpoint is not None:
                return
            if self._log.closed:
                raise TeacherError(f"{self.name} was closed and cannot answer")
            process = self._process = self._process or self._started()
            assert process.stdout is not None
            late = threading.Timer(self._start_seconds, process.kill)
            late.start()
            try:
                address = ""
                for line in process.stdout:
                    text = line.decode("utf-8", "replace").strip()
                    if text.startswith("http://"):
                        address = text
                        break
            finally:
                late.cancel()
            if not address:
                process.wait()
                raise TeacherError(self._why_it_ended())
            self._endpoint = EndpointModel(
                address,
                self.name,
                timeout_seconds=3600,
                max_in_flight=self.max_in_flight,
                logprobs_mode="raw",
            )

    def _why_it_ended(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        said = " / ".join(line.strip() for line in lines[-3:]) or "nothing"
        return (
            f"llama.cpp's server for {self.path} ended with code {self.process.returncode}; its "
            f"last words: {said}. Is it a whole GGUF file, and is there memory for it?"
        )


def has_llama_cpp() -> bool:
    """Whether llama.cpp's server is installed."""
    return importlib.util.find_spec("xllamacpp") is not None
