"""Rows of a run whose answers are known, and what models say to them before one is trained."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from pathlib import Path

from potstill.config import GenerationConfig
from potstill.examine.answering import Question, collect_samples, make_sample
from potstill.models.catalog import ModelRef, find_model
from potstill.models.chat import open_chat_model
from potstill.models.several import SeveralTeachers
from potstill.pipeline.context import Context, decoding, weights_key
from potstill.protocols import ChatModel, Task
from potstill.rundir import content_hash, iter_jsonl
from potstill.teach.generate import Counts, generate
from potstill.teach.ledger import Ledger
from potstill.types import Record, Response, Sample


def labelled(ctx: Context, number: int, *, most: int | None = None) -> list[Record]:
    """So many training records with known answers, in an order that is as good as random.

    Of a conversation only the first turn: what is asked later depends on what was answered. The
    rows of a smaller number are among those of a larger one.

    Args:
        most: Records that are looked at, from the front; all by default.
    """
    records = itertools.islice(iter_jsonl(ctx.run.train, Record), most)
    firsts = (_first_turn(ctx.task, record) for record in records)
    known = (first for first in firsts if first.reference is not None)
    return heapq.nsmallest(number, known, key=lambda record: content_hash(record.id))


def _first_turn(task: Task, record: Record) -> Record:
    """The record up to its first answer, still to be put into the task's own words."""
    turns = task.turns(record)
    return record if len(turns) == 1 else turns[0]


def asked_once(config: GenerationConfig) -> GenerationConfig:
    """As the teacher is asked in the run, one answer a prompt; failures are counted, not fatal."""
    changes = {"num_responses": 1, "choose": "all", "best_by": None, "teachers": "route"}
    return config.model_copy(update={**changes, "min_success_ratio": 0.0, "max_failures": None})


async def ask_teacher(
    ctx: Context,
    teacher: ChatModel,
    records: Sequence[Record],
    *,
    part: str,
    stage: str,
    generation: GenerationConfig | None = None,
) -> tuple[Counts, list[Response]]:
    """The teacher's answers, from the run's ledger where it has them: the run asks them no more.

    Where several vote, the most frequent answer to each prompt.

    Args:
        generation: How it is asked; as the config says by default.

    Raises:
        TeacherError, ConfigError: As `generate`.
    """
    voices = teacher if isinstance(teacher, SeveralTeachers) and teacher.how == "vote" else None
    config = asked_once(generation or ctx.config.generation)
    if voices is not None:
        config = config.model_copy(update={"num_responses": voices.num_voices})
    counts = await generate(
        teacher,
        records,
        ctx.run.responses,
        task=ctx.task,
        config=config,
        part=part,
        on_progress=ctx.progress(stage),
    )
    with Ledger(ctx.run.responses) as ledger:
        if voices is None:
            return counts, list(ledger.rows(part))
        rows = ledger.with_records(part, records)
        return counts, [voices.voice(ctx.task.turns(one)[0], said) for one, said in rows]


def samples_of(
    ctx: Context, records: Sequence[Record], responses: Sequence[Response]
) -> list[Sample]:
    """The teacher's answers, marked by the task."""
    group_by = grouping(ctx)
    samples = []
    for record, response in zip(records, responses, strict=True):
        group = str(record.metadata.get(group_by, "")) if group_by else ""
        prompt = ctx.task.turns(record)[0]
        question = Question(prompt, 0, group, response.fingerprint)
        samples.append(make_sample(question, response, ctx.task))
    return samples


def untouched_ref(ctx: Context, place: str) -> ModelRef:
    """Where a student's weights are, as a folder.

    Raises:
        ConfigError, DataError, MissingExtra: If they are not on this machine.
    """
    from potstill.models.weights import cached_folder

    ref = find_model(place, workspace=ctx.workspace)
    return ref.model_copy(update={"source": str(cached_folder(ref)), "kind": "huggingface"})


async def ask_untouched(
    ctx: Context, ref: ModelRef, records: Sequence[Record], out: Path, *, stage: str
) -> list[Sample]:
    """A student's answers as it is, greedy, kept in the file.

    Raises:
        ConfigError, DataError, MissingExtra: If its weights cannot be read.
        TeacherError: If it answers nothing.
    """
    model = open_chat_model(ref, batch_size=ctx.config.evaluate.batch_size, when_asked=True)
    try:
        return await collect_samples(
            model,
            records,
            ctx.task,
            sampling=decoding(ctx),
            out_samples=out,
            fingerprint=str(weights_key(ref.source)),
            group_by=grouping(ctx),
            on_progress=ctx.progress(stage),
        )
    finally:
        await model.close()


def grouping(ctx: Context) -> str | None:
    """The field whose rows are resampled together."""
    return None if ctx.config.data.split_by == "time" else ctx.config.data.group_by
