"""Asks an endpoint until it has answered: what is tried again, what ends the run, what is said."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import orjson

from potstill.errors import TeacherError, TeacherRefused
from potstill.models.admission import START, Admission, Slot
from potstill.models.chat_format import Answer, NotAnAnswer, error_text, is_filtered, read_json
from potstill.models.failures import Failure, gave_up, num_unread_of, of_status
from potstill.models.retry import (
    MOST_ATTEMPTS,
    MOST_BUSY_SECONDS,
    RETRIED,
    RetryBudget,
    retry_after_seconds,
    wait_seconds,
)
from potstill.models.secret import Key
from potstill.models.transport import Reply, Transport
from potstill.models.wire import Wire

_OUT_OF_MONEY = (
    *("insufficient_quota", "billing", "insufficient_balance", "credit balance"),
    *("spend_limit", "usage limits"),
)


class Request(NamedTuple):
    """What an endpoint is sent, and how the reply is read."""

    method: str
    url: str
    what: str
    """What messages call the thing that is asked: the model's name."""

    make_body: Callable[[], dict[str, Any]] | None = None
    """Called for each attempt: what a refusal teaches is heeded by the next."""

    read: Callable[[bytes], Awaitable[Any]] | None = None
    """Reads a body of status 200; where it is no answer, the attempt has failed."""

    num_tokens: int = 0
    """What it may cost, prompt and answer."""

    num_new_tokens: int = 0
    """Of these, what the answer may."""

    send_file: Path | None = None
    """The body, in place of what `make_body` makes."""

    save_to: Path | None = None
    """Where the body of a reply with status 200 goes, unread."""

    seconds: float | None = None
    """How long it may take, in place of the client's time-out."""

    headers: Mapping[str, str] = {}
    """Beside those of the API, or in their place."""

    is_repeatable: bool = True
    """Whether a second one does no harm where nobody knows what became of the first."""


class _Fault(NamedTuple):
    """Why an attempt failed that may be made again."""

    text: str
    reason: Failure
    headers: Mapping[str, str] = {}
    may_be_paid: bool = False
    """The request arrived, as far as anyone knows, and nothing that can be read came back."""

    @property
    def is_busy(self) -> bool:
        """Whether it was refused for speed (429)."""
        return self.reason == Failure.BUSY


