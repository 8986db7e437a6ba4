"""Weights on this machine as a chat model: answers in batches, and tells its logits.

Shape letters of this file:
    B  rows        T  tokens        H  hidden size        V  vocabulary
    N  positions where logits are wanted, over all rows
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from potstill.data.render import end_token_ids, render_prompt, vocab_fingerprint
from potstill.errors import ConfigError, TeacherError
from potstill.models.catalog import ModelRef, find_model
from potstill.models.decode import Row, decode
from potstill.models.failures import Failure
from potstill.models.fingerprint import request_fingerprint, weights_identity
from potstill.models.head import check_logits, logits_of
from potstill.models.logprobs import Capture, LogprobArrays, pack_logprobs
from potstill.models.longrope import hidden_states
from potstill.models.telling import Teller
from potstill.models.weights import (
    cached_folder,
    count_parameters,
    load_tokenizer,
    load_weights,
    resolve_dtype,
)
from potstill.types import Logprobs, Record, Response, Sampling

_LINGER_SECONDS = 0.002
"""How long a batch that is not full waits for one more prompt."""

_BATCHES_AHEAD = 4
"""Calls held open for each place in a batch, so that prompts of like length can be put
together."""


@dataclass
class _Request:
    record: Record
    sampling: Sampling
    ids: list[int]
    answer: concurrent.futures.Future[Response]
    arrived: float
    turn: int = 0
    sample: int = 0
    on_token: Callable[[], None] | None = None
    on_text: Callable[[str], None] | None = None


class LocalModel:
    """A causal language model of this machine: a `WhiteBoxModel`.

    Calls of `respond` that are open at the same time are answered in batches, by a thread of
    its own; they may come from any event loop.

    Args:
        source: Folder, GGUF file, hub id or short name, or a `ModelRef`.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where the machine is fast at it.
        batch_size: Prompts answered together.
        device: Where it computes; a GPU where there is one, by default.
        capture: What is kept of the probabilities that answers are drawn from, in
            `Response.logprobs`. No part of the request: answers and fingerprints are the same
            with any capture and with none, which is the default.
        when_asked: Reads the weights when something is asked for the first time, and not here.

    Raises:
        ConfigError, DataError: As `load_weights`.
    """

    def __init__(
        self,
        source: ModelRef | Path | str,
        *,
        name: str | None = None,
        dtype: str = "auto",
        batch_size: int = 32,
        device: str | None = None,
        capture: Capture | None = None,
        when_asked: bool = False,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        ref = self._ref = source if isinstance(source, ModelRef) else find_model(str(source))
        self.name = name or ref.name
        self.identity = weights_identity(cached_folder(ref))
        self.batch_size = batch_size
        self.capture = capture
        self.max_in_flight = _BATCHES_AHEAD * batch_size
        self.dtype = str(resolve_dtype(dtype)).removeprefix("torch.")
        """Number format of the weights."""

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        """Where the weights are, or will be: cpu, cuda."""

        self._model: Any = None
        self.context: int | None = None
        self._head_is_checked = False
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._computing = threading.Lock()
        self._is_closed = False
        if when_asked:
            self.tokenizer = load_tokenizer(ref)
        else:
            self._load()
        self.vocab_fingerprint = vocab_fingerprint(self.tokenizer)

    @property
    def num_parameters(self) -> int:
        """How many weights it has, shared ones counted once."""
        if self._model is None:
            return count_parameters(self._ref)
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def weights_bytes(self) -> int:
        """Bytes that weights and buffers take, shared ones counted once."""
        self._load()
        model = self._model
        return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {
            "engine": "transformers",
            "dtype": self.dtype,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "batch": self.batch_size,
        }

    @property
    def known_as(self) -> str:
        """What its answers depend on besides prompt and sampling."""
        device = self.device.partition(":")[0]
        engine = f"transformers {transformers.__version__} torch {torch.__version__}"
        return f"{self.identity} {self.dtype} {device} {engine}"

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`; a prompt that is too long for the model is an error row.

        Raises:
            TeacherError: If the model was closed, or ran out of memory.
        """
        ids = render_prompt(self.tokenizer, record.messages)
        return await self._respond(record, sampling, ids, turn=turn, sample=sample)

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `respond`; both are called, in another thread, as tokens and text come."""
        ids = render_prompt(self.tokenizer, record.messages)
        return await self._respond(record, sampling, ids, on_token=on_token, on_text=on_text)

    async def complete(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `stream`; the record's last message is continued as it stands, without a template."""
        ids = self.tokenizer(record.messages[-1].content)["input_ids"]
        return await self._respond(record, sampling, ids, on_token=on_token, on_text=on_text)

    async def _respond(
        self, record: Record, sampling: Sampling, ids: Sequence[int], **settings: Any
    ) -> Response:
        if self._is_closed:
            raise TeacherError(f"{self.name} was closed and cannot answer")
        self._load()
        answer: concurrent.futures.Future[Response] = concurrent.futures.Future()
        request = _Request(
            record, sampling, ids=list(ids), answer=answer, arrived=time.monotonic(), **settings
        )
        if self.context is not None and len(ids) >= self.context:
            return self._response(
                request,
                finish_reason="error",
                error=f"{Failure.TOO_LONG}: the prompt has {len(ids):,} tokens and {self.name} "
                f"reads {self.context:,}, prompt and answer together",
            )
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name=f"potstill-{self.name}", daemon=True
            )
            self._thread.start()
        self._requests.put(request)
        return await asyncio.wrap_future(answer)

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Next-token logits where `positions_BT` is True: [B, T] to [N, V], float32.

        Only those positions go through the head, so [B, T, V] is never held.

        Args:
            ids_BT: Token ids; rows are padded on the right, if at all.
            positions_BT: Bool. The logits at a position are for the token that follows it.

        Raises:
            DataError: If this architecture changes its logits after the head in a way that is
                not known here.
        """
        self._load()
        with self._computing:
            if not self._head_is_checked:
                check_logits(self._model, self.name)
                self._head_is_checked = True
            device = self._model.device
            positions_BT = positions_BT.to(device)
            hidden_BTH = hidden_states(self._model, ids_BT.to(device), positions_BT)
            return logits_of(self._model, hidden_BTH[positions_BT])

    async def close(self) -> None:
        """Ends the thread and frees the memory; open calls fail with TeacherError."""
        if self._is_closed:
            return
        self._is_closed = True
        self._requests.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self) -> None:
        """Reads the weights, where they were not; as tensors of any use, whoever asks."""
        if self._model is not None:
            return  # and waits for no batch that is being computed
        with self._computing, torch.inference_mode(False):
            if self._model is not None or self._is_closed:
                return
            model, self.tokenizer = load_weights(self._ref, dtype=self.dtype)
            self._end_ids = frozenset(
                end_token_ids(self.tokenizer, getattr(model, "generation_config", None))
            )
            text_config = model.config.get_text_config()
            self.context = getattr(text_config, "max_position_embeddings", None)
            self._model = model.to(self.device)

    def _work(self) -> None:
        """The thread: gathers open requests into batches of like length until it is closed."""
        waiting: list[_Request] = []
        while not self._is_closed:
            self._gather(waiting)
            waiting[:] = [request for request in waiting if not request.answer.cancelled()]
            if waiting and not self._is_closed:
                self._answer(self._take(waiting))
        with contextlib.suppress(queue.Empty):
            while True:
                request = self._requests.get_nowait()
                if request is not None:
                    waiting.append(request)
        for request in waiting:
            self._fail(request, TeacherError(f"{self.name} was closed before it answered"))

    def _gather(self, waiting: list[_Request]) -> None:
        """Moves requests from the queue to `waiting`; blocks while there is none at all."""
        while True:
            wait = _LINGER_SECONDS if 0 < len(waiting) < self.batch_size > 1 else None
            try:
                is_blocking = not waiting or wait is not None
                request = self._requests.get(block=is_blocking, timeout=wait)
            except queue.Empty:
                return
            if request is None:
                return
            waiting.append(request)

    def _take(self, waiting: list[_Request]) -> list[_Request]:
        """Removes a batch: the oldest request and those nearest to it in length."""
        oldest = min(waiting, key=lambda request: request.arrived)
        waiting.sort(key=lambda request: len(request.ids))
        start = min(waiting.index(oldest), max(0, len(waiting) - self.batch_size))
        batch = waiting[start : start + self.batch_size]
        del waiting[start : start + self.batch_size]
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        started = time.perf_counter()
        rows = [
            Row(
                request.ids,
                request.sampling,
                is_wanted=self._is_wanted(request),
                on_token=request.on_token,
                teller=request.on_text and Teller(request.on_text, request.sampling.stop),
            )
            for request in batch
        ]
        try:
            with self._computing:
                decode(
                    self._model,
                    self.tokenizer,
                    rows,
                    end_ids=self._end_ids,
                    pad_id=self.tokenizer.pad_token_id or 0,
                    context=self.context,
                    capture=self.capture,
                )
        except (RuntimeError, MemoryError) as error:
            what = f"{self.name} failed on a batch of {len(batch)} prompts: {error}"
            if "memory" in str(error).lower() or isinstance(error, MemoryError):
                what += f"; halve generation.batch_size (now {self.batch_size})"
            for request in batch:
                self._fail(request, TeacherError(what))
            return
        except Exception as error:  # a fault of ours: whoever waits must hear of it
            for request in batch:
                self._fail(request, error)
            return
        seconds = (time.perf_counter() - started) / len(batch)
        for request, row in zip(batch, rows, strict=True):
            if row.finish_reason is None:
                self._fail(request, TeacherError(f"{self.name} was closed before it answered"))
                continue
            response = self._response(
                request,
                text=row.text,
                finish_reason=row.finish_reason,
                num_new_tokens=row.num_new_tokens,
                seconds=seconds,
                logprobs=self._captured(row),
            )
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                request.answer.set_result(response)  # raises when nobody waits any more

    def _captured(self, row: Row) -> Logprobs | None:
        if self.capture is None:
            return None
        ids, logprobs, tails, dropped = zip(*row.positions, strict=True)
        sampled = row.ids if row.end_id is None else [*row.ids, row.end_id]
        arrays = LogprobArrays(
            np.array(sampled), np.stack(ids), np.stack(logprobs), np.array(tails)
        )
        return pack_logprobs(
            arrays,
            mode="raw",
            temperature=self.capture.temperature,
            vocab_fingerprint=self.vocab_fingerprint,
            has_end=row.end_id is not None,
            mass_dropped=sum(dropped),
        )

    def _is_wanted(self, request: _Request) -> Any:
        return lambda: not self._is_closed and not request.answer.cancelled()

    def _fail(self, request: _Request, error: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            request.answer.set_exception(error)

    def _response(self, request: _Request, **facts: Any) -> Response:
        return Response(
            record_id=request.record.id,
            turn=request.turn,
            sample=request.sample,
            num_prompt_tokens=len(request.ids),
            model=self.name,
            fingerprint=request_fingerprint(
                self.identity, request.record.messages, request.sampling
            ),
            **{"text": "", **facts},
        )
