"""A server on loopback that does to a connection what a script says, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fake_endpoint import completion

Step = Callable[[asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes, status: str = "200 OK", **headers: str) -> Step:
    """Sends a whole body."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(status, **{"Content-Length": str(len(data)), **headers}) + data)

    return step


def answers(tree: Any = None) -> Step:
    """Sends a chat completion."""
    return says(json.dumps(completion() if tree is None else tree).encode())


def cuts(data: bytes) -> Step:
    """Promises twice as much as it sends."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(_head("200 OK", **{"Content-Length": str(2 * len(data))}) + data)

    return step


def resets(data: bytes = b"") -> Step:
    """Sends something, perhaps, and breaks the connection off with RST."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return step


def hangs(data: bytes = b"") -> Step:
    """Sends something, perhaps, and then nothing more."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.wait_closed()

    return step


def drips(seconds: float) -> Step:
    """Sends a body one byte at a time, for ever."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(_head("200 OK", **{"Content-Length": "1000000"}))
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(seconds)

    return step


def floods(num_bytes: int, sent: list[int]) -> Step:
    """Sends a body of so many bytes as fast as it is taken; counts what was taken in `sent`."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(_head("200 OK", **{"Content-Length": str(num_bytes)}))
        sent.append(0)
        while sent[-1] < num_bytes:
            writer.write(b" " * 2**16)
            await writer.drain()
            sent[-1] += 2**16

    return step


def bombs(num_bytes: int) -> Step:
    """Sends a small body that unpacks to so many bytes."""
    data = gzip.compress(b" " * num_bytes, compresslevel=1)
    return says(data, **{"Content-Encoding": "gzip"})


def redirects(target: str) -> Step:
    return says(b"", "302 Found", Location=target)


def _head(status: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


class FaultServer:
    """Treats each request with the next step of the script, and answers once it is used up."""

    def __init__(self, *script: Step):
        self.script = list(script)
        self.num_requests = 0
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(1)
                if head == b"\x16":  # somebody begins to speak TLS
                    await says(b"speak HTTP", "400 Bad Request")(writer)
                    break
                head += await reader.readuntil(b"\r\n\r\n")
                lengths = [
                    line.split(b":")[1]
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                self.num_requests += 1
                step = self.step_for(body)
                await step(writer)
                await writer.drain()
                if step.__qualname__.split(".")[0] not in ("says", "answers"):
                    break
        writer.close()

    def step_for(self, body: bytes) -> Step:
        """What is done to a request."""
        return self.script.pop(0) if self.script else answers()


@contextlib.asynccontextmanager
async def serving(fault: FaultServer) -> AsyncIterator[FaultServer]:
    """Runs it on a free loopback port."""
    server = await asyncio.start_server(fault.handle, "127.0.0.1", 0)
    fault.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fault
    finally:
        server.close()