class Client:
    """One endpoint's transport, key, limits and patience.

    Args:
        requests_per_minute, tokens_per_minute: Limits of the endpoint, learned from its headers
            where None.
        max_in_flight: Never more requests open than this; fewer at first, see `Admission`.
        start_in_flight: How many at first; for an engine that nobody else asks.
        clock, wall_clock, sleep, jitter, transport: Time, chance and network, for tests.
    """

    def __init__(
        self,
        wire: Wire,
        key: Key,
        *,
        timeout_seconds: float = 120.0,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_in_flight: int = 256,
        start_in_flight: int = START,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        transport: Transport | None = None,
    ):
        self.host = urlsplit(wire.base).netloc
        self.max_in_flight = max_in_flight
        self.num_retries = 0
        """Requests that were sent again, over the client's life."""

        self._wire = wire
        self._key = key
        self._wall_clock, self._sleep, self._jitter = wall_clock, sleep, jitter
        self._budget = RetryBudget()
        self._transport = transport or Transport(timeout_seconds=timeout_seconds, clock=clock)
        self._admission = Admission(
            self.host,
            most=max_in_flight,
            start=start_in_flight,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            clock=clock,
            wall_clock=wall_clock,
            sleep=sleep,
        )

    @property
    def state(self) -> str:
        """`running`, or until when it is paused and why."""
        breaker = self._admission.breaker
        if not breaker.is_paused:
            return "running"
        seconds = breaker.seconds_to_probe()
        until = self._wall_clock() + (0 if seconds == math.inf else seconds)
        at = time.strftime("%H:%M:%S", time.localtime(until))
        return f"paused until {at}, because {breaker.reason}"

    @property
    def num_in_flight(self) -> int:
        """Requests that are open now; what waits for its turn is none."""
        return self._admission.num_open

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        await self._transport.close()

    async def exchange(self, request: Request) -> tuple[Reply, Any]:
        """One exchange that went through, with retries of what may pass.

        Returns:
            A reply with status 200 and what was read, or one with a 4xx that is about this
            request alone.

        Raises:
            TeacherRefused: Key, URL, model or quota, or nothing has gone through for hours.
            TeacherError: It failed too often.
            CancelledError: Also says how many attempts may have been paid, see `num_unread_of`.
        """
        unread: list[_Fault] = []
        try:
            reply, answer = await self._until_through(request, unread)
        except TeacherError as error:
            error.num_unread += len(unread)
            raise
        except asyncio.CancelledError as error:
            error.num_unread = num_unread_of(error) + len(unread)  # type: ignore[attr-defined]
            raise
        reply.num_unread = len(unread)
        return reply, answer

    async def stream(self, request: Request, on_line: Callable[[bytes], None]) -> Reply:
        """One attempt at an answer that comes line by line, for whoever times it.

        It waits for no slot and is not tried again: both would be our time and not the
        endpoint's. Only a field that the endpoint does not know is left out at once, and a
        connection that it had closed is replaced, see `Transport.stream`.

        Raises:
            TeacherRefused: Key, URL, model or quota.
            TeacherError: It failed.
        """
        assert request.make_body is not None
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        headers |= self._wire.headers(self._key.value())
        while True:
            body = request.make_body()
            try:
                reply = await self._transport.stream(
                    request.url, headers, encode_body(body), on_line
                )
            except NotAnAnswer as error:
                text = f"{self.host} failed: {self._key.hide(str(error))[:500]}"
                raise gave_up(Failure.UNREADABLE, text) from None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._refuse_unreachable(error)
                text = f"{type(error).__name__} {self._key.hide(str(error))}".strip()
                raise gave_up(_broken(error)[0], f"{self.host} failed: {text}") from None
            self.num_retries += reply.num_resent
            text = self.message(reply) if reply.status in (400, 422) else ""
            if not (text and self._wire.learns(body, text)):
                break
        self._refuse_for_good(reply, request.what)
        if reply.status in RETRIED:
            text = f"{self.host} failed: status {reply.status}: {self.message(reply)}"
            raise gave_up(of_status(reply.status), text)
        return reply

    async def _until_through(self, request: Request, unread: list[_Fault]) -> tuple[Reply, Any]:
        tries, attempt, busy_seconds = 0, 0, 0.0
        num_answers = self._budget.num_answers
        while True:
            async with self._admission.slot(request.num_tokens, request.num_new_tokens) as slot:
                found = await self._try(slot, request)
                if not isinstance(found, _Fault):
                    return found
                self._report(slot, found)
            if found.may_be_paid:
                unread.append(found)
            if not (request.is_repeatable or found.is_busy):
                raise gave_up(found.reason, f"{self.host} failed: {found.text}")
            tries += 1
            # Refusals for speed do not count, but those of a probe do: the last request of a
            # run may be one that the endpoint never takes.
            attempt += slot.is_probe or not found.is_busy
            if num_answers != self._budget.num_answers:
                num_answers, busy_seconds = self._budget.num_answers, 0.0  # others get through
            self._refuse_more(attempt, busy_seconds, found)
            seconds = wait_seconds(
                tries, found.headers, jitter=self._jitter(), wall_clock=self._wall_clock()
            )
            busy_seconds += seconds * found.is_busy
            self.num_retries += 1
            await self._sleep(seconds)

    async def _try(self, slot: Slot, request: Request) -> tuple[Reply, Any] | _Fault:
        """One attempt; two where a refusal taught what the endpoint calls a field."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {**self._wire.headers(self._key.value()), **request.headers}
        names = ("save_to", "seconds")
        ways = {name: value for name in names if (value := getattr(request, name))}
        while True:
            body = request.make_body() if request.make_body else None
            data = request.send_file if body is None else encode_body(body)
            try:
                reply = await self._transport.send(
                    request.method, request.url, headers, data, **ways
                )
            except asyncio.CancelledError as error:
                error.num_unread = 1  # type: ignore[attr-defined]
                raise
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._refuse_unreachable(error)
                text = f"{type(error).__name__} {self._key.hide(str(error))}".strip()
                reason, may_be_paid = _broken(error)
                return _Fault(text, reason, may_be_paid=may_be_paid)
            self._admission.learn(slot, reply.headers)
            text = self.message(reply) if body and reply.status in (400, 422) else ""
            if not (text and self._wire.learns(body, text)):
                break
        self._refuse_for_good(reply, request.what)
        if reply.status in RETRIED:
            text = f"status {reply.status}: {self.message(reply)}"
            return _Fault(text, of_status(reply.status), reply.headers)
        answer = None
        if request.read and reply.status == 200:
            try:
                answer = await request.read(reply.body)
            except NotAnAnswer as error:
                text = f"status 200 and no answer: {self._key.hide(str(error))[:500]}"
                return _Fault(text, _spoilt(reply.body), may_be_paid=True)
        self._budget.num_answers += 1
        used: tuple[int | None, int] = (None, 0)
        if isinstance(answer, Answer) and answer.has_usage:
            used = (answer.num_prompt_tokens + answer.num_new_tokens, answer.num_new_tokens)
        self._admission.answered(slot, *used)
        return reply, answer

    def _report(self, slot: Slot, fault: _Fault) -> None:
        """Tells those who wait for a slot."""
        told = retry_after_seconds(fault.headers, self._wall_clock()) or 0.0
        if fault.is_busy:
            self._admission.refused_for_speed(slot, fault.text, told)
        else:
            self._admission.failed(slot, fault.text, told)

    def _refuse_more(self, attempt: int, busy_seconds: float, fault: _Fault) -> None:
        """Gives one request up when it has failed often enough, or too many others have."""
        if attempt >= MOST_ATTEMPTS:
            text = f"{self.host} failed {attempt} times; the last time: {fault.text}"
            raise gave_up(fault.reason, text)
        if busy_seconds > MOST_BUSY_SECONDS:
            raise gave_up(
                fault.reason,
                f"{self.host} was too busy for anyone for {busy_seconds:,.0f} seconds; the last "
                f"time: {fault.text}. Lower generation.max_in_flight (now {self.max_in_flight})",
            )
        if fault.is_busy or self._admission.breaker.is_paused:
            return  # during an outage nothing is held against one request
        if self._budget.is_empty:
            raise gave_up(
                fault.reason,
                f"{self.host} failed, and was not asked again because {self._budget.num_retries:,} "
                f"other requests were for {self._budget.num_answers:,} answers: {fault.text}",
            )
        self._budget.num_retries += 1

    def _refuse_unreachable(self, error: Exception) -> None:
        """Ends the run over what waiting does not mend: addresses and certificates."""
        wrong = (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL)
        never = isinstance(error, aiohttp.ClientSSLError) and not self._budget.num_answers
        if never or isinstance(error, wrong):
            text = self._key.hide(str(error))
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                text += "; SSL_CERT_FILE=FILE names who else may vouch for a certificate"
            raise TeacherRefused(f"{self.host} cannot be reached: {text}") from None

    def _refuse_for_good(self, reply: Reply, what: str) -> None:
        status = reply.status
        if status < 300:
            return
        text = self.message(reply)
        where = f"{self.host} answered {status}"
        if status < 400:
            target = urlsplit(reply.headers.get("Location", ""))._replace(query="").geturl()
            raise TeacherRefused(
                f"{where}, a redirect to {self._key.hide(target)!r}, which is not followed: the "
                f"key would go along. Give the right address in teacher.url"
            )
        if status == 401 or (status == 403 and not is_filtered(reply.body)):
            raise TeacherRefused(
                f"{where}: it refuses {self._key.label} ({text}). Check the key, and whether it "
                f"may use {what}; teacher.key names the place of the key"
            )
        if status in (404, 405):
            raise TeacherRefused(
                f"{where}: there is no {what} at {self._wire.base} "
                f"({text}). Check teacher.url, which ends in /v1 for most endpoints, and "
                f"teacher.model"
            )
        lower = text.lower()
        if status == 402 or (status in (400, 429) and any(word in lower for word in _OUT_OF_MONEY)):
            raise TeacherRefused(
                f"{where}: the account of {self._key.label} has no quota left ({text}). Fill it "
                f"up and run the same command again; all answers so far are kept"
            )

    def message(self, reply: Reply, most: int = 500) -> str:
        """What an error body says, in so many characters and without the key."""
        try:
            code, message = error_text(read_json(reply.body))
            text = f"{code}: {message}" if code and code not in message else message
        except NotAnAnswer:
            text = reply.body.decode("utf-8", "replace")
        # Hidden before it is cut, so that no half of a key is left at the end.
        text = " ".join(self._key.hide(text).split())
        return text if len(text) <= most else f"{text[: most - 1]}…"


def _broken(error: Exception) -> tuple[Failure, bool]:
    """Why no whole reply came, and whether the request may have been answered and paid for."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return Failure.CONNECTION, False
    if isinstance(error, TimeoutError):
        return Failure.TIMEOUT, True
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failure.TRUNCATED, True
    if isinstance(error, aiohttp.ClientResponseError):
        return Failure.UNREADABLE, True
    return Failure.CONNECTION, True


def _spoilt(body: bytes) -> Failure:
    """Why a body of status 200 is no answer: JSON that has no end was cut on its way."""
    text = body.strip()
    is_cut = text.startswith(b"{") and not text.endswith(b"}")
    return Failure.TRUNCATED if is_cut else Failure.UNREADABLE


def encode_body(body: Any) -> bytes:
    """JSON as it is sent."""
    try:
        return orjson.dumps(body)
    except (orjson.JSONEncodeError, TypeError):
        # Half a surrogate pair in the user's data has no UTF-8; it is asked as a question mark.
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
