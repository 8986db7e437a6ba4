"""Runs the server: opens what answers, listens, and ends in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import uvicorn
from pydantic import SecretStr

from potstill.errors import ConfigError
from potstill.examine.resample import wilson
from potstill.models.secret import Key
from potstill.protocols import ChatModel
from potstill.serve.answering import Answerer, Fallback, Gate
from potstill.serve.api import House, build_app
from potstill.serve.asked import MOST_LOGPROBS, Defaults
from potstill.serve.metrics import SHADOWS, Metrics
from potstill.serve.watching import Watcher
from potstill.types import Message, Record, Sampling

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that none of them writes into a closed one."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(NamedTuple):
    """How a model is served."""

    name: str
    """What the model is called in requests and answers."""

    defaults: Defaults = Defaults()
    most_open: int | None = None
    """Most answers on their way; twice as many as the model wants at once, by default."""

    grace_seconds: float = 30.0
    """How long open requests may take once the server is told to end."""

    below: float = 0.5
    """Mean probability of an answer's tokens, below which the fallback teacher answers."""


class Door(NamedTuple):
    """Where a server listens, and who is let in."""

    socket: socket.socket
    url: str
    key: Key
    hosts: frozenset[str]
    """Names under which it may be asked; empty is any."""


def open_door(host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None) -> Door:
    """Takes an address, before anything is loaded for it.

    Args:
        port: 0 is any free one.
        api_key: Where the key is that clients must send: env:NAME or file:PATH.

    Raises:
        ConfigError: If the address or the key cannot be had, or strangers could ask without one.
    """
    is_local = host in _LOOPBACK
    # Read once: a key that is absent is found now, and not by the first client.
    key = Key(api_key and SecretStr(Key(api_key).value()))
    if not is_local and not key.exists:
        raise ConfigError(
            f"on {host} everybody in the network could ask the model; demand a key with "
            f"--api-key env:NAME, or listen on 127.0.0.1"
        )
    found = _listening(host, port)
    name, number = found.getsockname()[:2]
    url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
    return Door(found, url, key, frozenset(_LOOPBACK) if is_local else frozenset())


class Server:
    """A model behind OpenAI's interface. It closes all that it is given, once it ends.

    Args:
        fallback: Answers where the model is not sure of itself.
        watchers: Look at each exchange; they count in the same metrics.
    """

    def __init__(
        self,
        model: ChatModel,
        door: Door,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        fallback: ChatModel | None = None,
        watchers: Sequence[Watcher] = (),
    ):
        self.metrics = metrics or Metrics()
        self._models = [one for one in (model, fallback) if one is not None]
        self._watchers = tuple(watchers)
        count = self.metrics.fallbacks.labels
        doubts = fallback and Fallback(fallback, settings.below, lambda what: count(what).inc())
        house = House(
            model=model,
            answerer=Answerer(model, settings.name, fallback=doubts),
            gate=Gate(settings.most_open or 2 * model.max_in_flight),
            metrics=self.metrics,
            defaults=settings.defaults,
            key=door.key,
            watchers=self._watchers,
            hosts=door.hosts,
        )
        self._socket, self.url = door.socket, door.url
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                build_app(house, self._close),
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
        )

    async def run(self, on_ready: Callable[[str], None] = lambda url: None) -> None:
        """Serves until SIGINT, SIGTERM or `stop`; open requests are finished first.

        Args:
            on_ready: Called with the server's address once it answers.

        Raises:
            TeacherError: If an engine does not start.
            ConfigError: If there is a fallback for a model that tells no probabilities.
            KeyboardInterrupt: After an orderly end by SIGINT.
        """
        try:
            await self._prepare()
        except BaseException:
            self._socket.close()
            await self._close()
            raise
        telling = asyncio.create_task(self._tell(on_ready))
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            telling.cancel()

    def summary(self) -> list[str]:
        """What is worth telling once it has ended: how often the teacher was of another mind."""
        agreed, disagreed, failed, skipped = map(self.metrics.num_shadows, SHADOWS)
        lines = []
        if compared := agreed + disagreed:
            low, high = wilson(disagreed, compared)
            lines.append(
                f"the teacher disagreed with {disagreed:,} of {compared:,} answers: "
                f"{disagreed / compared:.1%}, 95 % interval [{low:.1%}, {high:.1%}]"
            )
        if failed or skipped:
            lines.append(f"the teacher gave no answer to {failed:,}, and {skipped:,} were skipped")
        return lines

    def stop(self) -> None:
        """Asks the server to end; from any thread."""
        self._uvicorn.should_exit = True

    async def _prepare(self) -> None:
        for model in self._models:
            if (prepare := getattr(model, "prepare", None)) is not None:
                await prepare()
        if len(self._models) == 1:
            return
        hello = Record(id="hello", messages=(Message(role="user", content="Hello"),))
        sampling = Sampling(max_new_tokens=1, top_logprobs=MOST_LOGPROBS)
        if (await self._models[0].respond(hello, sampling)).logprobs is None:
            raise ConfigError(
                f"{self._models[0].name} does not tell how probable its words are, so it is not "
                f"known when the fallback should answer; leave --fallback out"
            )

    async def _tell(self, on_ready: Callable[[str], None]) -> None:
        while not self._uvicorn.started:
            await asyncio.sleep(0.01)
        on_ready(self.url)

    async def _close(self) -> None:
        for watcher in self._watchers:
            await watcher.close()
        for model in self._models:
            await model.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio send small pieces at once (TCP_NODELAY): else
    # the first text of a stream waits 40 ms for the client's word that it has the one before.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another with "
            f"--port (0 takes a free one)"
        ) from None
    return found
