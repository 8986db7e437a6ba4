"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from potstill.models.logprobs import chosen_logprobs, logprob_arrays
from potstill.types import Logprobs, Response

UNLIKELY = -9999.0
"""OpenAI's value for a token that is not among those that are told."""

DONE = b"data: [DONE]\n\n"

Spell = Callable[[int], bytes]
"""The bytes of a token by its id."""


class Form:
    """How one request's answers are written.

    Args:
        spell: The bytes of a token; None where the model's tokens are told as ids alone.
    """

    def __init__(
        self,
        id_: str,
        *,
        is_chat: bool,
        logprobs: int | None = None,
        names_ids: bool = False,
        spell: Spell | None = None,
    ):
        self.id, self._is_chat, self._created = id_, is_chat, int(time.time())
        self._k, self._names_ids, self._spell = logprobs, names_ids, spell

    def whole(self, responses: Sequence[Response], num_each: int) -> dict[str, Any]:
        """All answers of a request as one object."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {
            **self._head(kind, responses[0].model),
            "choices": [self._choice(place, answer) for place, answer in enumerate(responses)],
            "usage": usage(responses, num_each),
        }

    def opening(self, place: int, model: str) -> list[dict[str, Any]]:
        """What the stream of an answer begins with."""
        if not self._is_chat:
            return []
        return [self._chunk(model, place, {"role": "assistant", "content": ""}, None)]

    def piece(self, place: int, text: str, model: str) -> dict[str, Any]:
        """One piece of an answer."""
        return self._chunk(model, place, {"content": text}, None)

    def closing(self, place: int, response: Response, rest: str) -> list[dict[str, Any]]:
        """What the stream of an answer ends with: what was not told yet, and why it ended."""
        chunks = []
        logprobs = self._logprobs(response)
        if rest or logprobs:
            chunks.append(self._chunk(response.model, place, {"content": rest}, None, logprobs))
        chunks.append(self._chunk(response.model, place, {}, response.finish_reason))
        return chunks

    def counted(self, responses: Sequence[Response], num_each: int) -> dict[str, Any]:
        """The last chunk, which counts tokens."""
        head = self._head(self._chunk_kind, responses[0].model)
        return {**head, "choices": [], "usage": usage(responses, num_each)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": model}

    def _choice(self, place: int, response: Response) -> dict[str, Any]:
        said: dict[str, Any] = {"text": response.text}
        if self._is_chat:
            thought = {"reasoning_content": response.reasoning} if response.reasoning else {}
            message = {"role": "assistant", "content": response.text, "refusal": None, **thought}
            said = {"message": message}
        return {
            "index": place,
            **said,
            "logprobs": self._logprobs(response),
            "finish_reason": response.finish_reason,
        }

    def _chunk(
        self,
        model: str,
        place: int,
        delta: dict[str, Any],
        finish: str | None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        said = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": place, **said, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(self._chunk_kind, model), "choices": [choice]}

    def _logprobs(self, response: Response) -> dict[str, Any] | None:
        if self._k is None or response.logprobs is None:
            return None
        told = response.logprobs
        arrays = logprob_arrays(told)
        spelled = self._speller(told)
        content = []
        rows = zip(
            arrays.sampled_N.tolist(),
            chosen_logprobs(arrays).tolist(),
            arrays.ids_NK.tolist(),
            arrays.logprobs_NK.tolist(),
            strict=True,
        )
        num_tokens = len(arrays.sampled_N) - (1 if told.has_end else 0)
        for place, (chosen, logprob, ids, logprobs) in enumerate(rows):
            if place == num_tokens:
                break  # the end token is no part of the text
            top = [spelled(i, value) for i, value in zip(ids, logprobs, strict=True) if i >= 0]
            content.append({**spelled(chosen, logprob), "top_logprobs": top[: self._k]})
        return {"content": content, "refusal": None}

    def _speller(self, told: Logprobs) -> Callable[[int, float], dict[str, Any]]:
        def spelled(id_: int, logprob: float) -> dict[str, Any]:
            logprob = logprob if math.isfinite(logprob) else UNLIKELY
            if self._names_ids and not told.tokens:
                return {"token": f"token_id:{id_}", "logprob": logprob, "bytes": None}
            data = bytes.fromhex(told.tokens[id_]) if told.tokens else self._spell_or_fail(id_)
            text = data.decode("utf-8", "replace")
            return {"token": text, "logprob": logprob, "bytes": list(data)}

        return spelled

    def _spell_or_fail(self, id_: int) -> bytes:
        assert self._spell is not None, id_
        return self._spell(id_)


def usage(responses: Sequence[Response], num_each: int) -> dict[str, int]:
    """Tokens of a request; a prompt that several answers were drawn for counts once.

    Args:
        responses: The answers to the first prompt, then those to the next.
        num_each: Answers to one prompt.
    """
    prompt = sum(response.num_prompt_tokens for response in responses[::num_each])
    new = sum(response.num_new_tokens for response in responses)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def events(trees: Iterable[dict[str, Any]]) -> bytes:
    """Objects as server-sent events."""
    return b"".join(b"data: " + orjson.dumps(tree) + b"\n\n" for tree in trees)
