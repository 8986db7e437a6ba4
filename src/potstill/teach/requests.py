"""The requests that a record becomes: one for each turn and sample, each with its own key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from potstill.config import GenerationConfig
from potstill.models.fingerprint import identity_of, request_fingerprint, sent_by
from potstill.models.several import Member, asked_in_order
from potstill.protocols import ChatModel, Task
from potstill.tasks.conversation import with_answers
from potstill.teach.outcomes import request_key
from potstill.teach.prompts import teacher_prompt
from potstill.types import Message, Record, Response, Sampling


class Request(NamedTuple):
    """One prompt as one teacher is asked it."""

    teacher: Member
    prompt: Record
    sampling: Sampling
    turn: int
    fingerprint: str
    key: bytes
    """Names it in the ledger."""


class Place(NamedTuple):
    """One sample of one record of the input."""

    number: int
    record: Record
    sample: int


class Chain(NamedTuple):
    """One sample of one record: its prompts are asked in order."""

    number: int
    """Counts the records of the input."""

    sample: int
    record_id: str
    prompts: tuple[Record, ...]
    first: Request
    is_begun: bool = False
    """The ledger has the answer to the first."""


class Tried(NamedTuple):
    """What one teacher said to a turn."""

    request: Request
    response: Response
    is_reused: bool = False


class Requests:
    """Makes them for one teacher (or several, each with its own), task and config.

    Args:
        top_logprobs: Log-probabilities per token that are asked for.
    """

    def __init__(
        self,
        teacher: ChatModel,
        task: Task,
        config: GenerationConfig,
        top_logprobs: int,
    ):
        self._teacher, self._task, self._config = teacher, task, config
        self._known: dict[str, tuple[str, Callable[[Record], Sequence[Message]]]] = {}
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
        teacher = asked_in_order(self._teacher, prompts[0], sample)[0]
        first = self._request(teacher, prompts[0], record.id, 0, sample)
        return Chain(number, sample, record.id, prompts, first)

    def next(self, chain: Chain, said: Sequence[str]) -> list[Request]:
        """The request after so many answers: one for each teacher that may be asked, in order."""
        turn = len(said)
        prompt = with_answers(chain.prompts, turn, said) if turn else chain.prompts[0]
        return [
            chain.first
            if turn == 0 and member == chain.first.teacher
            else self._request(member, prompt, chain.record_id, turn, chain.sample)
            for member in asked_in_order(self._teacher, prompt, chain.sample)
        ]

    def _request(
        self, teacher: Member, prompt: Record, record_id: str, turn: int, sample: int
    ) -> Request:
        asked = teacher_prompt(prompt, self._config)
        seed = seed_of(self._config.seed, record_id, turn, sample)
        sampling = self._sampling.model_copy(update={"seed": seed})
        identity, sent = self._known.get(teacher.label) or self._know(teacher)
        fingerprint = request_fingerprint(identity, sent(asked), sampling)
        key = request_key(record_id, turn, sample, fingerprint)
        return Request(teacher, asked, sampling, turn, fingerprint, key)

    def _know(self, teacher: Member) -> tuple[str, Callable[[Record], Sequence[Message]]]:
        """What tells the teacher from others, and the messages that it sends for a record."""
        found = identity_of(teacher.model), sent_by(teacher.model)
        self._known[teacher.label] = found
        return found


def seed_of(run_seed: int, record_id: str, turn: int, sample: int) -> int:
    """The random seed of one answer, in [0, 2^31): the same in every run of the same config."""
    text = f"{run_seed}\0{record_id}\0{turn}\0{sample}"
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:4], "big") >> 1
