"""Why a request got no answer: one closed list, for counts, for files and for people."""

from __future__ import annotations

from enum import StrEnum

from potstill.errors import TeacherError


class Failure(StrEnum):
    """The reason of a dead outcome; its `error` begins with it. docs/failures.md says more."""

    TIMEOUT = "timeout"
    """No whole reply within the endpoint's time."""

    CONNECTION = "connection"
    """Nobody at the address, or the connection broke before a reply began."""

    TRUNCATED = "truncated"
    """The reply broke off in the middle."""

    UNREADABLE = "unreadable"
    """Status 200, and no answer in it."""

    TOO_LARGE = "too_large"
    """A reply without end."""

    UNFINISHED = "unfinished"
    """An answer that says of itself that it ended in a way nobody knows."""

    BUSY = "busy"
    """429, for longer than anyone should wait."""

    SERVER_ERROR = "server_error"
    """5xx, each time."""

    HTTP_400 = "http_400"
    HTTP_408 = "http_408"
    HTTP_409 = "http_409"
    HTTP_422 = "http_422"
    HTTP_4XX = "http_4xx"
    """Any other refusal of this prompt alone."""

    TOO_LONG = "too_long"
    """The prompt does not fit into the model's context."""

    BATCH_ERROR = "batch_error"
    """The provider says that this row of a batch failed."""

    NOT_IN_BATCH = "not_in_batch"
    """Batches ended without this row."""

    NOT_LOGGED = "not_logged"
    """The log that answers are taken from has none to this prompt."""

    CANCELLED = "cancelled"
    """The run was stopped while the answer was on its way."""

    BLOCKED = "blocked"
    """Never asked: an earlier turn of its conversation failed."""

    OTHER = "other"
    """Whatever a teacher of the user's own says."""


def of_status(status: int) -> Failure:
    """The reason that a status other than 200 is."""
    if status == 429:
        return Failure.BUSY
    if status >= 500:
        return Failure.SERVER_ERROR
    name = f"http_{status}"
    return Failure(name) if name in list(Failure) else Failure.HTTP_4XX


def gave_up(reason: Failure, text: str, *, num_unread: int = 0) -> TeacherError:
    """The error of one request that is given up.

    Args:
        num_unread: Attempts that may have been paid for, and brought nothing.
    """
    error = TeacherError(text)
    error.reason, error.num_unread = reason.value, num_unread
    return error


def named(reason: str, text: str) -> str:
    """The text of an error with its reason before it."""
    return text if reason == Failure.OTHER else f"{reason}: {text}"


def reason_of(error: str) -> Failure:
    """The reason that an error begins with."""
    name, colon, _ = error.partition(": ")
    return Failure(name) if colon and name in list(Failure) else Failure.OTHER


def num_unread_of(error: BaseException) -> int:
    """Attempts before an error, or a cancellation, that may have been paid for."""
    return getattr(error, "num_unread", 0)
