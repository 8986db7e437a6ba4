"""OpenAI's chat completions: what is sent, and what comes back in its many dialects."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from potstill.types import Message, Noun, Sampling, TokenLogprobs

_FINISH: dict[str, Literal["stop", "length", "content_filter"]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
}


class Answer(Noun):
    """One chat completion, read."""

    text: str = ""
    reasoning: str = ""
    finish_reason: Literal["stop", "length", "content_filter", "error"]
    error: str = ""
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    has_usage: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()


class NotAnAnswer(ValueError):
    """What came with status 200 is cut, not JSON, or not a chat completion."""


def request_body(model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """The JSON of a request; what has its neutral value is left out.

    Endpoints differ in which fields they know, so none is sent without need.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
    }
    if sampling.top_p != 1:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.top_logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.top_logprobs
    return body


def read_json(data: bytes) -> Any:
    """The JSON of a body; half a surrogate pair in it becomes a question mark.

    Raises:
        NotAnAnswer: If it is cut or no JSON at all.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # orjson is strict about surrogates; the standard library says what else is wrong
    try:
        tree = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise NotAnAnswer(f"no JSON: {error}") from None
    return orjson.loads(json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace"))


def read_answer(tree: Any, *, top_logprobs: int = 0) -> Answer:
    """Reads a chat completion.

    Raises:
        NotAnAnswer: If it has no choice or no message.
    """
    try:
        choice = tree["choices"][0]
        message = choice["message"]
        reason = choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NotAnAnswer(f"no chat completion: {_short(tree)}") from None
    finish = _FINISH.get(str(reason).lower(), "error")
    error = "" if finish != "error" else f"ended with finish_reason {reason!r}"
    if refusal and not content:
        content, finish, error = refusal, "content_filter", ""
    try:
        logprobs = _logprobs(choice.get("logprobs"), top_logprobs) if top_logprobs else ()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotAnAnswer(f"log-probabilities of an unknown form: {error}") from None
    usage = tree.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_text_of(content),
        reasoning=reasoning if isinstance(reasoning, str) else "",
        finish_reason=finish,
        error=error,
        num_prompt_tokens=_count(usage.get("prompt_tokens")),
        num_new_tokens=_count(usage.get("completion_tokens")),
        has_usage="completion_tokens" in usage,
        logprobs=logprobs,
    )


def error_text(tree: Any) -> tuple[str, str]:
    """(code, message) of an error body, in the shapes that servers use."""
    error = tree.get("error", tree) if isinstance(tree, dict) else tree
    if isinstance(error, dict):
        code = str(error.get("code") or error.get("type") or "")
        message = error.get("message") or error.get("detail") or ""
        return code, message if isinstance(message, str) and message else _short(error)
    return "", _short(error)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _logprobs(logprobs: Any, k: int) -> tuple[TokenLogprobs, ...]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    positions = []
    for position in content or ():
        # Some servers add the sampled token to the k largest, so they are ranked again.
        ranked = sorted(
            (
                (_hex(entry, fall_back=True), float(entry["logprob"]))
                for entry in position.get("top_logprobs") or ()
                if isinstance(entry.get("logprob"), int | float) and math.isfinite(entry["logprob"])
            ),
            key=lambda pair: -pair[1],
        )
        positions.append(
            TokenLogprobs(
                text=position.get("token", ""),
                data=_hex(position, fall_back=False),
                top=tuple(ranked[:k]),
            )
        )
    return tuple(positions)


def _hex(entry: dict[str, Any], *, fall_back: bool) -> str:
    data = entry.get("bytes")
    if isinstance(data, list):
        return bytes(data).hex()
    return entry.get("token", "").encode().hex() if fall_back else ""


def _short(tree: Any) -> str:
    text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:299]}…"
