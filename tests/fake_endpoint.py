"""An OpenAI-compatible server on loopback that answers, or fails as a script says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

Step = Callable[[web.Request], Any]


def completion(text: str | None = "Yes.", **changes: Any) -> dict[str, Any]:
    """A chat completion as OpenAI writes it."""
    message = {"role": "assistant", "content": text, **changes.pop("message", {})}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": changes.pop("finish_reason", "stop"),
        "logprobs": changes.pop("logprobs", None),
    }
    tree = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    return {**tree, **changes}


class FakeEndpoint:
    """Answers each request with the next step of the script, and normally once it is used up.

    A step is (status, body) or (status, body, headers), or the word "drop" (closes the
    connection), or bytes to send as they are with status 200.
    """

    def __init__(self, *script: Any, answer: Callable[[dict], dict] | None = None):
        self.script = list(script)
        self.answer = answer or (lambda body: completion())
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["fake"]
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers))
        step = self.script.pop(0) if self.script else (200, self.answer(self.bodies[-1]))
        if step == "drop":
            request.transport.abort()
            await asyncio.sleep(0)
            return web.Response()
        if isinstance(step, bytes):
            return web.Response(body=step, content_type="application/json")
        status, body, *rest = step
        data = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=data, headers=rest[0] if rest else None)

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": i} for i in self.models]})


@contextlib.asynccontextmanager
async def serving(fake: FakeEndpoint) -> AsyncIterator[FakeEndpoint]:
    """Runs the server on a free loopback port."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", fake.handle)
    app.router.add_get("/v1/models", fake.list_models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    fake.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()
