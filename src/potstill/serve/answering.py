"""Asks the model for what a request wants: how many at once, in pieces, and by whom at last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from potstill.errors import PotstillError, VocabMismatch
from potstill.models.embedded_model import EmbeddedModel
from potstill.models.endpoint import EndpointModel
from potstill.models.engines import GgufModel
from potstill.models.logprobs import chosen_logprobs, logprob_arrays
from potstill.protocols import ChatModel
from potstill.serve.asked import MOST_LOGPROBS, Asked
from potstill.serve.refusals import Refusal, refusal_of_row
from potstill.serve.told import Spell
from potstill.targets.pieces import gguf_piece_bytes, piece_bytes
from potstill.types import Logprobs, Record, Response, Sampling

_LONGEST_WAIT_SECONDS = 60


class Piece(NamedTuple):
    """Text of one of a request's answers, or that whole answer."""

    place: int
    text: str = ""
    response: Response | None = None


class Gate:
    """Lets so many answers be open at once, waiting ones included, and turns the others away."""

    def __init__(self, most: int):
        self.most, self.open = most, 0
        self._last_seconds = 1.0

    @contextlib.contextmanager
    def passed(self, number: int) -> Iterator[None]:
        """Holds places for so many answers.

        Raises:
            Refusal: 429, with the time that an answer takes, if there are none free.
        """
        if self.open + number > self.most:
            seconds = min(_LONGEST_WAIT_SECONDS, max(1, math.ceil(self._last_seconds)))
            if number > self.most:
                raise Refusal(400, f"one request may have {self.most} answers at most", param="n")
            raise Refusal(
                429,
                f"{self.open} answers are on their way and {self.most} may be; try again in "
                f"{seconds} s",
                code="server_busy",
                seconds=seconds,
            )
        started = time.monotonic()
        self.open += number
        try:
            yield
        finally:
            self.open -= number
            self._last_seconds = time.monotonic() - started


class Fallback(NamedTuple):
    """Who answers where the model is not sure of itself."""

    teacher: ChatModel
    below: float
    """Mean probability of an answer's tokens, below which the teacher is asked."""

    on_outcome: Callable[[str], None]
    """Told `kept`, `fell_back`, or `teacher_failed` (the model's own answer is given then)."""


