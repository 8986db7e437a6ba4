"""Lets a model answer a test set: each answer is kept as it comes, and asked for once.

Samples are appended to their file, so an interrupted evaluation goes on where it stopped; a
model that is known by its weights is not asked again by other runs either (`reuse`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.probability import answer_confidence
from potstill.examine.reuse import AnswerStore
from potstill.protocols import ChatModel, Task
from potstill.rundir import content_hash, json_line, read_jsonl, write_jsonl
from potstill.tasks.conversation import with_answers
from potstill.tasks.reading import visible
from potstill.types import Record, Response, Sample, Sampling

log = logging.getLogger(__name__)

History = Literal["gold", "own"]
"""Which answers to earlier turns a turn is asked on: the known ones, or the model's."""

UNANSWERED = "not asked: the turn before brought no answer to go on from"

OnProgress = Callable[[int, int], None]
"""Called with (answers there, answers wanted)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn of one record, as it is asked."""

    prompt: Record
    turn: int
    group: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Chain:
    """Turns of one record that are asked one after the other."""

    first: int
    """Place of the first of them among all samples."""

    turns: tuple[tuple[int, Record], ...]
    """Numbers of the turns, and their prompts on the gold history."""

    group: str
    is_own: bool
    """Whether each turn is asked on what the model said to those before."""

    @property
    def num_characters(self) -> int:
        """Length of the last prompt, the longest."""
        return sum(len(message.content) for message in self.turns[-1][1].messages)

    def prompt(self, said: Sequence[str]) -> Record:
        """What is asked after these answers of the chain."""
        prompts = [prompt for _, prompt in self.turns]
        return with_answers(prompts, len(said), said)


async def collect_samples(
    model: ChatModel,
    records: Sequence[Record],
    task: Task,
    *,
    sampling: Sampling,
    out_samples: Path,
    fingerprint: str = "",
    group_by: str | None = None,
    history: History = "gold",
    store: AnswerStore | None = None,
    needs_confidence: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Sample]:
    """The model's answer to every turn, in the order of the records.

    Args:
        out_samples: File of the answers, read first and completed.
        fingerprint: What the weights are; answers of other weights are not reused.
        history: What turns of a conversation are asked on. A record without known answers is
            asked on the model's own in any case.
        store: Where answers of any run are looked for and put.
        needs_confidence: Whether kept answers without the model's confidence are asked again.

    Raises:
        DataError: If there are no records.
        TeacherRefused: If the model will never answer as asked.
        TeacherError: If no answer came at all.
    """
    if not records:
        raise DataError("there is nothing to evaluate: the test set holds no records")
    chains = chains_of(records, task, group_by, history)
    kept = _kept(out_samples, needs_confidence=needs_confidence)
    store = None if needs_confidence else store  # which keeps no probabilities
    asking = _Asking(model, task, sampling, fingerprint or model.name, store, kept)
    found: list[Sample | None] = [None] * sum(len(chain.turns) for chain in chains)
    num_done = 0
    with out_samples.open("a", encoding="utf-8") as file:

        async def ask(chain: Chain) -> None:
            nonlocal num_done
            async for place, sample, is_new in asking.samples(chain):
                found[place] = sample
                if is_new:
                    file.write(json_line(sample))
                    file.flush()
                num_done += 1
                if on_progress:
                    on_progress(num_done, len(found))

        # Local weights batch what is open at once, and waste least on prompts of like length.
        order = sorted(chains, key=lambda chain: -chain.num_characters)
        await _for_each(order, ask, max(1, model.max_in_flight))
    samples = [s for s in found if s is not None]
    write_jsonl(out_samples, samples)
    _refuse_silence(model.name, samples)
    return samples


def _refuse_silence(name: str, samples: Sequence[Sample]) -> None:
    if all(s.error for s in samples):
        raise TeacherError(
            f"{name} answered none of {len(samples)} prompts; the last error: {samples[-1].error}"
        )


def _kept(out_samples: Path, *, needs_confidence: bool) -> dict[tuple[str, int, str], Sample]:
    """The answers of a file that can be used again, by record, turn and fingerprint."""
    answered = [
        s
        for s in read_jsonl(out_samples, Sample)
        if not s.error and (s.confidence is not None or not needs_confidence)
    ]
    write_jsonl(out_samples, answered)  # drops a line that was cut
    if answered:
        log.info("%s: %d answers are kept", out_samples.name, len(answered))
    return {(s.record_id, s.turn, s.fingerprint): s for s in answered}


