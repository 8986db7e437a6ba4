"""A chat model that is never shown personal data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from potstill.data.privacy import Hidden, Privacy
from potstill.errors import ConfigError
from potstill.protocols import ChatModel
from potstill.types import Message, Record, Response, Sampling

_PASSED_ON = (
    *("identity", "known_as", "price", "setting", "num_parameters", "memory_bytes"),
    *("state", "num_in_flight", "num_retries", "batches"),
)
_MOST_REMEMBERED = 1024
"""Prompts whose hidden form is kept: more than are open at once."""


class PrivateModel:
    """Hides what a model is asked, and puts the real values back into its answers: a `ChatModel`.

    A record with something to hide reaches the model without reference and metadata.
    """

    def __init__(self, model: ChatModel, privacy: Privacy):
        self._model = model
        self._privacy = privacy
        self._remembered = functools.lru_cache(maxsize=_MOST_REMEMBERED)(self._hide)

    def __getattr__(self, name: str) -> Any:
        # Nothing else is passed on, so that no other way of asking goes past the screen.
        if name in _PASSED_ON:
            return getattr(self._model, name)
        if name == "stream" and hasattr(self._model, "stream"):
            return self._stream
        raise AttributeError(name)

    @property
    def name(self) -> str:
        """The model's own."""
        return self._model.name

    @property
    def max_in_flight(self) -> int:
        """The model's own."""
        return self._model.max_in_flight

    async def prepare(self) -> None:
        """Does what the model wants done before it is asked."""
        if (prepare := getattr(self._model, "prepare", None)) is not None:
            await prepare()

    def hidden(self, record: Record) -> Hidden:
        """The record as it is sent, and the way back."""
        if not self._privacy.covers(record):
            return Hidden(record, {})
        return self._remembered(record.id, record.messages)

    def sent_messages(self, record: Record) -> tuple[Message, ...]:
        """What the request's fingerprint is made of: what is sent, and a hash of what is not.

        A value that was edited gives another answer once it is put back.
        """
        hidden = self.hidden(record)
        if not hidden.digest:
            return record.messages
        return (*hidden.record.messages, Message(role="user", content=hidden.digest))

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages` as the model does, the real values in the answer.

        Raises:
            ConfigError: If log-probabilities are wanted too: they are of the text as it came.
            TeacherError: As the model.
        """
        hidden = self.hidden(record)
        if not hidden.digest:
            return await self._model.respond(record, sampling, turn=turn, sample=sample)
        if sampling.top_logprobs:
            raise ConfigError(
                "generation.logprobs are of the text that the teacher wrote, and data.privacy "
                "puts other values into it; use data.privacy: {learn: pseudonyms}, or logprobs: 0"
            )
        response = await self._model.respond(hidden.record, sampling, turn=turn, sample=sample)
        restored = {
            "text": hidden.restore(response.text),
            "reasoning": hidden.restore(response.reasoning),
            "logprobs": None,  # of the text as it came, and of what was asked in its place
        }
        return response.model_copy(update=restored)

    async def _stream(
        self, record: Record, sampling: Sampling, on_token: Callable[[], None]
    ) -> Response:
        """As the model's `stream`, whose text nobody but the response shows."""
        hidden = self.hidden(record)
        response: Response = await self._model.stream(hidden.record, sampling, on_token)  # type: ignore[attr-defined]
        return response.model_copy(update={"text": hidden.restore(response.text)})

    async def close(self) -> None:
        """Closes the model."""
        await self._model.close()

    def _hide(self, record_id: str, messages: tuple[Message, ...]) -> Hidden:
        return self._privacy.hide(Record(id=record_id, messages=messages))


def guarded(model: ChatModel, privacy: Privacy) -> ChatModel:
    """The model behind a screen, unless nothing is hidden or it was hidden in the data."""
    return model if privacy.mode == "off" or privacy.in_data else PrivateModel(model, privacy)
