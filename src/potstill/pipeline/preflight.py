"""What can be found out before anything long starts: models, keys, vocabularies, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.config import StudentConfig, TeacherConfig
from potstill.data.privacy import Privacy
from potstill.data.render import vocab_fingerprint
from potstill.errors import ConfigError, VocabMismatch
from potstill.examine.metrics import get_metric
from potstill.models.batches import in_batches
from potstill.models.catalog import ModelRef, find_model
from potstill.models.chat import open_chat_model
from potstill.models.terms import terms_of
from potstill.pipeline.context import Context, prepared, wait
from potstill.protocols import resolve
from potstill.types import Sampling


def preflight(ctx: Context) -> None:
    """Refuses a run that cannot succeed, before anything is spent.

    Names are resolved, a remote or launched teacher is called once, and for a loss on
    probabilities the two tokenizers are compared.

    Raises:
        ConfigError: An unknown model, metric, check or exporter; a loss on probabilities
            with a teacher that gives none; a teacher whose terms forbid it, and were not accepted.
        VocabMismatch: Teacher and student have different tokenizers and the loss needs one.
        TeacherRefused: The endpoint refused the key, the URL or the model's name.
    """
    config = ctx.config
    for name in config.evaluate.metrics or ():
        get_metric(name)
    for name in config.checks:
        resolve("check", name)
    for export in config.export:
        resolve("exporter", export.partition(":")[0])
    _refuse_forbidden(ctx)
    teacher = teacher_ref(ctx)
    student = find_model(config.student.place, workspace=ctx.workspace)
    if student.kind == "endpoint":
        raise ConfigError(
            f"student: {config.student.place} is an endpoint; a student is weights that can be "
            f"trained: a short name or a folder"
        )
    if config.loss.kind != "sft":
        _refuse_without_probabilities(ctx, teacher, student)
    privacy_of(ctx)
    if config.teacher.batch and teacher.kind != "endpoint":
        raise ConfigError(
            f"teacher.batch is for the batch interfaces of OpenAI and Anthropic, and "
            f"{config.teacher.place} is a model on this machine; use teacher.batch: false"
        )
    if (teacher.kind == "endpoint" or _launches(ctx)) and _asks_the_teacher(ctx):
        wait(_dry_call(ctx))


def teacher_ref(ctx: Context) -> ModelRef:
    """The teacher's place, resolved through workspace and catalogue."""
    return find_model(ctx.config.teacher.place, workspace=ctx.workspace)


def place_key(ctx: Context, model: TeacherConfig | StudentConfig) -> str:
    """Where a model's weights are, for stage hashes."""
    return find_model(model.place, workspace=ctx.workspace).source


def privacy_of(ctx: Context) -> Privacy:
    """What is hidden from the config's teacher."""
    return Privacy(ctx.config.data.privacy, leaves=teacher_ref(ctx).kind == "endpoint")


def privacy_key(ctx: Context) -> tuple[Any, ...]:
    """What the hidden form of a record depends on, for stage hashes."""
    settings = ctx.config.data.privacy
    names = [settings.names] if isinstance(settings.names, Path) else []
    return (settings, privacy_of(ctx).mode, *names)


def _asks_the_teacher(ctx: Context) -> bool:
    config = ctx.config
    is_compared = config.evaluate.teacher and config.data.test is not None
    return config.data.logged_answers == "regenerate" or is_compared


def _launches(ctx: Context) -> bool:
    """Whether an engine is to be started that this run has not been answered by yet."""
    return ctx.config.teacher.launch is not None and not ctx.run.facts("teach")


def _refuse_forbidden(ctx: Context) -> None:
    if ctx.config.data.logged_answers == "reuse":
        return  # whoever gave those answers, it is not the config's teacher
    terms = terms_of(ctx.config.teacher, workspace=ctx.workspace)
    if terms.train_on_outputs == "no" and not terms.accepted:
        raise ConfigError(
            f"{terms.text}. Take another teacher; or, if you have read them and may all the same, "
            f"say so with potstill run --accept-terms or teacher: {{accept_terms: true}}"
        )
    if terms.text:
        ctx.tell("teach", "note", terms.text)


async def _dry_call(ctx: Context) -> None:
    generation = ctx.config.generation
    sampling = Sampling(
        temperature=generation.temperature,
        top_p=generation.top_p,
        stop=generation.stop,
        frequency_penalty=generation.frequency_penalty,
        presence_penalty=generation.presence_penalty,
    )
    model = open_chat_model(
        ctx.config.teacher, workspace=ctx.workspace, key=ctx.secrets.get("teacher")
    )
    try:
        await prepared(model, ctx.progress("teach"))
        await model.dry_call(sampling, top_logprobs=generation.logprobs)
        if ctx.config.teacher.batch and ctx.config.data.logged_answers == "regenerate":
            await in_batches(model).batches.check()
    finally:
        await model.close()


def _refuse_without_probabilities(ctx: Context, teacher: ModelRef, student: ModelRef) -> None:
    kind = ctx.config.loss.kind
    if teacher.kind == "endpoint":
        raise ConfigError(
            f"loss.kind: {kind} reads the teacher's probabilities, but {teacher.source} only "
            f"returns text; use loss.kind: sft, or a teacher whose weights are on this machine"
        )
    from potstill.models.weights import load_tokenizer

    ours, theirs = (vocab_fingerprint(load_tokenizer(ref)) for ref in (student, teacher))
    if ours != theirs:
        raise VocabMismatch(
            f"loss.kind: {kind} compares probabilities token by token, but {teacher.name} and "
            f"{student.name} have different vocabularies; use loss.kind: sft, which learns the "
            f"teacher's text, or a student of the teacher's family"
        )
