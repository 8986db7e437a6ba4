"""Stage evaluate: everybody answers the same test records."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.examine.memory import disk_bytes
from potstill.examine.numbers import number
from potstill.examine.reuse import AnswerStore, answer_store
from potstill.examine.run import evaluate as evaluate_model
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.logprobs import Capture
from potstill.pipeline.context import Context, decoding, prepared, wait
from potstill.pipeline.data import gold_records
from potstill.pipeline.export import exported_files
from potstill.pipeline.general import general
from potstill.pipeline.judge import judge
from potstill.pipeline.labelled import grouping
from potstill.pipeline.measure import Row, measure
from potstill.pipeline.takes import put_under_load
from potstill.pipeline.teachers import open_teachers, teachers_ref
from potstill.pipeline.train import student_folder
from potstill.protocols import ChatModel, resolve_attribute
from potstill.rundir import read_jsonl, write_text
from potstill.types import Evaluation, Record, metric_name


def rows_of(ctx: Context) -> list[Row]:
    """Who is compared: teacher, untouched student, variants, distilled student, artefacts."""
    config, run = ctx.config, ctx.run
    rows = [teacher_row(ctx)] if config.evaluate.teacher else []
    places: dict[str, Path] = {}
    for name in config.evaluate.baselines:
        if name == "untouched":
            places[name] = student_folder(ctx)
        elif name != "plain" and run.variant(name).model.exists():
            places[name] = run.variant(name).model
    places["distilled"] = run.model
    places |= exported_files(ctx)
    return rows + [Row(role, find_model(str(place))) for role, place in places.items()]


def teacher_row(ctx: Context) -> Row:
    """The teacher, or several as one, as a row, with the engine that is launched for one."""
    engine = (ctx.config.teachers[0].launch or "") if len(ctx.config.teachers) == 1 else ""
    return Row("teacher", teachers_ref(ctx), is_teacher=True, engine=engine)


def has_logits(row: Row) -> bool:
    """Whether a row is one model whose weights are opened here, which tell all probabilities."""
    return row.ref.kind == "huggingface" and not row.engine


def evaluate(ctx: Context) -> None:
    """Lets every row answer the test set; nothing is done without one."""
    run = ctx.run
    records = read_jsonl(run.test, Record)
    if not records:
        ctx.tell("evaluate", "note", "no test set (data.test), so nothing is compared")
        return
    rows = rows_of(ctx)
    for row in rows:
        _evaluate_row(ctx, row, records)
    if "plain" in ctx.config.evaluate.baselines:
        _evaluate_plain(ctx, records)
    if ctx.config.evaluate.general_tasks:
        general(ctx, rows)
    plain = run.facts("evaluate-plain").get("roles", [])
    judge(ctx, [*(row.role for row in rows), *plain])
    if ctx.config.evaluate.num_latency_calls >= 2:
        measure(ctx, rows, records, opened, decoding(ctx))
    if ctx.config.evaluate.load is not None:
        put_under_load(ctx, rows, records, opened, decoding(ctx))


def evaluate_exports(ctx: Context) -> dict[str, Evaluation]:
    """Lets the student and its artefacts that engines here run answer the test set.

    Who has answered it is not asked again; the teacher's evaluation is added where there is one.

    Raises:
        ConfigError: If the run has no test set.
    """
    run = ctx.run
    records = read_jsonl(run.test, Record)
    if not records:
        raise ConfigError(f"{run.path} has no test set (data.test), so no artefact can be judged")
    places = {"distilled": run.model, **exported_files(ctx)}
    for role, place in places.items():
        _evaluate_row(ctx, Row(role, find_model(str(place))), records)
    there = [role for role in ("teacher", *places) if run.evaluation(role).exists()]
    return {
        role: Evaluation.model_validate_json(run.evaluation(role).read_text(encoding="utf-8"))
        for role in there
    }


@contextlib.asynccontextmanager
async def opened(
    ctx: Context,
    row: Row,
    batch_size: int,
    capture: Capture | None = None,
    *,
    when_asked: bool = False,
) -> AsyncIterator[ChatModel]:
    """The row's model, closed again afterwards.

    Args:
        capture: What local weights keep of their probabilities.
        when_asked: Whether a model that is known by its weights is waited for when it is asked
            only, which it is not where all its answers are kept.
    """
    model: ChatModel = (
        open_teachers(ctx, batch_size=batch_size, capture=capture, when_asked=when_asked)
        if row.is_teacher
        else open_chat_model(
            row.ref,
            workspace=ctx.workspace,
            batch_size=batch_size,
            capture=capture,
            when_asked=when_asked,
        )
    )
    try:
        is_late = when_asked and not row.engine and getattr(model, "known_as", None)
        if not is_late:
            await prepared(model, ctx.progress(f"evaluate-{row.role}"))
        yield model
    finally:
        await model.close()


def _evaluate_row(ctx: Context, row: Row, records: list[Record]) -> None:
    run, settings = ctx.run, ctx.config.evaluate
    stage = f"evaluate-{row.role}"
    is_several = len(ctx.config.teachers) > 1

    async def ask(store: AnswerStore | None) -> Evaluation:
        named = {metric_name(name) for name in settings.metrics or ()}
        capture = Capture(k=1) if "ece" in named else None
        async with contextlib.AsyncExitStack() as stack:
            opening = opened(ctx, row, settings.batch_size, capture, when_asked=True)
            model = await stack.enter_async_context(opening)
            teacher = None
            if (
                "divergence" in named
                and not row.is_teacher
                and not is_several
                and (has_logits(teacher_row(ctx)))
            ):
                opening = opened(ctx, teacher_row(ctx), settings.batch_size, when_asked=True)
                teacher = await stack.enter_async_context(opening)
            return await evaluate_model(
                model,
                records,
                ctx.task,
                role=row.role,
                metrics=settings.metrics,
                sampling=decoding(ctx),
                out_samples=run.samples(row.role),
                format="several" if row.is_teacher and is_several else row.ref.kind,
                fingerprint=str(row.key),
                num_parameters=getattr(model, "num_parameters", None),
                disk_bytes=_disk_bytes(row),
                setting=getattr(model, "setting", {}),
                group_by=grouping(ctx),
                history=settings.history,
                store=store,
                slices=settings.slices,
                seed=settings.seed,
                teacher=teacher,
                on_progress=ctx.progress(stage),
            )

    def work() -> dict[str, Any]:
        with answer_store(settings.reuse_answers, megabytes=settings.reuse_megabytes) as store:
            found = wait(ask(store))
        write_text(run.evaluation(row.role), found.model_dump_json(indent=1) + "\n")
        name, first = next(iter(found.metrics.items()))
        return {"text": f"{first.n:,} answers, {name} {number(first.value, first.unit)}"}

    asked = (row.key, run.test, decoding(ctx), ctx.config.task, settings.history, grouping(ctx))
    ctx.stage(stage, (*asked, settings.metrics, settings.slices, settings.seed), work)


def _disk_bytes(row: Row) -> int | None:
    """Size of the weights, without tokenizer and notes; None where they are not known to be here.

    An engine finds the weights of a name itself, in a place of its own.
    """
    from potstill.models.weights import cached_folder

    path = Path(row.ref.source)
    if row.ref.kind == "endpoint" or (row.engine and not path.exists()):
        return None
    is_as_it_is = row.engine or row.ref.kind != "huggingface"
    return disk_bytes(path if is_as_it_is else cached_folder(row.ref))


def _evaluate_plain(ctx: Context, records: list[Record]) -> None:
    run, settings = ctx.run, ctx.config.evaluate
    if not ctx.task.closed and settings.fields is None:
        raise ConfigError(
            f"evaluate.baselines: plain needs answers from a small set, and task: "
            f"{ctx.config.task} has none; leave it out, or name in evaluate.fields a function "
            f"that reads an answer into fields"
        )

    def work() -> dict[str, Any]:
        from potstill.examine.plain import plain_rivals

        fields = join = None
        if settings.fields:
            fields = resolve_attribute(settings.fields)
            join = resolve_attribute(settings.fields_join or "")
        accepted = read_jsonl(run.accepted, Record)
        try:
            gold = gold_records(ctx)
        except ConfigError:
            gold = []  # plain rivals then learn from the teacher's answers alone
        found = wait(
            plain_rivals(
                gold=gold,
                taught=[(record, record.reference or "") for record in accepted],
                test=records,
                task=ctx.task,
                samples_path=run.samples,
                metrics=settings.metrics,
                fields=fields,
                join=join,
                group_by=grouping(ctx),
                slices=settings.slices,
                seed=settings.seed,
            )
        )
        for role, evaluation in found.items():
            write_text(run.evaluation(role), evaluation.model_dump_json(indent=1) + "\n")
        return {"roles": list(found), "text": ", ".join(found)}

    asked = (settings.metrics, settings.slices, settings.fields, settings.seed)
    inputs = (run.accepted, run.test, run.train, *asked)
    ctx.stage("evaluate-plain", inputs, work)
