"""Who answers in a run: one teacher, or several as one, each behind its own screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from potstill.config import TeacherConfig
from potstill.models.batches import in_batches
from potstill.models.catalog import ModelRef
from potstill.models.chat import open_chat_model
from potstill.models.logprobs import Capture
from potstill.models.private import PrivateModel, guarded
from potstill.models.several import Member, SeveralTeachers, labels_of, route
from potstill.pipeline.context import Context
from potstill.pipeline.data import training_prompts
from potstill.pipeline.preflight import privacy_of, ref_of, teacher_key
from potstill.protocols import ChatModel
from potstill.rundir import LedgerDir, content_hash, iter_jsonl
from potstill.teach.checks import build_checks
from potstill.teach.outcomes import kept_responses
from potstill.types import Record, Response


def open_teachers(
    ctx: Context,
    *,
    batch_size: int,
    max_in_flight: int | None = None,
    batches: bool = False,
    capture: Capture | None = None,
    top_logprobs: int = 0,
    when_asked: bool = False,
) -> ChatModel:
    """The teacher of the config, or all of them as one, shown no personal data.

    Args:
        batches: Whether a teacher that is to be asked through its provider's batches is.
        capture, top_logprobs, when_asked: As `open_chat_model`.

    Raises:
        ConfigError, MissingExtra: As `open_chat_model`.
    """
    config = ctx.config

    def opened(teacher: TeacherConfig) -> ChatModel:
        model: ChatModel = open_chat_model(
            teacher,
            workspace=ctx.workspace,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            # A key that was given in clear is one teacher's, and no other host's.
            key=ctx.secrets.get("teacher") if len(config.teachers) == 1 else None,
            capture=capture,
            top_logprobs=top_logprobs,
            when_asked=when_asked,
        )
        if batches and teacher.batch:
            model = in_batches(model)
        return guarded(model, privacy_of(ctx, teacher))

    if len(config.teachers) == 1:
        return opened(config.teachers[0])
    checks = build_checks(config.generation.fallback_checks, ctx.task, config=config.generation)

    def will_do(record: Record, response: Response) -> bool:
        came = response.finish_reason != "error"
        return came and all(check(record, response) is None for check in checks)

    named = zip(labels_of(config.teachers), config.teachers, strict=True)
    members = [Member(label, opened(teacher), teacher.when) for label, teacher in named]
    return SeveralTeachers(members, config.generation.teachers, task=ctx.task, will_do=will_do)


def screen(ctx: Context, opened: ChatModel, place: TeacherConfig) -> ChatModel:
    """A model that the run has besides its teachers, behind the screen that its place calls for."""
    privacy = privacy_of(ctx, place)
    is_bare = privacy.mode != "off" and privacy_of(ctx).mode == "off"
    # Data of a run whose own teacher is on this machine were not hidden when they were read.
    return PrivateModel(opened, privacy) if is_bare else guarded(opened, privacy)


def teachers_ref(ctx: Context) -> ModelRef:
    """Where the teacher is; several are one place that has no weights."""
    if len(ctx.config.teachers) == 1:
        return ref_of(ctx, ctx.config.teachers[0])
    name = ", ".join(labels_of(ctx.config.teachers))
    source = f"several {content_hash(ctx.config.generation, *teacher_key(ctx))}"
    return ModelRef(name=name, source=source, kind="endpoint")


def refuse_unrouted(ctx: Context) -> None:
    """Looks for the teacher of every record, before one is asked; tells how many each will be.

    Raises:
        DataError: If no rule holds for a record; the message names it.
    """
    config = ctx.config
    if len(config.teachers) == 1 or config.generation.teachers != "route":
        return
    labels, rules = labels_of(config.teachers), [teacher.when for teacher in config.teachers]
    counts = Counter(dict.fromkeys(labels, 0))
    for path in (training_prompts(ctx), ctx.run.validation):
        counts.update(labels[route(record, rules)] for record in iter_jsonl(path, Record))
    if config.evaluate.teacher:
        for record in iter_jsonl(ctx.run.test, Record):
            route(record, rules)
    text = ", ".join(f"{label} {number:,}" for label, number in counts.items())
    ctx.tell("teach", "note", f"records by teacher: {text}")


def is_screened(teacher: ChatModel) -> bool:
    """Whether something is hidden from a teacher, or from one of several."""
    return any(isinstance(model, PrivateModel) for model in _models(teacher))


def screened(teacher: ChatModel, records: Iterable[Record]) -> Iterator[Record]:
    """The records that a teacher is asked behind a screen."""
    for record in records:
        asked = teacher.everyone(record) if isinstance(teacher, SeveralTeachers) else ()
        models = [member.model for member in asked] or [teacher]
        if any(isinstance(model, PrivateModel) for model in models):
            yield record


def said_by(ctx: Context) -> dict[str, dict[str, Any]]:
    """What each of several teachers was asked in this run folder, all outcomes counted.

    Label -> `answers`, `failed` (also those that another teacher was asked in place of) and
    `cost`; empty where there is one teacher.
    """
    if len(ctx.config.teachers) == 1:
        return {}
    names = labels_of(ctx.config.teachers)
    found = {name: {"answers": 0, "failed": 0, "cost": 0.0} for name in names}
    for response in kept_responses(LedgerDir(ctx.run.responses)):
        if response.teacher in found:
            one = found[response.teacher]
            one["failed" if response.finish_reason == "error" else "answers"] += 1
            one["cost"] += response.cost or 0.0
    return found


def _models(teacher: ChatModel) -> list[ChatModel]:
    if isinstance(teacher, SeveralTeachers):
        return [member.model for member in teacher.members]
    return [teacher]
