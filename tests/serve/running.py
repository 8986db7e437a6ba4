"""A server of ours in a thread, and the official client that asks it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from openai import OpenAI

from potstill.serve.run import Server, Settings, open_door


@contextlib.contextmanager
def running(model: Any, *, settings: dict[str, Any] | None = None, **parts: Any) -> Iterator[Any]:
    """The server, which has `url`; it has ended when the block has."""
    ready = threading.Event()
    given = {"name": "student", **(settings or {})}
    door = open_door(port=0, api_key=given.pop("api_key", None))
    server = Server(model, door, Settings(**given), **parts)
    thread = threading.Thread(target=lambda: asyncio.run(server.run(lambda _: ready.set())))
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def client(server: Any, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30)


def counted(server: Any, line: str) -> float:
    """The value of one line of the metrics."""
    for text in server.metrics.text().decode().splitlines():
        if text.startswith(line + " "):
            return float(text.rpartition(" ")[2])
    raise AssertionError(f"no {line} in the metrics")
