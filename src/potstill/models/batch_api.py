"""The batch interfaces of OpenAI and Anthropic: what is sent, and what comes back."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from potstill.errors import ConfigError, TeacherRefused
from potstill.models.chat_format import Answer, NotAnAnswer, count, declined, error_text, read_json
from potstill.models.client import Client, Request, encode_body
from potstill.models.failures import Failure, named
from potstill.models.wire import AzureWire, OpenAIWire, Wire
from potstill.models.wire_anthropic import AnthropicWire

_TRANSFER_SECONDS = 3600.0
"""How long a file of 200 MB may be on its way."""

_PAGE = 100
_INTENT = "potstill_intent"
_UNASKED = ("batch_expired", "batch_cancelled", "batch_canceled")
_MB = 1_000_000
T = TypeVar("T")
_WHAT = "batch interface (teacher.batch: false asks without one)"


class Batch(NamedTuple):
    """A batch as the provider tells of it."""

    id: str
    num_requests: int
    num_done: int
    created_at: float
    """Seconds since 1970, by the provider's clock."""

    is_ended: bool
    outputs: tuple[str, ...] = ()
    """Where its results are, once it has ended."""

    problem: str = ""
    """Why it has no result for some requests, as far as it says so."""

    intent: str | None = None
    """What it was made for; None where the provider keeps no such note."""


class Row(NamedTuple):
    """One result of a batch."""

    custom_id: str
    reply: Any = None
    """A reply with status 200, in JSON."""

    failed: Answer | None = None
    """Why there is no such reply."""

    is_unasked: bool = False
    """The batch ended before the request was looked at."""


class BatchApi(Protocol):
    """How one provider takes many requests at once, and gives back the answers."""

    most_requests: int
    most_bytes: int
    """Most that one batch holds; bytes are those of the file that it is sent as."""

    def head(self, intent: str) -> bytes:
        """What the file of a batch begins with; ends with a line end."""
        ...

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """One request in it, which begins with its id; lines are joined by `joint`."""
        ...

    joint: bytes

    def tail(self, intent: str) -> bytes:
        """What the file ends with."""
        ...

    async def create(self, file: Path, intent: str) -> Batch:
        """Makes a batch of a file, at most once.

        Raises:
            TeacherRefused: It was not made, and will not be.
            TeacherError: Nobody knows whether it was made.
        """
        ...

    async def find(self, batch_id: str) -> Batch:
        """A batch as it is now."""
        ...

    async def made_since(self, moment: float) -> list[Batch]:
        """All batches of the account that were made since then (seconds since 1970)."""
        ...

    async def fetch(self, output: str, file: Path) -> None:
        """Puts results into a file, one JSON object a line, in any order."""
        ...

    def read(self, tree: Any) -> Row:
        """Reads a line of results; raises NotAnAnswer where it is none."""
        ...


def open_batch_api(wire: Wire, client: Client) -> BatchApi:
    """The batch interface of an endpoint; raises ConfigError where its API has none."""
    if isinstance(wire, AnthropicWire):
        return AnthropicBatches(wire.base, client)
    if isinstance(wire, OpenAIWire) and not isinstance(wire, AzureWire):
        return OpenAIBatches(wire.base, client)
    raise ConfigError(
        f"teacher.batch is for the batch interfaces of OpenAI and Anthropic, and {client.host} is "
        f"asked as azure; use teacher.batch: false"
    )


class OpenAIBatches:
    """A file of requests, and a batch that names it: a `BatchApi`."""

    most_requests = 50_000
    most_bytes = 200 * _MB
    joint = b"\n"

    def __init__(self, base: str, client: Client):
        self._base, self._client = base, client

    def head(self, intent: str) -> bytes:
        lines = (
            f"--{intent}",
            'Content-Disposition: form-data; name="purpose"',
            "",
            "batch",
            f"--{intent}",
            f'Content-Disposition: form-data; name="file"; filename="{intent}.jsonl"',
            "Content-Type: application/jsonl",
            "",
            "",
        )
        return "\r\n".join(lines).encode()

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        url = "/v1/chat/completions"
        return encode_body({"custom_id": custom_id, "method": "POST", "url": url, "body": body})

    def tail(self, intent: str) -> bytes:
        return f"\n\r\n--{intent}--\r\n".encode()

    async def create(self, file: Path, intent: str) -> Batch:
        kind = {"Content-Type": f"multipart/form-data; boundary={intent}"}
        upload = Request(
            "POST",
            f"{self._base}/files",
            _WHAT,
            send_file=file,
            headers=kind,
            seconds=_TRANSFER_SECONDS,
        )
        body = {
            "input_file_id": await _ask(self._client, upload, lambda tree: str(tree["id"])),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {_INTENT: intent},
        }
        url = f"{self._base}/batches"
        made = Request("POST", url, _WHAT, lambda: body, is_repeatable=False)
        return await _ask(self._client, made, _openai_batch)

    async def find(self, batch_id: str) -> Batch:
        request = Request("GET", f"{self._base}/batches/{batch_id}", f"batch {batch_id}")
        return await _ask(self._client, request, _openai_batch)

    async def made_since(self, moment: float) -> list[Batch]:
        return await _pages(self._client, f"{self._base}/batches", "after", _openai_batch, moment)

    async def fetch(self, output: str, file: Path) -> None:
        await _fetch(self._client, f"{self._base}/files/{output}/content", file)

    def read(self, tree: Any) -> Row:
        try:
            custom_id, response, error = tree["custom_id"], tree.get("response"), tree.get("error")
            if not response:
                code, message = error_text(error)
                if code in _UNASKED:
                    return Row(custom_id, is_unasked=True)
                return Row(custom_id, failed=_failed(code or "error", message))
            status, body = response["status_code"], response["body"]
        except (KeyError, TypeError, AttributeError):
            raise NotAnAnswer("no result of a batch") from None
        if status == 200:
            return Row(custom_id, reply=body)
        return Row(custom_id, failed=_declined(status, body))


