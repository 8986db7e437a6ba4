"""A server on loopback that speaks Anthropic's messages API and is strict about it."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from fake_endpoint import FakeEndpoint

_FIELDS = {"model", "messages", "max_tokens", "system", "stop_sequences", "stream", "thinking"}
_SAMPLING_FIELDS = {"temperature", "top_p", "top_k"}


def message(*content: dict[str, Any] | str, **changes: Any) -> dict[str, Any]:
    """A message as Anthropic writes it; a string is a text block."""
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    tree = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": blocks,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": 7,
            "output_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }
    return {**tree, **changes}


def error(kind: str, text: str, **details: Any) -> dict[str, Any]:
    """An error body as Anthropic writes it."""
    tree = {"type": kind, "message": text, **({"details": details} if details else {})}
    return {"type": "error", "error": tree, "request_id": "req_01"}


class FakeAnthropic(FakeEndpoint):
    """Refuses what the real API refuses; else as `FakeEndpoint`."""

    key = "sk-ant-canary-77e0"

    def __init__(self, *script: Any, **settings: Any):
        super().__init__(*script, **{"answer": lambda body: message("Yes."), **settings})

    def add_routes(self, router: web.UrlDispatcher) -> str:
        router.add_post("/v1/messages", self.handle)
        router.add_get("/v1/models", self.list_models)
        return ""

    def refuses(self, request: web.Request, body: dict[str, Any]) -> tuple[int, Any] | None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key not in (request.headers.get("x-api-key"), bearer):
            return 401, error("authentication_error", "invalid x-api-key")
        version = request.headers.get("anthropic-version")
        fields = _FIELDS | (_SAMPLING_FIELDS if version == "2023-06-01" else set())
        problem = (
            "anthropic-version: header is required"
            if version not in ("2023-06-01", "2026-10-21")
            else _problem(body, fields)
        )
        return (400, error("invalid_request_error", problem)) if problem else None


def _problem(body: dict[str, Any], fields: set[str]) -> str:
    unknown = sorted(body.keys() - fields)
    if unknown:
        return f"{unknown[0]}: Extra inputs are not permitted"
    for field in ("model", "messages", "max_tokens"):
        if field not in body:
            return f"{field}: Field required"
    if not 0 <= body.get("temperature", 0) <= 1:
        return "temperature: range: 0..1"
    roles = [turn["role"] for turn in body["messages"]]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        return f"messages: roles must alternate and begin and end with user, got {roles}"
    return ""
