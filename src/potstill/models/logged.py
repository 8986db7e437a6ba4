"""Answers that were given in production, as a chat model."""

from __future__ import annotations

from typing import Any

from potstill.data.privacy import LOG_KEY
from potstill.models.failures import Failure, gave_up
from potstill.types import Message, Record, Response, Sampling


class LoggedAnswers:
    """Answers each record with its reference, under the name of the model that gave it then.

    Nobody is asked: a `ChatModel` for `data.logged_answers: reuse`.
    """

    name = "logged answers"
    identity = "logged answers"
    max_in_flight = 64

    def sent_messages(self, record: Record) -> tuple[Message, ...]:
        """The prompt and its logged answer: another answer is another request."""
        answer = Message(role="assistant", content=record.reference or "")
        return (*record.messages, answer)

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """The logged answer to the record's last turn.

        Raises:
            TeacherError: If none was logged.
        """
        if record.reference is None:
            raise gave_up(Failure.NOT_LOGGED, "no answer to this turn was logged")
        log: dict[str, Any] = record.metadata.get(LOG_KEY) or {}
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            text=record.reference,
            finish_reason="stop",  # a cut one was left out when the log was read
            model=str(log.get("model") or record.metadata.get("model") or self.name),
        )

    async def close(self) -> None:
        """There is nothing to free."""
