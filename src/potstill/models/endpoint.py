"""An OpenAI-compatible endpoint as a chat model: one pooled client that retries with care."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import orjson
from pydantic import SecretStr

from potstill.config import PriceConfig
from potstill.errors import ConfigError, TeacherError, TeacherRefused
from potstill.models.chat_format import (
    Answer,
    NotAnAnswer,
    error_text,
    read_answer,
    read_json,
    request_body,
)
from potstill.models.fingerprint import request_fingerprint
from potstill.models.retry import MOST_ATTEMPTS, MOST_BUSY_SECONDS, RETRIED, wait_seconds
from potstill.models.secret import Key
from potstill.types import Message, Record, Response, Sampling

_LARGEST_BODY_BYTES = 64 * 2**20
_LARGEST_ERROR_BYTES = 4096
_OUT_OF_MONEY = ("insufficient_quota", "billing", "insufficient_balance", "credit balance")
_TOO_LONG = ("context length", "context_length", "maximum context", "context size", "too long")


class _Reply:
    """Status, headers and body of one HTTP exchange."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, seconds: float):
        self.status, self.headers, self.body, self.seconds = status, headers, body, seconds


class EndpointModel:
    """Asks a model behind an OpenAI-compatible URL: a `ChatModel`.

    Args:
        url: Base URL; `/v1` and `/chat/completions` may be there or not.
        model: What the endpoint calls the model; asked from the endpoint where it has only one.
        key: env:NAME, file:PATH, or a SecretStr. It is in no message, log or repr.
        price: Money for a million tokens; makes `Response.cost`.
        clock, sleep, jitter: Time and chance, for tests.

    Raises:
        ConfigError: If the URL is none, or holds a password.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | SecretStr | None = None,
        name: str | None = None,
        price: PriceConfig | None = None,
        timeout_seconds: float = 120.0,
        max_in_flight: int = 20,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ):
        self._base, self._query = _base_url(url)
        self.host = urlsplit(self._base).netloc
        self.model = model
        self.name = name or model or self.host
        self.price = price
        self.max_in_flight = max_in_flight
        self.num_retries = 0
        """Requests that were sent again, over the model's life."""

        self._key = Key(key)
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=30)
        self._clock, self._wall_clock, self._sleep, self._jitter = clock, wall_clock, sleep, jitter
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quirks: set[str] = set()

    def __repr__(self) -> str:
        return f"EndpointModel({self._base!r}, {self.model!r})"

    @property
    def identity(self) -> str:
        """Where it is and what it is called there: what answers can be re-used for."""
        return f"{self._base} {self.model or ''}"

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        return {"engine": "endpoint", "host": self.host, "model": self.model}

    async def prepare(self) -> None:
        """Finds out the model's name where none was given.

        Raises:
            ConfigError: If the endpoint has no model or several.
            TeacherRefused, TeacherError: As `respond`.
        """
        if self.model is not None:
            return
        reply = await self._exchange("GET", "/models", None)
        ids: list[str] = []
        with contextlib.suppress(NotAnAnswer, KeyError, TypeError):
            ids = [str(entry["id"]) for entry in read_json(reply.body)["data"]]
        if len(ids) != 1:
            some = f"has {len(ids)}: {', '.join(ids[:5])}" if ids else "names none"
            some += " …" if len(ids) > 5 else ""
            raise ConfigError(
                f"{self.host} {some}; say which one is meant with teacher.model (--model)"
            )
        self.model = ids[0]
        self.name = self.model if self.name == self.host else self.name

    async def dry_call(self, *, top_logprobs: int = 0) -> None:
        """One tiny request that finds what would stop a run: key, URL, name, log-probabilities.

        Raises:
            ConfigError: The key is absent, or the model's name is.
            TeacherRefused: The endpoint refuses key, URL or model, or tells no probabilities.
            TeacherError: It does not answer at all.
        """
        hello = Record(id="dry-call", messages=(Message(role="user", content="Say yes."),))
        sampling = Sampling(max_new_tokens=16, top_logprobs=top_logprobs)
        response = await self.respond(hello, sampling)
        if response.finish_reason == "error":
            raise TeacherRefused(
                f"{self.host} does not answer a tiny request to {self.model}: {response.error}"
            )

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`; what is wrong with this prompt alone becomes an error row.

        Raises:
            TeacherRefused: Key, URL, model or quota: the next prompt would fare no better.
            TeacherError: No answer after all retries.
        """
        await self.prepare()
        body = request_body(self.model or "", record.messages, sampling)
        answer, seconds = await self._ask(body, sampling.top_logprobs)
        if sampling.top_logprobs and answer.text and not answer.logprobs and not answer.error:
            raise TeacherRefused(
                f"{self.host} tells no log-probabilities of {self.model}, and "
                f"generation.logprobs = {sampling.top_logprobs} asks for them; set it to 0, or use "
                f"an endpoint that does"
            )
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            text=self._key.hide(answer.text),
            reasoning=self._key.hide(answer.reasoning),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=answer.num_prompt_tokens,
            num_new_tokens=answer.num_new_tokens,
            seconds=seconds,
            cost=self._cost(answer),
            model=self.model or self.name,
            fingerprint=request_fingerprint(self.identity, record.messages, sampling),
            error=answer.error,
            logprobs=answer.logprobs,
        )

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()

    async def _ask(self, body: dict[str, Any], top_logprobs: int) -> tuple[Answer, float]:
        """Sends until there is an answer: malformed 200s count as failed attempts too."""
        for attempt in range(1, MOST_ATTEMPTS + 1):
            reply = await self._exchange("POST", "/chat/completions", body)
            if reply.status != 200:
                return self._declined(reply), reply.seconds
            try:
                answer = read_answer(read_json(reply.body), top_logprobs=top_logprobs)
                return answer, reply.seconds
            except NotAnAnswer as error:
                last = self._key.hide(str(error))
            if attempt < MOST_ATTEMPTS:
                await self._pause(attempt, {})
        raise TeacherError(
            f"{self.host} answered {MOST_ATTEMPTS} times with status 200 and no answer: {last}"
        )

    async def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> _Reply:
        """One exchange that went through, with retries of what may pass.

        Returns:
            A reply with status 200, or with a 4xx that is about this request alone.
        """
        attempt, busy_seconds = 0, 0.0
        while True:
            headers: Mapping[str, str] = {}
            try:
                reply = await self._send(method, path, self._adapted(body))
            except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
                raise TeacherRefused(f"{self.host} cannot be reached: {error}") from None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                attempt += 1
                last = f"{type(error).__name__} {self._key.hide(str(error))}".strip()
            else:
                if self._learns_quirk(reply):
                    continue
                self._refuse_for_good(reply)
                if reply.status not in RETRIED:
                    return reply
                headers = reply.headers
                last = f"status {reply.status}: {self._message(reply)}"
                attempt += reply.status != 429
            if attempt >= MOST_ATTEMPTS:
                raise TeacherError(f"{self.host} failed {attempt} times; the last time: {last}")
            busy_seconds += await self._pause(max(1, attempt), headers)
            if busy_seconds > MOST_BUSY_SECONDS:
                raise TeacherError(
                    f"{self.host} was busy for {busy_seconds:,.0f} seconds; the last time: {last}. "
                    f"Lower generation.max_in_flight (now {self.max_in_flight})"
                )

    async def _pause(self, attempt: int, headers: Mapping[str, str]) -> float:
        self.num_retries += 1
        seconds = wait_seconds(
            attempt, headers, jitter=self._jitter(), wall_clock=self._wall_clock()
        )
        await self._sleep(seconds)
        return seconds

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> _Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key.exists:
            headers["Authorization"] = f"Bearer {self._key.value()}"
        url = self._base + path + (f"?{self._query}" if self._query else "")
        data = None if body is None else _encode(body)
        started = self._clock()
        async with self._open_session().request(
            method, url, data=data, headers=headers, allow_redirects=False
        ) as response:
            chunks, size = [], 0
            async for chunk in response.content.iter_chunked(2**16):
                chunks.append(chunk)
                size += len(chunk)
                if size > _LARGEST_BODY_BYTES:
                    raise TeacherError(
                        f"{self.host} sent more than {_LARGEST_BODY_BYTES >> 20} MiB for one answer"
                    )
            seconds = self._clock() - started
            return _Reply(response.status, response.headers, b"".join(chunks), seconds)

    def _open_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
            self._loop = loop
        return self._session

    def _adapted(self, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """The body as this endpoint was found to want it."""
        if body is None or not self._quirks:
            return body
        body = dict(body)
        if "max_completion_tokens" in self._quirks:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if "seed" in self._quirks:
            body.pop("seed", None)
        return body

    def _learns_quirk(self, reply: _Reply) -> bool:
        """Whether a refusal was about a field's name, which is done differently from now on."""
        if reply.status not in (400, 422):
            return False
        text = self._message(reply).lower()
        for quirk in ("max_completion_tokens", "seed"):
            if quirk in text and quirk not in self._quirks:
                self._quirks.add(quirk)
                return True
        return False

    def _refuse_for_good(self, reply: _Reply) -> None:
        status = reply.status
        if status < 300:
            return
        text = self._message(reply)
        where = f"{self.host} answered {status}"
        if status < 400:
            target = urlsplit(reply.headers.get("Location", ""))._replace(query="").geturl()
            raise TeacherRefused(
                f"{where}, a redirect to {self._key.hide(target)!r}, which is not followed: the "
                f"key would go along. Give the right address in teacher.url"
            )
        if status in (401, 403):
            raise TeacherRefused(
                f"{where}: it refuses {self._key.label} ({text}). Check the key, and whether it "
                f"may use {self.model}; teacher.key names the place of the key"
            )
        if status in (404, 405):
            raise TeacherRefused(
                f"{where}: there is no {self.model or 'list of models'} at {self._base} ({text}). "
                f"Check teacher.url, which ends in /v1 for most endpoints, and teacher.model"
            )
        lower = text.lower()
        if status == 402 or (status in (400, 429) and any(word in lower for word in _OUT_OF_MONEY)):
            raise TeacherRefused(
                f"{where}: the account of {self._key.label} has no quota left ({text}). Fill it "
                f"up and run the same command again; all answers so far are kept"
            )

    def _declined(self, reply: _Reply) -> Answer:
        text = self._message(reply)
        is_long = reply.status == 413 or any(words in text.lower() for words in _TOO_LONG)
        kind = "too_long" if is_long else "declined"
        return Answer(finish_reason="error", error=f"{kind}: status {reply.status}: {text}")

    def _message(self, reply: _Reply) -> str:
        """What an error body says, short and without the key."""
        try:
            code, message = error_text(read_json(reply.body))
            text = f"{code}: {message}" if code and code not in message else message
        except NotAnAnswer:
            text = reply.body[:_LARGEST_ERROR_BYTES].decode("utf-8", "replace")
        # Hidden before it is cut, so that no half of a key is left at the end.
        text = " ".join(self._key.hide(text).split())
        return text if len(text) <= 500 else f"{text[:499]}…"

    def _cost(self, answer: Answer) -> float | None:
        if self.price is None or not answer.has_usage:
            return None
        paid = answer.num_prompt_tokens * self.price.input
        return (paid + answer.num_new_tokens * self.price.output) / 1e6


def _base_url(url: str) -> tuple[str, str]:
    """(scheme://host/path without /chat/completions, query) of a URL as people write it."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not the URL of an endpoint, such as https://host/v1")
    if parts.username or parts.password:
        raise ConfigError(
            f"the URL of {parts.hostname} holds a user name or a password; leave them out and name "
            f"the key's place with teacher.key (env:NAME)"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    base = urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))
    return base, parts.query


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except (orjson.JSONEncodeError, TypeError):
        # Half a surrogate pair in the user's data has no UTF-8; it is asked as a question mark.
        messages = [
            {**m, "content": m["content"].encode("utf-8", "replace").decode()}
            for m in body["messages"]
        ]
        return orjson.dumps({**body, "messages": messages})
