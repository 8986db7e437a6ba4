"""What a client hears when it gets no answer: a status, and an error in OpenAI's form."""

from __future__ import annotations

from typing import Any

from potstill.errors import ConfigError, DataError, PotstillError, TeacherError, TeacherRefused
from potstill.models.failures import Failure, reason_of

_OF_THE_REQUEST = (Failure.HTTP_400, Failure.HTTP_422)
_GONE = 499
"""What metrics and the log say of a request whose client went away; no client reads it."""


class Refusal(Exception):
    """A request that is not answered.

    Args:
        code: OpenAI's name for the reason, where it has one.
        param: The field of the request that is to blame.
        seconds: After how long to try again, where that helps.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        seconds: int | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.seconds = status, code, param, seconds

    @property
    def tree(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, kind)
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        return {} if self.seconds is None else {"Retry-After": str(self.seconds)}


class ClientGone(Refusal):
    """Nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__(_GONE, "the client went away")


def refusal_of_row(error: str) -> Refusal:
    """The refusal that an error row of a model is."""
    reason = reason_of(error)
    if reason is Failure.TOO_LONG:
        text = error.partition(": ")[2]
        return Refusal(400, text, code="context_length_exceeded", param="messages")
    if reason in _OF_THE_REQUEST:
        return Refusal(400, f"the model refuses the request: {error}")
    return Refusal(502, f"no answer came: {error}", code=reason.value)


def refusal_of(error: Exception) -> Refusal:
    """The refusal that an error is; what nobody foresaw is told without its words."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TeacherRefused):
        return Refusal(502, str(error), code="model_refused")
    if isinstance(error, TeacherError):
        status = 504 if error.reason == Failure.TIMEOUT else 502
        return Refusal(status, str(error), code=error.reason)
    if isinstance(error, DataError | ConfigError):  # a template that takes no such conversation
        return Refusal(400, str(error), param="messages")
    if isinstance(error, PotstillError):
        return Refusal(500, str(error))
    return Refusal(500, "the server failed; its own output says why", code="internal_error")
