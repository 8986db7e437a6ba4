"""Asks the teacher: records in, responses out, one line of JSON for each answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from potstill.config import GenerationConfig
from potstill.errors import ConfigError, PotstillError, TeacherError
from potstill.models.fingerprint import identity_of, request_fingerprint
from potstill.protocols import ChatModel, Task
from potstill.teach.journal import Journal
from potstill.teach.prompts import split_answer, teacher_prompt
from potstill.teach.purse import Purse
from potstill.types import Message, Noun, Record, Response, Sampling

OnProgress = Callable[[int, int, str], None]
"""Called with answers so far, answers wanted, and a few words."""

_NUM_EXAMPLES = 3


class Counts(Noun):
    """What became of the requests of one call of `generate`."""

    requested: int = 0
    """Answers wanted: prompts, times turns, times samples."""

    answered: int = 0
    """Answers that are there, cut ones counted, errors not."""

    reused: int = 0
    """Of the answered: found in the file, not asked again."""

    failed: int = 0
    """No answer came; asked again by the next run of the same command."""

    cut: int = 0
    """Of the answered: ended by max_new_tokens."""

    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    """Tokens of the answers that this call asked for."""

    cost: float | None = None
    """What this call cost; None where no price is known."""


async def generate(
    teacher: ChatModel,
    records: Sequence[Record],
    out: Path,
    *,
    task: Task,
    config: GenerationConfig,
    on_progress: OnProgress | None = None,
    required_logprobs: int = 0,
) -> Counts:
    """Appends the teacher's answer to every prompt that `out` does not answer yet.

    Running it again after a crash, a kill or Ctrl-C asks only for what is missing: an answer
    is in the file before the next request takes its place, and belongs to the exact request,
    so an edited input re-uses what still fits. Afterwards `out` has one line for each answer
    wanted; a prompt that failed has a line with `finish_reason="error"` and is asked again.

    In a conversation the teacher sees its own earlier answers, not the given ones.

    Args:
        out: JSONL file of `Response`. Made if absent, else continued.
        required_logprobs: Log-probabilities per token that a later loss needs; raises
            config.logprobs to at least this.

    Raises:
        TeacherRefused: The teacher will never answer: key, URL, model name, quota.
        TeacherError: More than one of the first config.pilot prompts failed, was empty or was
            cut; min_success_ratio cannot be met any more; or max_cost is reached. All answers
            that came are kept.
        ConfigError: If max_cost is set and the teacher has no price.
        PotstillError: If `out` cannot be written.
    """
    price = getattr(teacher, "price", None)
    if config.max_cost is not None and price is None:
        raise ConfigError("generation.max_cost needs teacher.price: {input: ..., output: ...}")
    if (prepare := getattr(teacher, "prepare", None)) is not None:
        await prepare()  # an endpoint may have to be asked who it is
    with Journal(out) as journal:
        run = _Run(
            teacher=teacher,
            identity=identity_of(teacher),
            task=task,
            config=config,
            journal=journal,
            on_progress=on_progress,
            top_logprobs=max(config.logprobs, required_logprobs),
            purse=Purse(price, config.max_cost, spent=journal.cost),
            requested=sum(len(task.turns(record)) for record in records) * config.num_responses,
        )
        pilots = list(records[: config.pilot])
        await run.ask_all((record, 0) for record in pilots)
        run.judge_pilot(pilots)
        num_pilots, samples = len(pilots), range(config.num_responses)
        rest = ((n, record, sample) for n, record in enumerate(records) for sample in samples)
        await run.ask_all((record, s) for n, record, s in rest if s or n >= num_pilots)
        run.refuse_too_few()
        journal.tidy()
        return run.counts()


@dataclass
class _Run:
    """One call of `generate`: what it was given, and what it has counted so far."""

    teacher: ChatModel
    identity: str
    task: Task
    config: GenerationConfig
    journal: Journal
    on_progress: OnProgress | None
    top_logprobs: int
    purse: Purse
    requested: int
    tally: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("answered", "reused", "failed", "cut", "num_prompt_tokens", "num_new_tokens"), 0
        )
    )
    pilot_faults: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    async def ask_all(self, chains: Iterator[tuple[Record, int]]) -> None:
        """Works through (record, sample) pairs with a fixed number of requests open."""
        size = self.config.max_in_flight
        size = self.teacher.max_in_flight if size == "auto" else size

        async def worker() -> None:
            for record, sample in chains:  # one iterator for all workers: each pair once
                await self._ask_turns(record, sample)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(max(1, size)):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise _weightiest(errors) from None  # the first one cancelled the rest

    async def _ask_turns(self, record: Record, sample: int) -> None:
        """One conversation: its turns in order, each with the teacher's answers before it."""
        prompts = self.task.turns(record)
        said: list[str] = []
        for turn, prompt in enumerate(prompts):
            prompt = with_answers(prompts, turn, said)
            response = await self._ask(prompt, record.id, turn, sample)
            if response is None:
                self._count_failures(len(prompts) - turn)
                return
            said.append(response.text)

    async def _ask(self, prompt: Record, record_id: str, turn: int, sample: int) -> Response | None:
        asked = teacher_prompt(prompt, self.config)
        sampling = self._sampling(record_id, turn, sample)
        fingerprint = request_fingerprint(self.identity, asked.messages, sampling)
        found = self.journal.find(record_id, turn, sample, fingerprint)
        if found is not None:
            self._count(found, is_new=False)
            return found
        reserved = await self.purse.reserve(asked, sampling)
        response = None
        try:
            try:
                response = await self.teacher.respond(asked, sampling, turn=turn, sample=sample)
            except TeacherError as error:
                if type(error) is not TeacherError:
                    raise  # refused: it will refuse every other prompt as well
                response = Response(
                    record_id=record_id, text="", finish_reason="error", error=str(error)
                )
        finally:
            self.purse.settle(reserved, response)
        response = self._finished(response, record_id, turn, sample, fingerprint)
        self.journal.append(response)
        self._count(response, is_new=True)
        return None if response.finish_reason == "error" else response

    def _finished(
        self, response: Response, record_id: str, turn: int, sample: int, fingerprint: str
    ) -> Response:
        """The response under its own name, with what the teacher thought set apart."""
        reasoning, text = split_answer(response.text, self.config)
        parts = [part for part in (response.reasoning, reasoning) if part]
        return response.model_copy(
            update={
                "record_id": record_id,
                "turn": turn,
                "sample": sample,
                "fingerprint": fingerprint,
                "model": response.model or self.teacher.name,
                "text": text,
                "reasoning": "\n\n".join(parts),
            }
        )

    def _sampling(self, record_id: str, turn: int, sample: int) -> Sampling:
        config = self.config
        return Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            seed=seed_of(config.seed, record_id, turn, sample),
            stop=config.stop,
            top_logprobs=self.top_logprobs,
            frequency_penalty=config.frequency_penalty,
            presence_penalty=config.presence_penalty,
        )

    def _count(self, response: Response, *, is_new: bool) -> None:
        fault = _fault(response)
        if fault and len(self.pilot_faults) < self.config.pilot:
            self.pilot_faults.setdefault(response.record_id, fault)
        if is_new:
            self.tally["num_prompt_tokens"] += response.num_prompt_tokens
            self.tally["num_new_tokens"] += response.num_new_tokens
        if response.finish_reason == "error":
            self.failures.append(f"{response.record_id}: {response.error}")
            del self.failures[_NUM_EXAMPLES:]
            return
        self.tally["answered"] += 1
        self.tally["reused"] += not is_new
        self.tally["cut"] += response.finish_reason == "length"
        self._tell()

    def _count_failures(self, number: int) -> None:
        self.tally["failed"] += number
        self._tell()
        self.refuse_too_few()

    def _tell(self) -> None:
        if self.on_progress:
            done = self.tally["answered"] + self.tally["failed"]
            failed = f"{self.tally['failed']:,} failed" if self.tally["failed"] else ""
            self.on_progress(done, self.requested, failed)

    def judge_pilot(self, pilots: Sequence[Record]) -> None:
        """Stops the run before the full spend when the first prompts did not go well."""
        faults = {
            record.id: self.pilot_faults[record.id]
            for record in pilots
            if record.id in self.pilot_faults
        }
        if len(faults) > 1:
            examples = "; ".join(f"{key}: {fault}" for key, fault in list(faults.items())[:3])
            raise TeacherError(
                f"{len(faults)} of the first {len(pilots)} prompts went wrong, so the rest was "
                f"not asked: {examples}. What came is kept in {self.journal.path}. Change the "
                f"prompt, generation.max_new_tokens (now {self.config.max_new_tokens}) or the "
                f"teacher; generation.pilot: 0 asks on regardless"
            )

    def refuse_too_few(self) -> None:
        """Stops the run as soon as min_success_ratio cannot be met any more."""
        failed, wanted = self.tally["failed"], self.config.min_success_ratio
        if failed > (1 - wanted) * self.requested + 1e-9:
            raise TeacherError(
                f"{failed:,} of {self.requested:,} answers did not come, and "
                f"generation.min_success_ratio = {wanted:g} allows "
                f"{int((1 - wanted) * self.requested + 1e-9):,}; {self.tally['answered']:,} are "
                f"kept in {self.journal.path}, and the same command asks for the rest. The "
                f"failures: {'; '.join(self.failures)}"
            )

    def counts(self) -> Counts:
        """What became of the requests."""
        cost = self.purse.spent_now if self.purse.price is not None else None
        return Counts(requested=self.requested, cost=cost, **self.tally)


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


def _fault(response: Response) -> str:
    """Why an answer does not count as one in the pilot; empty where it does."""
    if response.finish_reason == "error":
        return f"failed ({response.error})"
    if response.finish_reason == "length":
        return f"cut after {response.num_new_tokens} tokens"
    if response.finish_reason == "content_filter":
        return "withheld by the provider's content filter"
    if not response.text.strip():
        return "empty, or without the answer in the form asked for"
    return ""


def _weightiest(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of those that ended the workers: ours before all others."""
    flat = list(_flatten(errors))
    ours = [error for error in flat if isinstance(error, PotstillError)]
    return (ours or flat)[0]


def _flatten(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flatten(error)
        else:
            yield error