def chains_of(
    records: Sequence[Record], task: Task, group_by: str | None, history: History
) -> list[Chain]:
    """All turns of all records: each by itself on the gold history, else those of a record."""
    chains: list[Chain] = []
    place = 0
    for record in records:
        turns = tuple(enumerate(task.turns(record)))
        group = str(record.metadata.get(group_by, "")) if group_by else ""
        if not group and len(turns) > 1:
            group = record.id
        # User turns that nobody has answered yet have no gold history between them.
        is_own = len(turns) > 1 and (history == "own" or turns[0][1].reference is None)
        parts = [turns] if is_own else [(turn,) for turn in turns]
        for part in parts:
            chains.append(Chain(place, part, group, is_own))
            place += len(part)
    return chains


@dataclasses.dataclass(frozen=True)
class _Asking:
    """One model that answers a test set, and what it said before."""

    model: ChatModel
    task: Task
    sampling: Sampling
    fingerprint: str
    store: AnswerStore | None
    kept: Mapping[tuple[str, int, str], Sample]

    async def samples(self, chain: Chain) -> AsyncIterator[tuple[int, Sample, bool]]:
        """The answers of a chain in order: place, answer, and whether it is new to the file."""
        said: list[str] = []
        is_broken = False
        for place, (turn, _) in enumerate(chain.turns, start=chain.first):
            question = self._question(chain, said)
            old = self.kept.get((question.prompt.id, turn, question.fingerprint))
            if old is not None:
                response = _as_response(old)
            elif is_broken:
                response = _failed(question, UNANSWERED)
            else:
                response = await self._respond(question)
            sample = make_sample(question, response, self.task)
            if old is not None:
                sample = sample.model_copy(update={"confidence": old.confidence})
            said.append(visible(response.text))
            is_broken = chain.is_own and bool(sample.error)
            yield place, sample, old is None

    def _question(self, chain: Chain, said: Sequence[str]) -> Question:
        prompt = chain.prompt(said)
        messages = [message.model_dump(mode="json") for message in prompt.messages]
        key = content_hash(self.fingerprint, messages, self.sampling)
        return Question(prompt, chain.turns[len(said)][0], chain.group, key)

    async def _respond(self, question: Question) -> Response:
        model, prompt, sampling = self.model, question.prompt, self.sampling
        if self.store is not None and (old := self.store.get(model, prompt, sampling)) is not None:
            return old
        try:
            response = await model.respond(prompt, sampling, turn=question.turn)
        except TeacherRefused:
            raise
        except TeacherError as error:
            return _failed(question, str(error) or type(error).__name__)
        if self.store is not None:
            self.store.put(model, prompt, sampling, response)
        return response


def _failed(question: Question, why: str) -> Response:
    return Response(
        record_id=question.prompt.id,
        turn=question.turn,
        text="",
        finish_reason="error",
        error=why,
    )


def _as_response(sample: Sample) -> Response:
    return Response(
        record_id=sample.record_id,
        turn=sample.turn,
        text=sample.text,
        finish_reason=sample.finish_reason,
        num_prompt_tokens=sample.num_prompt_tokens,
        num_new_tokens=sample.num_new_tokens,
        seconds=sample.seconds,
    )


async def _for_each(
    chains: Sequence[Chain], ask: Callable[[Chain], Awaitable[None]], max_in_flight: int
) -> None:
    """Runs `ask` on every chain, so many at once; the first failure ends all of them."""
    waiting = iter(chains)

    async def work() -> None:
        for chain in waiting:
            await ask(chain)

    workers = [asyncio.create_task(work()) for _ in range(min(max_in_flight, len(chains)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def make_sample(question: Question, response: Response, task: Task) -> Sample:
    """One answer, read and marked by the task. An error or a cut answer is wrong."""
    prompt = question.prompt
    failed = response.finish_reason in ("error", "length") or bool(response.error)
    prediction = None if failed else task.parse(response.text, prompt)
    correct = task.correct(prediction, prompt)
    references, target = _references(prompt, task)
    return Sample(
        record_id=prompt.id,
        turn=question.turn,
        group=question.group,
        prompt=prompt.messages,
        references=references,
        text=response.text,
        prediction=prediction,
        target=target,
        correct=0.0 if failed and correct is not None else correct,
        finish_reason=response.finish_reason,
        num_prompt_tokens=response.num_prompt_tokens,
        num_new_tokens=response.num_new_tokens,
        seconds=response.seconds,
        error=response.error or ("no answer" if response.finish_reason == "error" else ""),
        fingerprint=question.fingerprint,
        confidence=answer_confidence(response.logprobs),
        metadata=prompt.metadata,
    )


def _references(prompt: Record, task: Task) -> tuple[tuple[str, ...], str | None]:
    """All right answers of a record, and what the task reads out of the first."""
    if prompt.reference is None:
        return (), None
    others = [prompt.metadata.get(name) or () for name in ("answers", "references")]
    listed = [[other] if isinstance(other, str) else other for other in others]
    unique = dict.fromkeys([prompt.reference, *(str(o) for other in listed for o in other if o)])
    return tuple(unique), task.parse(prompt.reference, prompt)