class Answerer:
    """One model that answers requests.

    Args:
        name: What the model is called in answers.
    """

    def __init__(self, model: ChatModel, name: str, *, fallback: Fallback | None = None):
        self.name = name
        self._model, self._fallback = model, fallback
        self._spell = _speller(model)
        self._has_penalties = not (hasattr(model, "tokenizer") or isinstance(model, EmbeddedModel))

    @property
    def spell(self) -> Spell | None:
        """The bytes of a token by its id; None where nobody here knows them."""
        return self._spell

    def refuse_another_name(self, model: str) -> None:
        """Raises Refusal where it is not this model that is asked."""
        if model != self.name:
            raise Refusal(
                404,
                f"the model {model!r} is not here; {self.name!r} is",
                code="model_not_found",
                param="model",
            )

    def refuse_what_it_cannot(self, asked: Asked) -> None:
        """Raises Refusal where the model has no way to answer as asked."""
        if asked.model is not None:
            self.refuse_another_name(asked.model)
        if not asked.is_chat and not hasattr(self._model, "complete"):
            raise Refusal(
                400,
                f"{self.name} answers chats only here: its engine has no plain completions; use "
                "/v1/chat/completions",
                param="prompt",
            )
        tells = self._spell is not None or isinstance(self._model, EndpointModel)
        if asked.logprobs is not None and not tells and not asked.names_ids:
            raise Refusal(
                400,
                f"{self.name} tells log-probabilities by the tokens' numbers alone; leave logprobs "
                "out, or ask for numbers with return_tokens_as_token_ids: true",
                param="logprobs",
            )
        sampling = asked.sampling
        if not self._has_penalties and (sampling.frequency_penalty or sampling.presence_penalty):
            raise Refusal(
                400,
                f"what answers for {self.name} here has no penalties; leave them out",
                param="frequency_penalty" if sampling.frequency_penalty else "presence_penalty",
            )

    async def pieces(self, asked: Asked) -> AsyncIterator[Piece]:
        """Every answer, and where the request is streamed its text before that, as it comes.

        Raises:
            Refusal, TeacherError: As soon as one of the answers fails.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        async def work(place: int, record: Record, sampling: Sampling) -> None:
            try:
                put(Piece(place, response=await self._answer(asked, place, record, sampling, put)))
            except Exception as error:  # told to whoever reads the pieces
                put(error)

        tasks = [asyncio.create_task(work(place, *part)) for place, part in enumerate(asked.parts)]
        try:
            num_left = len(tasks)
            while num_left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                num_left -= item.response is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self,
        asked: Asked,
        place: int,
        record: Record,
        sampling: Sampling,
        put: Callable[[Piece], None],
    ) -> Response:
        """One answer; its text goes to `put` on the way where it can be told before it is whole."""
        if asked.is_chat and (asked.logprobs is not None or self._fallback is not None):
            sampling = sampling.model_copy(update={"top_logprobs": MOST_LOGPROBS})

        if asked.logprobs is not None and self._spell is not None:
            await asyncio.to_thread(self._spell, 0)  # a vocabulary is read without holding others

        def on_text(text: str) -> None:
            put(Piece(place, text))

        def on_token() -> None:
            pass

        if not asked.is_chat:
            told = on_text if asked.is_streamed else None
            response = await self._model.complete(record, sampling, on_token, on_text=told)  # type: ignore[attr-defined]
        elif asked.is_streamed and not sampling.top_logprobs and tells_text(self._model):
            response = await self._model.stream(record, sampling, on_token, on_text=on_text)  # type: ignore[attr-defined]
        else:
            response = await self._model.respond(record, sampling)
        if response.finish_reason == "error":
            raise refusal_of_row(response.error)
        if asked.logprobs is not None and response.text and response.logprobs is None:
            raise Refusal(400, f"{self.name} tells no log-probabilities", param="logprobs")
        response = response.model_copy(update={"model": self.name})
        if self._fallback is None or not asked.is_chat:
            return response
        return await self._or_the_teacher(self._fallback, record, asked.sampling, response)

    async def _or_the_teacher(
        self, fallback: Fallback, record: Record, sampling: Sampling, response: Response
    ) -> Response:
        if confidence(response.logprobs) >= fallback.below:
            fallback.on_outcome("kept")
            return response
        try:
            other = await fallback.teacher.respond(record, sampling)
        except PotstillError:
            other = None
        if other is None or other.finish_reason == "error":
            fallback.on_outcome("teacher_failed")
            return response
        fallback.on_outcome("fell_back")
        return other.model_copy(update={"model": fallback.teacher.name})


def confidence(logprobs: Logprobs | None) -> float:
    """The mean probability of an answer's tokens, in [0, 1]; 0 where nothing is known of it.

    A token that is not among those told counts as improbable.
    """
    if logprobs is None or not logprobs.sampled:
        return 0.0
    return float(np.exp(chosen_logprobs(logprob_arrays(logprobs))).mean())


def tells_text(model: ChatModel) -> bool:
    """Whether the model has a `stream` that tells the text as it comes."""
    stream = getattr(model, "stream", None)
    return stream is not None and "on_text" in inspect.signature(stream).parameters


def _speller(model: ChatModel) -> Spell | None:
    if isinstance(model, GgufModel):
        # Reading the file's vocabulary takes a second: only once somebody wants it.
        read = functools.cache(lambda: gguf_piece_bytes(model.path))
        return lambda id_: read()[id_] or b""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    try:
        pieces = piece_bytes(tokenizer)
    except VocabMismatch:
        return lambda id_: str(tokenizer.decode([id_])).encode()

    def spell(id_: int) -> bytes:
        piece = pieces[id_] if id_ < len(pieces) else None
        return str(tokenizer.convert_ids_to_tokens(id_)).encode() if piece is None else piece

    return spell
