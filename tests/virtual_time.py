"""Hours of waiting in milliseconds: an event loop that jumps, and endpoints that live in it."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fake_endpoint import completion

from potstill.models.endpoint import EndpointModel
from potstill.models.transport import Reply

START = 1_700_000_000.0
"""Seconds since 1970 at virtual second 0."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes to the next timer at once. For tasks without sockets."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("every task waits for another one")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes a hundred times as fast. For tasks that wait for threads."""

    def __init__(self) -> None:
        super().__init__(_Hurried())

    def time(self) -> float:
        return _HURRY * super().time()


_HURRY = 100.0


class _Hurried(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout and timeout / _HURRY)


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs it in virtual time, from second 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    """The virtual second."""
    return asyncio.get_running_loop().time()


def reply(status: int = 200, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer, or whatever else a server says."""
    if body is None:
        body = completion() if status == 200 else {"error": {"message": "no"}}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, dict(headers or {}), data, 0.0)


class VirtualEndpoint:
    """A transport without a network: answers after `seconds`, as `serve` says.

    Args:
        serve: Called with the body of each request when it arrives; returns a `Reply`, or an
            exception to raise.
    """

    def __init__(self, serve: Callable[[dict], Any] = lambda body: reply(), seconds: float = 1.0):
        self.serve, self.seconds = serve, seconds
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.num_open = self.most_open = 0

    async def send(self, method: str, url: str, headers: Any, data: bytes | None) -> Reply:
        self.sent.append(now())
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            outcome = self.serve(json.loads(data or b"{}"))
            await asyncio.sleep(self.seconds)
        finally:
            self.num_open -= 1
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.status == 200:
            self.answered.append(now())
        return outcome

    async def close(self) -> None: ...

    def model(self, **settings: Any) -> EndpointModel:
        """An endpoint model that asks it in virtual time."""
        loop = asyncio.get_running_loop()
        return EndpointModel(
            "http://virtual/v1",
            "fake",
            clock=loop.time,
            transport=self,
            **{"jitter": lambda: 0.5, "wall_clock": lambda: START + loop.time(), **settings},
        )
