"""Servers on loopback that speak OpenAI's API and Azure's form of it, or fail as a script says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
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

    def add_routes(self, router: web.UrlDispatcher) -> str:
        """Registers what it serves; returns the path of the base URL."""
        router.add_post("/v1/chat/completions", self.handle)
        router.add_get("/v1/models", self.list_models)
        return "/v1"

    def refuses(self, request: web.Request, body: dict[str, Any]) -> tuple[int, Any] | None:
        """What the protocol itself does not allow: (status, body), or None."""
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers))
        step = self.refuses(request, self.bodies[-1])
        if step is None:
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


class TellingEndpoint(FakeEndpoint):
    """Says `say(last user turn)` and tells the probabilities of its tokens, as servers do.

    Args:
        model, tokenizer: Whose probabilities; the whole model reads prompt and answer once.
        form: How tokens are called: `bytes` (OpenAI: no end token), `token_id` (vLLM) or `id`
            (llama.cpp), both with the end token.
        most: Largest `top_logprobs` that is not refused.
        spell: The tokens of an answer; the tokenizer's by default.
    """

    def __init__(self, model, tokenizer, say, *, form="bytes", most=20, spell=None):
        super().__init__(answer=self._said)
        self.model, self.tokenizer, self.say, self.form, self.most = (
            model, tokenizer, say, form, most,
        )  # fmt: skip
        self.spell = spell or (lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])

    def refuses(self, request: web.Request, body: dict[str, Any]) -> tuple[int, Any] | None:
        if body.get("top_logprobs", 0) <= self.most:
            return None
        message = f"Requested sample logprobs of {body['top_logprobs']}, max is {self.most}"
        return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}

    def _said(self, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        text = self.say(body["messages"][-1]["content"])
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        answer = [*self.spell(text), self.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *answer]])).logits[0]
        num_told = len(answer) - (self.form == "bytes")
        content = []
        for place in range(num_told):
            logprobs = logits[len(prompt) + place - 1].log_softmax(-1)
            top = logprobs.topk(body.get("top_logprobs", 0))
            entries = [
                self._entry(id_, value)
                for id_, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            told = self._entry(answer[place], logprobs[answer[place]].item())
            content.append({**told, "top_logprobs": entries})
        return completion(text, logprobs={"content": content})

    def _entry(self, id_: int, logprob: float) -> dict[str, Any]:
        letters = {letter: byte for byte, letter in _byte_letters().items()}
        piece = self.tokenizer.convert_ids_to_tokens(id_)
        is_bytes = all(letter in letters for letter in piece)
        spelled = bytes(letters[letter] for letter in piece) if is_bytes else piece.encode()
        if self.form == "token_id":
            name = f"token_id:{id_}"
            return {"token": name, "bytes": list(name.encode()), "logprob": logprob}
        entry = {"token": spelled.decode("utf-8", "replace"), "bytes": list(spelled)}
        return {**entry, "logprob": logprob, **({"id": id_} if self.form == "id" else {})}


class FakeVllm(TellingEndpoint):
    """vLLM's server: a telling endpoint that also writes text in ids, and scores what it is given.

    Args:
        tells: Whether it knows `prompt_logprobs`; others leave what they do not know.
        most_tokens: Longest prompt and answer (`--max-model-len`).
        most_scores: After so many it says that the key is no longer good.
    """

    def __init__(self, *args, tells=True, most_tokens=512, most_scores=None, **settings):
        super().__init__(*args, form="token_id", **settings)
        self.tells, self.most_tokens, self.most_scores = tells, most_tokens, most_scores
        self.scored: list[dict[str, Any]] = []
        self.num_tokenized = 0
        self.rewrite = lambda ids: ids

    def add_routes(self, router: web.UrlDispatcher) -> str:
        router.add_post("/tokenize", self.tokenize)
        router.add_post("/v1/completions", self.complete)
        return super().add_routes(router)

    async def tokenize(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.num_tokenized += 1
        if "messages" in body:
            ids = self.tokenizer.apply_chat_template(
                body["messages"],
                add_generation_prompt=body.get("add_generation_prompt", True),
                return_dict=True,
            )["input_ids"]
        else:
            special = body.get("add_special_tokens", True)
            ids = self.tokenizer(body["prompt"], add_special_tokens=special)["input_ids"]
        ids = self.rewrite(ids)
        tree = {"count": len(ids), "max_model_len": self.most_tokens, "tokens": ids}
        return web.json_response({**tree, "token_strs": None})

    async def complete(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.scored.append(body)
        if self.most_scores is not None and len(self.scored) > self.most_scores:
            await asyncio.sleep(0.2)  # the answers before it have arrived
            return self._error(401, "Unauthorized")
        ids, k = body["prompt"], body.get("prompt_logprobs")
        if body.get("max_tokens", 16) < 1:
            return self._error(400, f"max_tokens must be at least 1, got {body['max_tokens']}.")
        if k is not None and k > self.most:
            most = f"which is greater than max allowed: {self.most}"
            return self._error(400, f"Requested prompt logprobs of {k}, {most}")
        if len(ids) + body.get("max_tokens", 16) > self.most_tokens:
            return self._error(400, f"maximum context length is {self.most_tokens} tokens")
        choice = {"index": 0, "text": " a", "logprobs": None, "finish_reason": "length"}
        if self.tells:
            choice["prompt_logprobs"] = None if k is None else self._prompt_logprobs(ids, k)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        tree = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "fake"}
        return web.json_response({**tree, "choices": [choice], "usage": usage})

    def _prompt_logprobs(self, ids: list[int], k: int) -> list[dict[str, Any] | None]:
        """None for the first; then the token's own entry, and those of the k largest."""
        import torch

        with torch.no_grad():
            logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list[dict[str, Any] | None] = [None]
        for row, own in zip(logprobs[:-1], ids[1:], strict=True):
            top = row.topk(k)
            ranked = {own: int((row > row[own]).sum()) + 1}
            ranked |= {id_: rank for rank, id_ in enumerate(top.indices.tolist(), start=1)}
            told.append(
                {
                    str(id_): {
                        "logprob": max(row[id_].item(), -9999.0),
                        "rank": rank,
                        "decoded_token": self.tokenizer.decode([id_]),
                    }
                    for id_, rank in ranked.items()
                }
            )
        return told

    def _error(self, status: int, message: str) -> web.Response:
        error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
        return web.json_response({"error": error}, status=status)


