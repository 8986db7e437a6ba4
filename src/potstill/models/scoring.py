"""Scores text at a server that tells the probabilities of what it is given, as vLLM does.

vLLM's completions take token ids as the prompt and `prompt_logprobs: k`. The reply holds, for
every token but the first, a mapping from token ids to log-probabilities: the k largest, and the
token's own where it is not among them. They are raw, at temperature 1, whatever is sampled with.
Its /tokenize says in which ids the server writes a text or a conversation.

Shape letters of this file:
    N  positions that are scored: the last tokens of a text
    K  tokens told at each position, most probable first
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from potstill.config import PriceConfig
from potstill.errors import TeacherError
from potstill.models.chat_format import NotAnAnswer, count, read_json, spelled
from potstill.models.client import Client, Request
from potstill.models.logprobs import FLOOR, LogprobArrays
from potstill.models.wire import OpenAIWire
from potstill.types import Message

_LONG_BODY_BYTES = 2**16
_PROBE = Message(role="user", content="Say yes.")
_MOST_MASS = 1.01
"""Largest sum of probabilities that is rounding (bfloat16) and not damage."""

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class TextScorer:
    """One endpoint as a judge of given text.

    Args:
        wire: Its base ends in /v1 at vLLM.
        model: What the endpoint calls the model.
    """

    def __init__(
        self, wire: OpenAIWire, model: str, client: Client, price: PriceConfig | None = None
    ):
        self._wire, self._model, self._client = wire, model, client
        self._price = price
        self.num_prompt_tokens = 0
        """Tokens that the server has read for scores, over this object's life."""

    @property
    def cost(self) -> float | None:
        """Money for the scores so far; None where no price is known."""
        return self.cost_of(self.num_prompt_tokens)

    def cost_of(self, num_tokens: int) -> float | None:
        """What reading so many tokens costs; None where no price is known."""
        return None if self._price is None else num_tokens * self._price.input / 1e6

    async def can_score(self, k: int) -> bool:
        """Whether the server tells k log-probabilities a token of a tiny text. Asks only once."""
        try:
            ids = await self._tokens(_chat([_PROBE]), is_repeatable=False)
            if len(ids) < 2:
                return False
            await self._score(ids, k, start=1, is_repeatable=False)
        except TeacherError:  # refused, another server's reply, or none: it is not asked again
            return False
        return True

    async def tokens_of(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt as the server's own chat template writes it.

        Raises:
            TeacherRefused: Key, URL or model.
            TeacherError: The server refuses this conversation, or gave up on it.
        """
        return await self._tokens(_chat(messages))

    async def tokens_in(self, text: str) -> list[int]:
        """The ids of a text, its control tokens read as such and none added; raises as above."""
        return await self._tokens({"prompt": text, "add_special_tokens": False})

    async def score_tokens(self, ids: Sequence[int], k: int, *, start: int = 1) -> LogprobArrays:
        """The k most probable tokens at each position of `ids` from `start` on.

        Args:
            start: At least 1: nothing is said of a first token.

        Returns:
            Arrays of N = len(ids) - start positions; log-probabilities in float32, nats.

        Raises:
            TeacherRefused: Key, URL or model.
            TeacherError: The server refuses this text (it may be too long), or gave up on it.
        """
        return await self._score(ids, k, start=start)

    async def _score(
        self, ids: Sequence[int], k: int, *, start: int, is_repeatable: bool = True
    ) -> LogprobArrays:
        assert 1 <= start < len(ids), (start, len(ids))
        # At least one token is made: some versions refuse to make none.
        body = {"prompt": list(ids), "max_tokens": 1, "prompt_logprobs": k}
        arrays, num_tokens = await self._ask(
            f"{self._wire.base}/completions",
            body,
            lambda tree: (read_prompt_logprobs(tree, ids, k, start=start), _num_read(tree, ids)),
            num_tokens=len(ids) + 1,
            is_repeatable=is_repeatable,
        )
        self.num_prompt_tokens += num_tokens
        return arrays

    async def _tokens(self, body: dict[str, Any], *, is_repeatable: bool = True) -> list[int]:
        # vLLM has it beside /v1, not below.
        url = f"{self._wire.base.removesuffix('/v1')}/tokenize"
        return await self._ask(url, body, read_tokens, num_tokens=0, is_repeatable=is_repeatable)

    async def _ask(
        self,
        url: str,
        body: dict[str, Any],
        read: Callable[[Any], Any],
        *,
        num_tokens: int,
        is_repeatable: bool,
    ) -> Any:
        request = Request(
            "POST",
            url,
            f"scoring by {self._model}",
            lambda: self._wire.taken({"model": self._model, **body}),
            _reader(read),
            num_tokens,
            is_repeatable=is_repeatable,
        )
        reply, found = await self._client.exchange(request)
        if reply.status != 200:
            raise TeacherError(
                f"{self._client.host} refuses a text that it should score: status {reply.status}: "
                f"{self._client.message(reply)}"
            )
        return found


def read_tokens(tree: Any) -> list[int]:
    """The ids in a reply of /tokenize; raises NotAnAnswer where there are none."""
    ids = tree.get("tokens") if isinstance(tree, dict) else None
    if not isinstance(ids, list) or not all(type(id_) is int and id_ >= 0 for id_ in ids):
        raise NotAnAnswer(f"no token ids: {spelled(tree)}")
    return ids


def read_prompt_logprobs(tree: Any, ids: Sequence[int], k: int, *, start: int = 1) -> LogprobArrays:
    """Reads the `prompt_logprobs` of a completion, from position `start` on.

    The token of a position is told beside the k largest where it is not one of them; so entries
    are ranked and cut at k.

    Raises:
        NotAnAnswer: If there are none, or they are of another text, or damaged.
    """
    try:
        told = tree["choices"][0]["prompt_logprobs"]
        if not isinstance(told, list) or len(told) != len(ids):
            found = len(told) if isinstance(told, list) else "no"
            raise NotAnAnswer(f"{found} prompt_logprobs for {len(ids)} tokens")
        rows = [_ranked(told[at], ids[at], at)[:k] for at in range(start, len(ids))]
        ids_NK = np.full((len(rows), k), -1, "<i4")
        logprobs_NK = np.full((len(rows), k), -np.inf)
        is_told_NK = np.arange(k) < np.array([len(row) for row in rows])[:, None]
        ids_NK[is_told_NK] = [token for row in rows for token, _ in row]
        logprobs_NK[is_told_NK] = [value for row in rows for _, value in row]
    except NotAnAnswer:
        raise
    except _MALFORMED as error:
        raise NotAnAnswer(f"prompt_logprobs of an unknown form: {error!r}") from None
    np.clip(logprobs_NK, FLOOR, 0.0, out=logprobs_NK, where=is_told_NK)
    mass_N = np.exp(logprobs_NK).sum(-1)
    if mass_N.max() > _MOST_MASS:
        raise NotAnAnswer(f"prompt_logprobs that sum to {mass_N.max():.2f}")
    tail_N = np.clip(1.0 - mass_N, 0.0, 1.0)
    sampled_N = np.array(ids[start:], "<i4")
    return LogprobArrays(sampled_N, ids_NK, logprobs_NK.astype("<f4"), tail_N.astype("<f4"))


def _ranked(entries: Mapping[str, Mapping[str, Any]], own: int, at: int) -> list[tuple[int, float]]:
    """(id, log-probability) of one position, most probable first."""
    if not isinstance(entries, dict) or str(own) not in entries:
        raise NotAnAnswer(f"prompt_logprobs at {at} are not those of token {own}")
    found = {}
    for token, entry in entries.items():
        value = entry["logprob"]
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise NotAnAnswer(f"a log-probability of {value!r} at {at}")
        if not token.isdecimal():
            raise NotAnAnswer(f"a token id of {token!r} at {at}")
        found[int(token)] = (-float(value), entry.get("rank") or 0)
    return [(token, -found[token][0]) for token in sorted(found, key=found.__getitem__)]


def _num_read(tree: Any, ids: Sequence[int]) -> int:
    """Tokens that are paid: as the server counts them, else those that were sent."""
    usage = tree.get("usage")
    return count(usage.get("prompt_tokens") if isinstance(usage, dict) else None) or len(ids)


def _chat(messages: Sequence[Message]) -> dict[str, Any]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"messages": turns, "add_generation_prompt": True, "add_special_tokens": False}


def _reader(read: Callable[[Any], Any]) -> Callable[[bytes], Awaitable[Any]]:
    """Reads a body; a long one in a thread, so that others are not kept up."""

    async def found(data: bytes) -> Any:
        if len(data) <= _LONG_BODY_BYTES:
            return read(read_json(data))
        return await asyncio.to_thread(lambda: read(read_json(data)))

    return found
