"""What became of requests: as a line, as a key, as a state, and counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import orjson
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from potstill.models.failures import Failure
from potstill.rundir import LedgerDir
from potstill.teach.index import State
from potstill.types import Noun, Response

_CANCELLED = f"{Failure.CANCELLED}: "
_DEFAULTS = {name: field.default for name, field in Response.model_fields.items()}
_LINES = TypeAdapter(Response)  # makes bytes, where `model_dump_json` makes a string of them first


class Inventory(Noun):
    """What is in a ledger, and what of it is whole."""

    num_segments: int
    num_bytes: int
    num_done: int
    num_dead: int
    num_cancelled: int
    num_stale: int
    """Of all of these: wanted by no present input, kept because they were paid for."""

    num_missing: int
    """Wanted, and not there any more; the next run asks for them again."""

    num_damaged: int
    """Lines that cannot be read any more; they are set aside."""

    num_tokens: int = 0
    """What the provider counted for all of them, prompts and answers."""

    num_unused_tokens: int = 0
    """Of these: for answers that are cut, withheld, empty, failed or cancelled."""

    num_unread: int = 0
    """Attempts that brought nothing to read and may have been paid for besides."""

    cost: float | None = None
    unused_cost: float | None = None

    damaged_files: tuple[str, ...] = ()
    """Where damaged lines were set aside, now or earlier."""

    @property
    def text(self) -> str:
        """What is there, in one sentence."""
        text = (
            f"{self.num_done:,} answers, {self.num_dead:,} failures and {self.num_cancelled:,} "
            f"cancelled in {self.num_segments:,} files of {self.num_bytes / 2**20:,.1f} MiB; "
            f"{self.num_stale:,} of them are not wanted at present"
        )
        if self.num_tokens:
            cost = "" if self.cost is None else f" (cost {self.cost:.4g})"
            unused = "" if self.unused_cost is None else f" (cost {self.unused_cost:.4g})"
            text += f"; {self.num_tokens:,} tokens{cost}, {self.num_unused_tokens:,}{unused} unused"
        return text + (f"; {self.num_unread:,} attempts unread" if self.num_unread else "")

    @property
    def damage(self) -> str:
        """What is not whole; empty where all is."""
        parts = []
        if self.num_damaged:
            aside = f", set aside in {', '.join(self.damaged_files)}" if self.damaged_files else ""
            parts.append(f"{self.num_damaged:,} lines are damaged{aside}")
        if self.num_missing:
            parts.append(f"{self.num_missing:,} answers that are wanted are missing")
        return "; ".join(parts)


def request_key(record_id: str, turn: int, sample: int, fingerprint: str) -> bytes:
    """16 bytes that name one request of one record."""
    text = f"{record_id}\0{turn}\0{sample}\0{fingerprint}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def cancelled(reason: str) -> str:
    """The error of a request that was stopped before its answer came."""
    return _CANCELLED + reason


def failed(error: str) -> Response:
    """A request without an answer; whose it is, is said where it is kept."""
    return Response(record_id="", text="", finish_reason="error", error=error)


def fault_of(response: Response) -> str:
    """Why an answer does not count as one in the pilot; empty where it does."""
    if response.finish_reason == "error":
        return f"failed ({response.error})"
    if response.finish_reason == "length":
        return f"cut after {response.num_new_tokens} tokens"
    if response.finish_reason == "content_filter":
        return "withheld by the provider's content filter"
    if not response.text.strip():
        return "empty, or without the answer in the form asked for"
    return ""


def key_of(response: Response) -> bytes:
    """The key of the request that this is the outcome of."""
    return request_key(response.record_id, response.turn, response.sample, response.fingerprint)


def state_of(response: Response) -> State:
    """What became of the request."""
    if response.finish_reason == "error":
        return State.CANCELLED if response.error.startswith(_CANCELLED) else State.DEAD
    return State.CUT if response.finish_reason == "length" else State.DONE


def line_of(response: Response) -> bytes:
    """One line of JSON; what is as by default is not in it."""
    try:
        if response.logprobs is not None:
            return _LINES.dump_json(response, exclude_defaults=True) + b"\n"
        # The same bytes in half of the time, which is the asking thread's.
        told = {name: value for name, value in vars(response).items() if value != _DEFAULTS[name]}
        return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)
    except (PydanticSerializationError, orjson.JSONEncodeError):
        # Half a surrogate pair has no UTF-8; an escape brings it back as it was.
        return json.dumps(response.model_dump(mode="json", exclude_defaults=True)).encode() + b"\n"


def response_of(line: bytes) -> Response:
    """What `line_of` made a line of; raises ValueError for any other line."""
    try:
        return Response.model_validate_json(line)
    except ValueError:
        return Response.model_validate(json.loads(line))


def kept_responses(folder: LedgerDir) -> Iterator[Response]:
    """All outcomes of a ledger's files, also stale ones; reads beside a run that goes on.

    Lines that are damaged, or being written, are passed over: the ledger deals with them.
    """
    for number in folder.segments():
        with folder.segment(number).open("rb") as lines:
            for line in lines:
                try:
                    response = response_of(line)
                except ValueError:
                    continue
                yield response