def _byte_letters() -> dict[int, str]:
    """How byte-level vocabularies write bytes, in transformers' own words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


class FakeAzure(FakeEndpoint):
    """Azure OpenAI with one deployment called `fake`, at both kinds of addresses."""

    key = "azure-canary-41d2"
    filtered = {
        "message": "The response was filtered due to the prompt triggering the policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {
                "hate": {"filtered": False, "severity": "safe"},
                "violence": {"filtered": True, "severity": "medium"},
            },
        },
    }

    def add_routes(self, router: web.UrlDispatcher) -> str:
        router.add_post("/openai/deployments/{model}/chat/completions", self.handle)
        router.add_post("/openai/v1/chat/completions", self.handle)
        return ""

    def refuses(self, request: web.Request, body: dict[str, Any]) -> tuple[int, Any] | None:
        given = request.headers
        bearer = given.get("Authorization", "").removeprefix("Bearer ")
        if self.key not in (given.get("api-key"), bearer):
            message = "Access denied due to invalid subscription key or wrong API endpoint."
            return 401, {"error": {"code": "401", "message": message}}
        by_deployment = "model" in request.match_info
        if by_deployment != request.query.get("api-version", "")[:1].isdigit():
            return 404, {"error": {"code": "404", "message": "Resource not found"}}
        if request.match_info.get("model", body["model"]) != "fake":
            message = "The API deployment for this resource does not exist."
            return 404, {"error": {"code": "DeploymentNotFound", "message": message}}
        return None


@contextlib.asynccontextmanager
async def serving(fake: FakeEndpoint) -> AsyncIterator[FakeEndpoint]:
    """Runs the server on a free loopback port."""
    app = web.Application(client_max_size=2**26)
    path = fake.add_routes(app.router)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    fake.url = f"http://127.0.0.1:{port}{path}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def served(*fakes: FakeEndpoint) -> Iterator[None]:
    """Runs servers in a thread with an event loop of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            for fake in fakes:
                await stack.enter_async_context(serving(fake))
            done = loop.create_future()
            served.stop = lambda: loop.call_soon_threadsafe(done.set_result, None)
            ready.set()
            await done

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(10)
    stop = served.stop
    try:
        yield
    finally:
        stop()
        thread.join()
        loop.close()