class AnthropicBatches:
    """All requests in the one body that makes the batch: a `BatchApi`."""

    most_requests = 100_000
    most_bytes = 256 * _MB
    joint = b",\n"

    def __init__(self, base: str, client: Client):
        self._url, self._client = f"{base}/messages/batches", client

    def head(self, intent: str) -> bytes:
        return b'{"requests":[\n'

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        return encode_body({"custom_id": custom_id, "params": body})

    def tail(self, intent: str) -> bytes:
        return b"\n]}"

    async def create(self, file: Path, intent: str) -> Batch:
        made = Request(
            "POST",
            self._url,
            _WHAT,
            send_file=file,
            seconds=_TRANSFER_SECONDS,
            is_repeatable=False,
        )
        return await _ask(self._client, made, _anthropic_batch)

    async def find(self, batch_id: str) -> Batch:
        request = Request("GET", f"{self._url}/{batch_id}", f"batch {batch_id}")
        return await _ask(self._client, request, _anthropic_batch)

    async def made_since(self, moment: float) -> list[Batch]:
        return await _pages(self._client, self._url, "after_id", _anthropic_batch, moment)

    async def fetch(self, output: str, file: Path) -> None:
        # Not results_url, which is somebody's word: the key goes where the config says.
        await _fetch(self._client, f"{self._url}/{output}/results", file)

    def read(self, tree: Any) -> Row:
        try:
            custom_id, result = tree["custom_id"], tree["result"]
            kind = result["type"]
            if kind in ("expired", "canceled"):
                return Row(custom_id, is_unasked=True)
            if kind == "succeeded":
                return Row(custom_id, reply=result["message"])
            error = result["error"]
            code, message = error_text(error)
        except (KeyError, TypeError, AttributeError):
            raise NotAnAnswer("no result of a batch") from None
        if code == "invalid_request_error":
            return Row(custom_id, failed=_declined(400, error))
        return Row(custom_id, failed=_failed(code or "error", message))


def _openai_batch(tree: Mapping[str, Any]) -> Batch:
    counts = tree.get("request_counts") or {}
    status = str(tree["status"])
    errors = (tree.get("errors") or {}).get("data") or []
    told = "; ".join(": ".join(error_text(error)) for error in errors[:3])
    is_ended = status in ("completed", "failed", "expired", "cancelled")
    outputs = [tree.get(name) for name in ("output_file_id", "error_file_id")]
    return Batch(
        str(tree["id"]),
        count(counts.get("total")),
        count(counts.get("completed")) + count(counts.get("failed")),
        float(tree["created_at"]),
        is_ended,
        tuple(str(output) for output in outputs if output and is_ended),
        told or ("" if status == "completed" else status),
        str((tree.get("metadata") or {}).get(_INTENT, "")),
    )


def _anthropic_batch(tree: Mapping[str, Any]) -> Batch:
    counts = {name: count(number) for name, number in tree["request_counts"].items()}
    total, is_ended = sum(counts.values()), tree["processing_status"] == "ended"
    lost = [f"{n:,} {name}" for name in ("expired", "canceled") if (n := counts.get(name, 0))]
    return Batch(
        str(tree["id"]),
        total,
        total - counts.get("processing", 0),
        datetime.datetime.fromisoformat(tree["created_at"]).timestamp(),
        is_ended,
        (str(tree["id"]),) if is_ended else (),
        ", ".join(lost),
    )


async def _ask(client: Client, request: Request, read: Callable[[Any], T]) -> T:
    """What a call returns; whatever refuses it refuses the run."""

    async def read_body(data: bytes) -> T:
        try:
            return read(read_json(data))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise NotAnAnswer("no object of a batch interface") from None

    reply, found = await client.exchange(request._replace(read=read_body))
    if found is None:
        raise TeacherRefused(
            f"{client.host} answered {reply.status} to a call of its batch interface: "
            f"{client.message(reply)}. teacher.batch: false asks without batches"
        )
    return found


async def _pages(
    client: Client, url: str, after: str, read: Callable[[Any], Batch], moment: float
) -> list[Batch]:
    """The pages of a list, newest first, as far back as that moment."""

    def read_page(tree: Any) -> tuple[list[Batch], bool]:
        return [read(each) for each in tree["data"]], bool(tree.get("has_more"))

    found: list[Batch] = []
    last = ""
    while True:
        place = f"{url}?limit={_PAGE}" + (f"&{after}={last}" if last else "")
        some, has_more = await _ask(client, Request("GET", place, _WHAT), read_page)
        found += [batch for batch in some if batch.created_at >= moment]
        if not (some and has_more) or some[-1].created_at < moment:
            return found
        last = some[-1].id


async def _fetch(client: Client, url: str, file: Path) -> None:
    request = Request("GET", url, _WHAT, save_to=file, seconds=_TRANSFER_SECONDS)
    reply, _ = await client.exchange(request)
    if reply.status != 200:
        raise TeacherRefused(
            f"{client.host} answered {reply.status} where the results of a batch should be: "
            f"{client.message(reply)}"
        )


def _declined(status: int, body: Any) -> Answer:
    code, message = error_text(body)
    return declined(status, encode_body(body), f"{code}: {message}" if code else message)


def _failed(code: str, message: str) -> Answer:
    return Answer(finish_reason="error", error=named(Failure.BATCH_ERROR, f"{code}: {message}"))
