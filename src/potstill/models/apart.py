"""A model in a process of its own: its memory is its own, and it can be ended alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.errors import DataError, TeacherError
from potstill.models.catalog import ModelRef
from potstill.models.engines import GgufModel
from potstill.types import Record, Response, Sampling


def open_apart(ref: ModelRef, *, threads: int, context: int) -> GgufModel | ApartModel:
    """Starts a model's engine as a device would run it: one answer at a time, and no GPU.

    Args:
        ref: A GGUF file, or a folder on this machine.
        context: Longest prompt and answer together, in tokens. llama.cpp makes room for as many
            when it starts, the other engines as they go.

    Raises:
        MissingExtra: If llama.cpp is not installed.
    """
    if ref.kind == "gguf":
        return GgufModel(ref.source, slots=1, threads=threads, context=context, as_on_device=True)
    return ApartModel(ref.name, Path(ref.source), threads=threads)


class ApartModel:
    """A Hugging Face folder, or one of an embedded engine, in a process of its own.

    The process starts here and reads the weights while the caller goes on; it ends with `close`,
    or with this process. It answers one prompt at a time.
    """

    max_in_flight = 1

    def __init__(self, name: str, folder: Path, *, threads: int):
        self.name = name
        self.setting: dict[str, Any] = {}
        """What its speed is only true for; empty before `prepare`."""

        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potstill.models.apart_server", str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)},
        )

    async def prepare(self) -> None:
        """Waits until the weights are read.

        Raises:
            DataError: If the engine cannot read them.
            TeacherError: If the process ends.
        """
        if not self.setting:
            told = await asyncio.to_thread(self._read)
            if "error" in told:
                raise DataError(told["error"])
            self.setting = told["setting"]

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`.

        Raises:
            TeacherError: If the engine gave up, or its process ended.
        """
        response = await self.stream(record, sampling, lambda: None)
        return response.model_copy(update={"turn": turn, "sample": sample})

    async def stream(
        self, record: Record, sampling: Sampling, on_token: Callable[[], None]
    ) -> Response:
        """As `respond`; `on_token` is called, in another thread, after each token."""
        await self.prepare()
        return await asyncio.to_thread(self._ask, record, sampling, on_token)

    async def close(self) -> None:
        """Ends the process and frees its memory."""
        self.process.kill()  # it has nothing to save
        await asyncio.to_thread(self.process.wait)
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _ask(self, record: Record, sampling: Sampling, on_token: Callable[[], None]) -> Response:
        asked = {
            "record": record.model_dump(mode="json"),
            "sampling": sampling.model_dump(mode="json"),
        }
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        while "token" in (told := self._read()):
            on_token()
        if "error" in told:
            raise TeacherError(told["error"])
        return Response.model_validate(told["response"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.endswith(b"\n"):
            found: dict[str, Any] = json.loads(line)
            return found
        self.process.wait()
        self._log.seek(0)
        said = self._log.read().decode("utf-8", "replace").strip().splitlines()
        last = said[-1].strip() if said else "nothing"
        raise TeacherError(
            f"the process of {self.name} ended with code {self.process.returncode}; its last "
            f"words: {last}"
        )
