"""The requests that a record becomes: one for each turn and sample, each with its own key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from potstill.config import GenerationConfig
from potstill.models.fingerprint import request_fingerprint
from potstill.protocols import Task
from potstill.teach.outcomes import request_key
from potstill.teach.prompts import teacher_prompt
from potstill.types import Message, Record, Sampling


class Request(NamedTuple):
    """One prompt as the teacher is asked it."""

    prompt: Record
    sampling: Sampling
    turn: int
    fingerprint: str
    key: bytes
    """Names it in the ledger."""


class Chain(NamedTuple):
    """One sample of one record: its prompts are asked in order."""

    number: int
    """Counts the records of the input."""

    sample: int
    record_id: str
    prompts: tuple[Record, ...]
    first: Request


class Requests:
    """Makes them for one teacher, task and config.

    Args:
        identity: What tells the teacher from others.
        sent: The messages that the teacher sends for a record; an answer belongs to them.
        top_logprobs: Log-probabilities per token that are asked for.
    """

    def __init__(
        self,
        identity: str,
        sent: Callable[[Record], Sequence[Message]],
        task: Task,
        config: GenerationConfig,
        top_logprobs: int,
    ):
        self._identity, self._sent, self._task, self._config = identity, sent, task, config
        self._sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            stop=config.stop,
            top_logprobs=top_logprobs,
            frequency_penalty=config.frequency_penalty,
            presence_penalty=config.presence_penalty,
        )

    def chain(self, number: int, record: Record, sample: int) -> Chain:
        """All that one sample of a record is to be asked, with the first request."""
        prompts = self._task.turns(record)
        first = self._request(prompts[0], record.id, 0, sample)
        return Chain(number, sample, record.id, prompts, first)

    def next(self, chain: Chain, said: Sequence[str]) -> Request:
        """The request after so many answers."""
        turn = len(said)
        if turn == 0:
            return chain.first
        prompt = with_answers(chain.prompts, turn, said)
        return self._request(prompt, chain.record_id, turn, chain.sample)

    def _request(self, prompt: Record, record_id: str, turn: int, sample: int) -> Request:
        asked = teacher_prompt(prompt, self._config)
        seed = seed_of(self._config.seed, record_id, turn, sample)
        sampling = self._sampling.model_copy(update={"seed": seed})
        fingerprint = request_fingerprint(self._identity, self._sent(asked), sampling)
        key = request_key(record_id, turn, sample, fingerprint)
        return Request(asked, sampling, turn, fingerprint, key)


def seed_of(run_seed: int, record_id: str, turn: int, sample: int) -> int:
    """The random seed of one answer, in [0, 2^31): the same in every run of the same config."""
    text = f"{run_seed}\0{record_id}\0{turn}\0{sample}"
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def with_answers(prompts: Sequence[Record], turn: int, said: Sequence[str]) -> Record:
    """The prompt of a turn in which the answers to earlier turns are those that were said."""
    messages = list(prompts[turn].messages)
    for earlier, text in enumerate(said[:turn]):
        messages[len(prompts[earlier].messages)] = Message(role="assistant", content=text)
    return prompts[turn].model_copy(update={"messages": tuple(messages)})
