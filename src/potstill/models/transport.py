"""One exchange over HTTP: a pooled session, no redirect followed, and a body that has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO
from urllib.parse import urlsplit

import aiohttp

from potstill.errors import TeacherError
from potstill.models.failures import Failure, gave_up

_CONNECT_SECONDS = 30.0
_LARGEST_BYTES = 64 * 2**20


class Reply:
    """Status, headers and body of one exchange."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, seconds: float):
        self.status, self.headers, self.body, self.seconds = status, headers, body, seconds
        self.num_unread = 0
        """Attempts before this one that may have been paid for, and brought nothing."""

        self.num_resent = 0
        """Times that it was sent before, into a connection that the server had closed."""


class _Sent:
    """How far one request has come."""

    is_reused = False
    """Whether its connection had carried another exchange."""

    has_begun = False
    """Whether a reply has begun."""


class Transport:
    """Connections to endpoints, kept open between requests; it follows a change of event loop.

    Args:
        timeout_seconds: For one exchange from connecting to the last byte, however slowly the
            bytes come.
        largest_bytes: Longest body, unpacked.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        largest_bytes: int = _LARGEST_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=_CONNECT_SECONDS)
        self._largest_bytes = largest_bytes
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | Path | None,
        *,
        save_to: Path | None = None,
        seconds: float | None = None,
    ) -> Reply:
        """Sends one request and reads the whole reply, whatever its status.

        Args:
            data: The body, or the file that it is in.
            save_to: File for the body of a reply with status 200, however long that is; the
                reply itself has none then.
            seconds: For this exchange, in place of timeout_seconds.

        Raises:
            TeacherError: If the body is too long; asking again would bring the same.
            aiohttp.ClientError, TimeoutError, OSError: If nothing whole came back.
        """
        if isinstance(data, Path):
            with data.open("rb") as file:
                return await self._exchange(method, url, headers, file, save_to, seconds)
        return await self._exchange(method, url, headers, data, save_to, seconds)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None,
        save_to: Path | None,
        seconds: float | None,
    ) -> Reply:
        started = self._clock()
        limit = {"timeout": aiohttp.ClientTimeout(total=seconds)} if seconds else {}
        async with self._open_session().request(
            method, url, data=body, headers=headers, allow_redirects=False, **limit
        ) as response:
            if save_to is not None and response.status == 200:
                with save_to.open("wb") as file:
                    async for chunk in response.content.iter_chunked(2**16):
                        file.write(chunk)
                return Reply(response.status, response.headers, b"", self._clock() - started)
            chunks, size = [], 0
            async for chunk in response.content.iter_chunked(2**16):
                chunks.append(chunk)
                size += len(chunk)
                if size > self._largest_bytes:
                    # Not released to the pool: the rest would have to be read first.
                    response.close()
                    raise _too_large(url, self._largest_bytes)
            took = self._clock() - started
            return Reply(response.status, response.headers, b"".join(chunks), took)

    async def stream(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        on_line: Callable[[bytes], None],
    ) -> Reply:
        """Sends a request and hands on each line of a reply with status 200 as it arrives.

        Packing is refused: it would hold lines back until enough of them are there. A server may
        close a connection that it promised to keep, llama.cpp's does so after every stream; whoever
        asks at that moment finds out by sending into it. Such a request is sent once more at once,
        over a new connection, and never when a reply had begun.

        Returns:
            A reply that has a body only where its status is another.

        Raises: As `send`.
        """
        started, sent = self._clock(), _Sent()
        headers = {**headers, "Accept-Encoding": "identity"}
        try:
            async with self._new_session(self._open_session().connector, trace=True) as session:
                return await self._read_lines(session, url, headers, body, on_line, started, sent)
        except aiohttp.ClientConnectionError:
            if sent.has_begun or not sent.is_reused:
                raise
        # Not from the pool: other connections there may be as dead as this one was.
        async with self._new_session() as session:
            reply = await self._read_lines(session, url, headers, body, on_line, started, _Sent())
        reply.num_resent = 1
        return reply

    async def _read_lines(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        on_line: Callable[[bytes], None],
        started: float,
        sent: _Sent,
    ) -> Reply:
        async with session.post(
            url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=sent
        ) as response:
            sent.has_begun = True
            size, rest = 0, b""
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self._largest_bytes:
                    response.close()
                    raise _too_large(url, self._largest_bytes)
                rest += chunk
                if response.status == 200:
                    *lines, rest = rest.split(b"\n")
                    for line in lines:
                        on_line(line.rstrip(b"\r"))
            if response.status == 200 and rest:
                on_line(rest)
            took = self._clock() - started
            left = b"" if response.status == 200 else rest
            return Reply(response.status, response.headers, left, took)

    async def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            self._session, self._loop = self._new_session(), loop
        return self._session

    def _new_session(
        self, connector: aiohttp.BaseConnector | None = None, *, trace: bool = False
    ) -> aiohttp.ClientSession:
        """A session on connections of its own, or on those of another.

        Args:
            trace: Whether reused connections are noted, which costs each request some time.
        """
        config = aiohttp.TraceConfig()
        config.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            connector=connector or aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            connector_owner=connector is None,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[config] if trace else None,
        )


async def _note_reuse(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    if isinstance(context.trace_request_ctx, _Sent):
        context.trace_request_ctx.is_reused = True


def _too_large(url: str, largest_bytes: int) -> TeacherError:
    return gave_up(
        Failure.TOO_LARGE,
        f"{urlsplit(url).netloc} sent more than {largest_bytes >> 20} MiB for one answer",
        num_unread=1,
    )
