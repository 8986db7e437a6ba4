"""Servers on loopback that speak the batch interfaces of OpenAI and Anthropic, and are strict."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web
from fake_anthropic import FakeAnthropic, error
from fake_endpoint import FakeEndpoint

Fate = str | tuple[int, Any]
"""`done`, `expired`, `lost` (no line at all), or status and body of a refusal."""

_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")


class Made:
    """A batch as the server has it."""

    def __init__(self, id: str, lines: list[tuple[str, dict]], created_at: float, metadata: Any):
        self.id, self.lines, self.created_at, self.metadata = id, lines, created_at, metadata
        self.polls = 0
        self.output, self.errors = [], []
        self.is_ended = False


class Batching:
    """What both servers share: batches that end after some polls, each row as its fate says.

    Args:
        fate: What becomes of a row: called with the number of the batch and the request's body.
        on_create: Called when a batch was made, before that is answered; may raise.
    """

    def start(self, *, polls=2, fate=None, on_create=None, clock=lambda: 1_800_000_000.0):
        self.polls, self.clock = polls, clock
        self.fate: Callable[[int, dict], Fate] = fate or (lambda number, body: "done")
        self.on_create: Callable[[Made], Any] = on_create or (lambda made: None)
        self.made: list[Made] = []
        self.lists = 0
        return self

    def make(self, lines: Iterable[tuple[str, dict]], metadata: Any = None) -> Made:
        lines = list(lines)
        made = Made(f"batch_{len(self.made)}", lines, self.clock(), metadata)
        self.made.append(made)
        return made

    def look(self, made: Made) -> None:
        """One poll."""
        made.polls += 1
        if made.polls < self.polls or made.is_ended:
            return
        made.is_ended = True
        number = self.made.index(made)
        for custom_id, body in reversed(made.lines):
            self.finish(made, custom_id, body, self.fate(number, body))

    def found(self, request: web.Request) -> Made:
        return next(made for made in self.made if made.id == request.match_info["id"])

    def page(self, request: web.Request, after: str) -> tuple[list[Made], bool]:
        self.lists += 1
        every = self.made[::-1]
        if last := request.query.get(after):
            every = every[[made.id for made in every].index(last) + 1 :]
        limit = int(request.query.get("limit", 20))
        return every[:limit], len(every) > limit

    async def created(self, made: Made) -> None:
        done = self.on_create(made)
        if done is not None:
            await done


class FakeOpenAIBatches(Batching, FakeEndpoint):
    """Files and batches beside the chat completions of `FakeEndpoint`."""

    key = "sk-canary-5b1f"

    def add_routes(self, router: web.UrlDispatcher) -> str:
        self.files: dict[str, bytes] = {}
        router.add_post("/v1/files", self.upload)
        router.add_get("/v1/files/{id}/content", self.content)
        router.add_post("/v1/batches", self.create)
        router.add_get("/v1/batches", self.list_batches)
        router.add_get("/v1/batches/{id}", self.retrieve)
        return super().add_routes(router)

    async def upload(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Incorrect API key"}}, status=401)
        form = await request.post()
        name, data = f"file-{len(self.files)}", form["file"].file.read()
        assert form["purpose"] == "batch" and len(data) < 200_000_000
        self.files[name] = data
        tree = {"id": name, "object": "file", "bytes": len(data), "created_at": 1}
        return web.json_response(
            {**tree, "filename": form["file"].filename, "purpose": "batch", "status": "processed"}
        )

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["completion_window"] == "24h" and body["endpoint"] == "/v1/chat/completions"
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert len(rows) <= 50_000 and len({row["custom_id"] for row in rows}) == len(rows)
        for row in rows:
            assert set(row) == {"custom_id", "method", "url", "body"} and row["method"] == "POST"
            assert row["url"] == body["endpoint"]
        made = self.make([(row["custom_id"], row["body"]) for row in rows], body.get("metadata"))
        await self.created(made)
        return web.json_response(self.tree(made))

    def finish(self, made: Made, custom_id: str, body: dict, fate: Fate) -> None:
        if fate == "lost":
            return
        row = {"id": "batch_req_1", "custom_id": custom_id, "response": None, "error": None}
        if fate == "done":
            answer = {"status_code": 200, "request_id": "r", "body": self.answer(body)}
            made.output.append({**row, "response": answer})
        elif fate == "expired":
            text = "This request could not be executed before the completion window expired."
            made.errors.append({**row, "error": {"code": "batch_expired", "message": text}})
        else:
            answer = {"status_code": fate[0], "request_id": "r", "body": fate[1]}
            made.errors.append({**row, "response": answer})

    def tree(self, made: Made) -> dict[str, Any]:
        is_whole = len(made.output) + len(made.errors) == len(made.lines)
        is_late = any((row["error"] or {}).get("code") == "batch_expired" for row in made.errors)
        done = "expired" if is_late or not is_whole else "completed"
        return {
            "id": made.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "errors": None,
            "input_file_id": "file-0",
            "completion_window": "24h",
            "status": done if made.is_ended else "in_progress",
            "output_file_id": f"{made.id}-out" if made.output else None,
            "error_file_id": f"{made.id}-err" if made.errors else None,
            "created_at": int(made.created_at),
            "request_counts": {
                "total": len(made.lines), "completed": len(made.output), "failed": len(made.errors)
            },
            "metadata": made.metadata,
        }  # fmt: skip

    async def list_batches(self, request: web.Request) -> web.Response:
        some, has_more = self.page(request, "after")
        tree = {"object": "list", "data": [self.tree(made) for made in some], "has_more": has_more}
        if some:
            tree |= {"first_id": some[0].id, "last_id": some[-1].id}
        return web.json_response(tree)

    async def retrieve(self, request: web.Request) -> web.Response:
        self.look(self.found(request))
        return web.json_response(self.tree(self.found(request)))

    async def content(self, request: web.Request) -> web.Response:
        id, _, kind = request.match_info["id"].rpartition("-")
        made = next(made for made in self.made if made.id == id)
        rows = made.output if kind == "out" else made.errors
        return web.Response(text="".join(json.dumps(row) + "\n" for row in rows))


class FakeAnthropicBatches(Batching, FakeAnthropic):
    """Message batches beside the messages of `FakeAnthropic`."""

    def add_routes(self, router: web.UrlDispatcher) -> str:
        router.add_post("/v1/messages/batches", self.create)
        router.add_get("/v1/messages/batches", self.list_batches)
        router.add_get("/v1/messages/batches/{id}", self.retrieve)
        router.add_get("/v1/messages/batches/{id}/results", self.results)
        return super().add_routes(router)

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        rows = [(row["custom_id"], row["params"]) for row in body["requests"]]
        for custom_id, params in rows:
            # Rows are looked at when their turn comes; only their ids are looked at here.
            if not _ID.match(custom_id):
                return web.json_response(error("invalid_request_error", "custom_id"), status=400)
            if problem := self.refuses(request, params):
                status, tree = problem
                if status == 401:
                    return web.json_response(tree, status=status)
        assert set(body) == {"requests"} and len({id for id, _ in rows}) == len(rows)
        made = self.make(rows)
        await self.created(made)
        return web.json_response(self.tree(made))

    def finish(self, made: Made, custom_id: str, body: dict, fate: Fate) -> None:
        if fate == "lost":
            return
        if fate == "done":
            result = {"type": "succeeded", "message": self.answer(body)}
        elif fate == "expired":
            result = {"type": "expired"}
        else:
            result = {"type": "errored", "error": fate[1]}
        made.output.append({"custom_id": custom_id, "result": result})

    def tree(self, made: Made) -> dict[str, Any]:
        kinds = [row["result"]["type"] for row in made.output]
        counts = {
            kind: kinds.count(kind) for kind in ("succeeded", "errored", "expired", "canceled")
        }
        at = datetime.datetime.fromtimestamp(made.created_at, datetime.UTC)
        results = f"{self.url}/v1/messages/batches/{made.id}/results"
        return {
            "id": made.id,
            "type": "message_batch",
            "processing_status": "ended" if made.is_ended else "in_progress",
            "request_counts": {"processing": len(made.lines) - len(kinds), **counts},
            "ended_at": at.isoformat() if made.is_ended else None,
            "created_at": at.isoformat(),
            "expires_at": (at + datetime.timedelta(days=1)).isoformat(),
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": results if made.is_ended else None,
        }

    async def list_batches(self, request: web.Request) -> web.Response:
        some, has_more = self.page(request, "after_id")
        tree = {"data": [self.tree(made) for made in some], "has_more": has_more}
        tree |= {"first_id": some[0].id if some else None, "last_id": some[-1].id if some else None}
        return web.json_response(tree)

    async def retrieve(self, request: web.Request) -> web.Response:
        self.look(self.found(request))
        return web.json_response(self.tree(self.found(request)))

    async def results(self, request: web.Request) -> web.Response:
        rows = self.found(request).output
        text = "".join(json.dumps(row) + "\n" for row in rows)
        return web.Response(text=text, content_type="application/x-jsonl")
