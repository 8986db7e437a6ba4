"""Chats with an engine that runs inside this process, one answer at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill.data.render import render_prompt
from potstill.errors import TeacherError
from potstill.models.catalog import ModelRef
from potstill.models.embedded import PACKAGES, Embedded, kind_of, open_embedded
from potstill.models.failures import Failure
from potstill.models.fingerprint import request_fingerprint, weights_identity
from potstill.models.machine import num_cores
from potstill.models.telling import Teller, before_stop
from potstill.types import Message, Record, Response, Sampling


class EmbeddedModel:
    """A folder of CTranslate2 or ONNX Runtime GenAI: a `StreamingModel`.

    One answer is computed at a time, on all cores.

    Args:
        when_asked: Reads the folder when something is asked for the first time, and not here.

    Raises:
        MissingExtra, DataError: As `open_embedded`.
    """

    max_in_flight = 2

    def __init__(self, ref: ModelRef, *, threads: int | None = None, when_asked: bool = False):
        self.name = ref.name
        self._folder = Path(ref.source)
        self._kind = kind_of(self._folder)
        self._threads = threads or num_cores()
        self.identity = weights_identity(self._folder)
        self._engine = None if when_asked else self._opened()
        self._is_closed = False
        self._computing = threading.Lock()

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {"engine": PACKAGES[self._kind], "threads": self._threads, "batch": 1}

    @property
    def known_as(self) -> str:
        """What its answers depend on besides prompt and sampling."""
        package = PACKAGES[self._kind]
        return f"{self.identity} {package} {metadata.version(package)}"

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`; a prompt that is too long for the model is an error row.

        Raises:
            TeacherError: If the model was closed, or its engine gave up.
        """
        return await self._respond(record, sampling, _rendered, turn=turn, sample=sample)

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `respond`; both are called, in another thread, as tokens and text come."""
        return await self._respond(record, sampling, _rendered, on_token, on_text)

    async def complete(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `stream`; the record's last message is continued as it stands, without a template."""
        return await self._respond(record, sampling, _as_it_stands, on_token, on_text)

    async def close(self) -> None:
        """Frees the weights."""
        with self._computing:
            self._engine, self._is_closed = None, True

    def _opened(self) -> Embedded:
        return open_embedded(self._folder, threads=self._threads)

    async def _respond(
        self,
        record: Record,
        sampling: Sampling,
        prompt_of: Callable[[Embedded, Sequence[Message]], list[int]],
        on_token: Callable[[], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        turn: int = 0,
        sample: int = 0,
    ) -> Response:
        answer = _Answer(sampling, on_token, on_text)
        try:
            facts = await asyncio.to_thread(self._answer, record, answer, prompt_of)
        except asyncio.CancelledError:
            answer.is_wanted = False
            raise
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            model=self.name,
            fingerprint=request_fingerprint(self.identity, record.messages, sampling),
            **{"text": "", **facts},
        )

    def _answer(
        self,
        record: Record,
        answer: _Answer,
        prompt_of: Callable[[Embedded, Sequence[Message]], list[int]],
    ) -> dict[str, Any]:
        """What the response tells, computed in this thread."""
        with self._computing:
            if self._is_closed:
                raise TeacherError(f"{self.name} was closed and cannot answer")
            engine = self._engine = self._engine or self._opened()
            started = time.perf_counter()
            prompt = prompt_of(engine, record.messages)
            facts: dict[str, Any] = {"num_prompt_tokens": len(prompt)}
            room = (engine.context or 2**31) - len(prompt)
            if room < 1:
                facts["finish_reason"] = "error"
                facts["error"] = (
                    f"{Failure.TOO_LONG}: the prompt has {len(prompt):,} tokens and {self.name} "
                    f"reads {engine.context:,}, prompt and answer together"
                )
            elif answer.is_wanted:
                try:
                    facts |= answer.computed(engine, prompt, room)
                except (RuntimeError, ValueError, MemoryError) as error:
                    raise TeacherError(f"{self.name} failed on a prompt: {error}") from error
            return facts | {"seconds": time.perf_counter() - started}


def _rendered(engine: Embedded, messages: Sequence[Message]) -> list[int]:
    return render_prompt(engine.tokenizer, messages)


def _as_it_stands(engine: Embedded, messages: Sequence[Message]) -> list[int]:
    return engine.encode(messages[-1].content)


class _Answer:
    """One answer while it is computed: told as it comes, ended where nothing more is wanted."""

    def __init__(
        self,
        sampling: Sampling,
        on_token: Callable[[], None] | None,
        on_text: Callable[[str], None] | None,
    ):
        self.is_wanted = True
        self._sampling, self._on_token = sampling, on_token
        self._teller = on_text and Teller(on_text, sampling.stop)
        self._ids: list[int] = []

    def computed(self, engine: Embedded, prompt: Sequence[int], room: int) -> dict[str, Any]:
        """Text, number of tokens and how it ended, in at most `room` tokens."""
        tokens = min(room, self._sampling.max_new_tokens)
        within = self._sampling.model_copy(update={"max_new_tokens": tokens})
        ids = engine.generate(
            prompt, within, on_token=lambda token: self._is_over(engine, token)
        ).ids
        has_end = bool(ids) and ids[-1] in engine.end_ids
        text, is_cut = self._read(engine, ids[:-1] if has_end else ids)
        if self._teller is not None:
            self._teller.add(text, is_whole=True)
        return {
            "text": text,
            "finish_reason": "stop" if has_end or is_cut else "length",
            "num_new_tokens": len(ids),
        }

    def _is_over(self, engine: Embedded, token: int) -> bool:
        """Takes a token; True where the answer needs no more of them."""
        if self._on_token is not None:
            self._on_token()
        if token in engine.end_ids:
            return True
        self._ids.append(token)
        is_cut = False
        if self._teller is not None or self._sampling.stop:
            text, is_cut = self._read(engine, self._ids)
            if self._teller is not None:
                self._teller.add(text, is_whole=is_cut)
        return is_cut or not self.is_wanted

    def _read(self, engine: Embedded, ids: Sequence[int]) -> tuple[str, bool]:
        """The text before any stop sequence, and whether there was one."""
        text = engine.tokenizer.decode(ids, skip_special_tokens=True)
        return before_stop(text, self._sampling.stop)
