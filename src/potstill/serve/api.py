"""OpenAI's interface: /v1/chat/completions, /v1/completions, /v1/models; /health, /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from potstill.models.chat_format import NotAnAnswer, read_json
from potstill.models.secret import Key
from potstill.protocols import ChatModel
from potstill.serve.answering import Answerer, Gate, Piece
from potstill.serve.asked import Asked, Defaults, read_chat, read_completion
from potstill.serve.metrics import Metrics, Timer
from potstill.serve.refusals import ClientGone, Refusal, refusal_of
from potstill.serve.told import DONE, Form, events
from potstill.serve.watching import Exchange, Watcher

log = logging.getLogger(__name__)

_MOST_BYTES = 8 * 2**20
_FALLBACK_HEADER = "X-Potstill-Fallback"


class House(NamedTuple):
    """Everything that a server has."""

    model: ChatModel
    answerer: Answerer
    gate: Gate
    metrics: Metrics
    defaults: Defaults
    key: Key
    watchers: tuple[Watcher, ...]
    hosts: frozenset[str]
    """Names under which the server may be asked; empty is any."""


def build_app(house: House, close: Callable[[], Any]) -> FastAPI:
    """The web application.

    Args:
        close: Awaited once no request is open any more.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await close()

    # The pages that FastAPI would add load scripts from the network.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        is_alive = getattr(house.model, "is_alive", True)
        tree = {"status": "ok" if is_alive else "the engine has ended"}
        return _json(tree, 200 if is_alive else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _refuse_strangers(house, request)
        return Response(house.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _refuse_strangers(house, request)
        entry = {"id": house.answerer.name, "object": "model", "created": created}
        return _json({"object": "list", "data": [{**entry, "owned_by": "potstill"}]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        _refuse_strangers(house, request)
        house.answerer.refuse_another_name(name)
        entry = {"id": name, "object": "model", "created": created}
        return _json({**entry, "owned_by": "potstill"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(house, request, "chat", read_chat)

    @app.post("/v1/completions")
    async def completion(request: Request) -> Response:
        return await _answered(house, request, "completions", read_completion)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return _json(error.tree, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path} is not here: {error.detail}"
        return _json(Refusal(error.status_code, what).tree, error.status_code)

    return app


async def _answered(
    house: House, request: Request, endpoint: str, read: Callable[[Any, Defaults], Asked]
) -> Response:
    """The reply to a request for an answer; it is counted however it ends."""
    timer = Timer(house.metrics, endpoint)
    try:
        _refuse_strangers(house, request)
        asked = read(await _body(request), house.defaults)
        house.answerer.refuse_what_it_cannot(asked)
        places = contextlib.ExitStack()
        places.enter_context(house.gate.passed(len(asked.parts)))
        try:
            kind = "chatcmpl" if asked.is_chat else "cmpl"
            exchange = Exchange(f"{kind}-{uuid.uuid4().hex}", asked, house.answerer.name)
            form = Form(
                exchange.id,
                is_chat=asked.is_chat,
                logprobs=asked.logprobs,
                names_ids=asked.names_ids,
                spell=house.answerer.spell,
            )
            pieces = house.answerer.pieces(asked)
            reply = _streamed if asked.is_streamed else _whole
            return await reply(house, request, form, exchange, timer, pieces, places)
        except BaseException:
            places.close()
            raise
    except asyncio.CancelledError:
        timer.end(503)
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal.code == "internal_error":
            log.exception("a request failed")
        timer.end(refusal.status)
        raise refusal from None


async def _whole(
    house: House,
    request: Request,
    form: Form,
    exchange: Exchange,
    timer: Timer,
    pieces: AsyncIterator[Piece],
    places: contextlib.ExitStack,
) -> Response:
    async def collect() -> None:
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if piece.response is not None:
                    exchange.responses[piece.place] = piece.response

    with places:
        await _unless_gone(request, collect())
    responses = exchange.in_order
    timer.end(200, responses, exchange.asked.num_each)
    _tell(house, exchange, timer)
    headers = _headers(exchange)
    return _json(form.whole(responses, exchange.asked.num_each), 200, headers)


async def _streamed(
    house: House,
    request: Request,
    form: Form,
    exchange: Exchange,
    timer: Timer,
    pieces: AsyncIterator[Piece],
    places: contextlib.ExitStack,
) -> Response:
    # What fails before the first text is a status, as it is without a stream.
    first = await _unless_gone(request, anext(pieces))
    if first.response is not None:
        exchange.responses[first.place] = first.response

    stream = _Stream(form, exchange, timer)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield stream.event(first)
            async for piece in pieces:
                yield stream.event(piece)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == "internal_error":
                log.exception("a stream failed")
            timer.end(refusal.status)
            yield events([refusal.tree])
            return
        timer.end(200, exchange.in_order, exchange.asked.num_each)
        yield stream.end()
        _tell(house, exchange, timer)

    async def end() -> None:
        timer.end(499)
        places.close()
        await pieces.aclose()  # type: ignore[attr-defined]

    return _Events(body(), end, _headers(exchange))


class _Events(StreamingResponse):
    """Server-sent events; `end` is awaited however they end, also where none was sent."""

    def __init__(self, body: AsyncIterator[bytes], end: Callable[[], Any], headers: dict[str, str]):
        headers = {"Cache-Control": "no-store", **headers}
        super().__init__(body, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()


class _Stream:
    """The events of one stream: how each answer begins, goes on and ends."""

    def __init__(self, form: Form, exchange: Exchange, timer: Timer):
        self._form, self._exchange, self._timer = form, exchange, timer
        self._told: dict[int, list[str]] = {}

    def event(self, piece: Piece) -> bytes:
        """What one piece is told as."""
        self._timer.saw_text()
        place, response = piece.place, piece.response
        model = response.model if response is not None else self._exchange.model
        trees = []
        if place not in self._told:
            self._told[place] = []
            trees += self._form.opening(place, model)
        if response is None:
            self._told[place].append(piece.text)
            trees.append(self._form.piece(place, piece.text, model))
        else:
            self._exchange.responses[place] = response
            told = "".join(self._told[place])
            rest = response.text[len(told) :] if response.text.startswith(told) else ""
            trees += self._form.closing(place, response, rest)
        return events(trees)

    def end(self) -> bytes:
        """What comes after all answers."""
        asked = self._exchange.asked
        if not asked.tells_usage:
            return DONE
        return events([self._form.counted(self._exchange.in_order, asked.num_each)]) + DONE


def _tell(house: House, exchange: Exchange, timer: Timer) -> None:
    """Lets those look who look after the answer was given; none of them keeps anybody waiting."""
    for watcher in house.watchers:
        watcher.saw(exchange, timer.seconds, timer.first_seconds)


def _headers(exchange: Exchange) -> dict[str, str]:
    others = {response.model for response in exchange.in_order} - {exchange.model}
    return {_FALLBACK_HEADER: ", ".join(sorted(others))} if others else {}


async def _unless_gone(request: Request, work: Any) -> Any:
    """What the work gives; it is cancelled where the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _refuse_strangers(house: House, request: Request) -> None:
    """Raises Refusal for a wrong key, and for a page of a browser that found its way here."""
    host = request.headers.get("host", "").rpartition(":")
    name = host[0] if host[2].isdigit() else "".join(host)
    if house.hosts and name.strip("[]").lower() not in house.hosts:
        raise Refusal(403, f"this server is not called {name!r}", code="wrong_host")
    if not house.key.exists:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(
        given.strip().encode(), house.key.value().encode()
    ):
        raise Refusal(
            401,
            "the key is absent or wrong; send it as Authorization: Bearer KEY",
            code="invalid_api_key",
        )


async def _body(request: Request) -> Any:
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        # A browser sends other kinds to any server without asking it first.
        raise Refusal(415, "send the request as Content-Type: application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _MOST_BYTES:
            raise Refusal(413, f"the request is larger than {_MOST_BYTES // 2**20} MB")
    try:
        return read_json(bytes(data))
    except NotAnAnswer as error:
        raise Refusal(400, f"the body is {error}") from None


def _json(tree: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    data = orjson.dumps(tree)
    return Response(data, status, headers=headers, media_type="application/json")
