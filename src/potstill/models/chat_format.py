"""OpenAI's chat completions: what is sent, and what comes back in its many dialects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from potstill.models.failures import Failure, named, of_status
from potstill.models.logprobs import read_logprobs
from potstill.types import Logprobs, Message, Noun, Sampling

FINISH: dict[str, Literal["stop", "length", "content_filter"]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
}
"""Why an answer ended, in the words of many servers -> in ours."""


_FILTERED = {
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "ResponsibleAIPolicyViolation",
}
_TOO_LONG = ("context length", "context_length", "maximum context", "context size", "too long")
_LONGEST_TEXT = 2**16
_CUT = "max_tokens or model output limit was reached"


class Answer(Noun):
    """One chat completion, read."""

    text: str = ""
    reasoning: str = ""
    finish_reason: Literal["stop", "length", "content_filter", "error"]
    error: str = ""
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    has_usage: bool = False
    logprobs: Logprobs | None = None


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
        body["return_tokens_as_token_ids"] = True  # vLLM's; others leave it or refuse it once
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
        return orjson.loads(json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise NotAnAnswer(f"no JSON: {error}") from None


def read_answer(tree: Any, *, top_logprobs: int = 0, mode: str | None = None) -> Answer:
    """Reads a chat completion.

    Args:
        mode: What the server's log-probabilities are, see `Logprobs`.

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
        raise NotAnAnswer(f"no chat completion: {spelled(tree)}") from None
    finish = FINISH.get(str(reason).lower(), "error")
    error = "" if finish != "error" else unfinished(f"finish_reason {reason!r}")
    if refusal and not content:
        content, finish, error = refusal, "content_filter", ""
    try:
        told = choice.get("logprobs") if top_logprobs else None
        logprobs = read_logprobs(told, top_logprobs, mode=mode)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise NotAnAnswer(f"log-probabilities of an unknown form: {error}") from None
    usage = tree.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_text_of(content),
        reasoning=reasoning if isinstance(reasoning, str) else "",
        finish_reason=finish,
        error=error,
        num_prompt_tokens=count(usage.get("prompt_tokens")),
        num_new_tokens=_num_new_tokens(usage),
        has_usage="completion_tokens" in usage,
        logprobs=logprobs,
    )


def error_text(tree: Any) -> tuple[str, str]:
    """(code, message) of an error body, in the shapes that servers use."""
    error = tree.get("error", tree) if isinstance(tree, dict) else tree
    if isinstance(error, dict):
        details = error.get("details")
        code = details.get("error_code") if isinstance(details, dict) else None
        code = str(code or error.get("code") or error.get("type") or "")
        message = error.get("message") or error.get("detail") or ""
        return code, message if isinstance(message, str) and message else spelled(error)
    return "", spelled(error)


def is_filtered(data: bytes) -> bool:
    """Whether an error body says that the prompt's content was refused, and nothing else."""
    try:
        error = read_json(data)["error"]
        inner = error.get("innererror") or error.get("metadata") or {}
        return bool(_FILTERED & {error.get("code"), inner.get("code")}) or "flagged_input" in inner
    except (NotAnAnswer, KeyError, TypeError, AttributeError):
        return False


def declined(status: int, data: bytes, text: str) -> Answer:
    """What a refusal (4xx) of one prompt makes of it: withheld, cut, too long or dead.

    Args:
        data: The body of the refusal.
        text: What it says, for a person.
    """
    text = f"status {status}: {text}"
    if is_filtered(data):
        return Answer(finish_reason="content_filter", error=f"content_filter: {text}")
    if _CUT in text:
        return Answer(finish_reason="length", error=f"cut: {text}")
    is_long = status == 413 or any(words in text.lower() for words in _TOO_LONG)
    reason = Failure.TOO_LONG if is_long else of_status(status)
    return Answer(finish_reason="error", error=named(reason, text))


def unfinished(how: str) -> str:
    """The error of an answer that did not end as answers do."""
    return named(Failure.UNFINISHED, f"ended with {how}")


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def count(value: Any) -> int:
    """A number of tokens; 0 where it is none."""
    return value if isinstance(value, int) and value > 0 else 0


def _num_new_tokens(usage: dict[str, Any]) -> int:
    """Tokens that are paid as answer; some servers leave reasoning out of completion_tokens."""
    new, total = count(usage.get("completion_tokens")), count(usage.get("total_tokens"))
    return max(new, total - count(usage["prompt_tokens"])) if "prompt_tokens" in usage else new


def spelled(tree: Any) -> str:
    """What came, for a message. Long: whoever shows it hides the key in it, and then cuts it."""
    try:
        text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
    except RecursionError:
        return "JSON of too many levels"
    return text[:_LONGEST_TEXT]
