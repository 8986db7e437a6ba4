"""Anthropic's messages: what is sent, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from potstill.models.chat_format import FINISH, Answer, NotAnAnswer, count, spelled, unfinished
from potstill.models.quirks import Quirks
from potstill.models.streaming import AnthropicPieces
from potstill.types import Message, Sampling

# The version after this one (2026-10-21) refuses every temperature, also of older models.
_VERSION = "2023-06-01"
_PROMPT_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicWire:
    """The messages API, Anthropic's or a server's that speaks it: a `Wire`."""

    most_logprobs: int | None = 0

    def __init__(self, base: str):
        self.base = base
        self.models_url = f"{base}/models"
        self._quirks = Quirks("temperature")

    def chat_url(self, model: str) -> str:
        return f"{self.base}/messages"

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": _VERSION, **({"x-api-key": key} if key else {})}

    def cannot(self, sampling: Sampling) -> str:
        if sampling.top_logprobs:
            return (
                "tells no log-probabilities, as every endpoint of Anthropic's API, and "
                f"generation.logprobs = {sampling.top_logprobs} asks for them; set it to 0, or "
                "use an endpoint that does"
            )
        if sampling.frequency_penalty or sampling.presence_penalty:
            return (
                "knows no penalties; set generation.frequency_penalty and "
                "generation.presence_penalty to 0"
            )
        if sampling.temperature > 1:
            return (
                f"takes temperatures from 0 to 1, and generation.temperature is "
                f"{sampling.temperature:g}"
            )
        return ""

    def body(self, model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The JSON of a request; the API knows no seed, so the same request may differ twice."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": sampling.max_new_tokens,
            "messages": _alternating(messages),
        }
        system = [message.content for message in messages if message.role == "system"]
        if system:
            body["system"] = "\n\n".join(system)
        if sampling.temperature != 1:  # models of 2026 refuse even the neutral value
            body["temperature"] = sampling.temperature
        if sampling.top_p != 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop_sequences"] = list(sampling.stop)
        return self._quirks.apply(body)

    def stream_body(
        self, model: str, messages: Sequence[Message], sampling: Sampling
    ) -> dict[str, Any]:
        return {**self.body(model, messages, sampling), "stream": True}

    def pieces(self, on_text: Callable[[str], None] | None = None) -> AnthropicPieces:
        return AnthropicPieces(on_text)

    def learns(self, sent: dict[str, Any], text: str) -> bool:
        return self._quirks.learns(sent, text)

    def read(self, tree: Any, *, top_logprobs: int = 0) -> Answer:
        try:
            blocks = [(block["type"], block) for block in tree["content"]]
            reason = tree["stop_reason"]
            text = "".join(block["text"] for kind, block in blocks if kind == "text")
            thoughts = [block["thinking"] for kind, block in blocks if kind == "thinking"]
            reasoning = "\n\n".join(thoughts)
            text = text or str((tree.get("stop_details") or {}).get("explanation") or "")
        except (KeyError, TypeError, AttributeError):
            raise NotAnAnswer(f"no message of Anthropic's API: {spelled(tree)}") from None
        finish = FINISH.get(str(reason), "error")
        usage = tree.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(
            text=text,
            reasoning=reasoning,
            finish_reason=finish,
            error="" if finish != "error" else unfinished(f"stop_reason {reason!r}"),
            num_prompt_tokens=sum(count(usage.get(name)) for name in _PROMPT_TOKENS),
            num_new_tokens=count(usage.get("output_tokens")),
            has_usage="output_tokens" in usage,
        )


def _alternating(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """User and assistant in turn; neighbours of one role become blocks of one message."""
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        if message.role == "system":
            continue
        if turns and turns[-1][0] == message.role:
            turns[-1][1].append(message.content)
        else:
            turns.append((message.role, [message.content]))
    return [{"role": role, "content": _content(texts)} for role, texts in turns]


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
