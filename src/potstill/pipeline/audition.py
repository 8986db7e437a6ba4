"""Candidate teachers and untouched students on rows with known answers of the user's data.

Teachers are asked as the run would ask them, through the run's own ledger: nothing is asked twice,
and what the chosen one said to training rows is there when the run begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from potstill.config import StudentConfig, TeacherConfig
from potstill.errors import (
    ConfigError,
    DataError,
    MissingExtra,
    OfflineError,
    TeacherError,
)
from potstill.examine.audition import (
    ADVISED_ROWS,
    Audition,
    Candidate,
    build_audition,
    render_audition,
    share_accepted,
)
from potstill.examine.memory import memory_of, memory_of_engine
from potstill.examine.run import named_metrics
from potstill.examine.speed import NETWORK, measure_latency
from potstill.examine.times import median_seconds
from potstill.models.catalog import ModelRef, find_model
from potstill.models.chat import open_chat_model
from potstill.models.engines import GgufModel
from potstill.models.terms import terms_of
from potstill.pipeline.check import judges
from potstill.pipeline.context import Context, decoding, wait, weights_key
from potstill.pipeline.data import load, split
from potstill.pipeline.labelled import (
    ask_teacher,
    ask_untouched,
    asked_once,
    labelled,
    samples_of,
    untouched_ref,
)
from potstill.pipeline.preflight import asked_generation
from potstill.pipeline.teachers import screen
from potstill.protocols import ChatModel
from potstill.rundir import read_jsonl, write_jsonl, write_text
from potstill.types import Estimate, Record, Response, Sample

_UNASKABLE = (ConfigError, DataError, MissingExtra, OfflineError, TeacherError)
"""What is the matter with one candidate; anything else ends the audition."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A candidate before it is asked."""

    name: str
    model: TeacherConfig | StudentConfig
    key: SecretStr | None = None

    @property
    def is_teacher(self) -> bool:
        return isinstance(self.model, TeacherConfig)


def audition(
    ctx: Context,
    *,
    teachers: Sequence[str] = (),
    students: Sequence[str] = (),
    num_rows: int = ADVISED_ROWS,
) -> Audition:
    """Asks every candidate the same rows, and says which is best and which is worth it.

    A candidate that cannot be asked is a row with the reason. The same call again asks nothing.

    Args:
        teachers: Names, folders, files or URLs; the config's own teachers by default, each asked
            all rows alone. The place of one of them stands for all of its settings.
        students: Untouched students; the config's own by default.
        num_rows: Training rows with known answers that are asked, where there are so many.

    Raises:
        DataError: If no training row has a known answer.
        TeacherError: If no teacher could be asked; the reasons are in the message.
        RunLocked: Another process works in this run folder.
    """
    ctx = _changed(ctx, **asked_once(ctx.config.generation).model_dump())
    entries, warnings = _entries(ctx, teachers, students)
    with ctx.run.locked():
        load(ctx)
        split(ctx)
        records = labelled(ctx, num_rows)
        if not records:
            raise DataError(
                "no training record has a known answer, so nobody can be marked; give answers to "
                f"{ADVISED_ROWS} rows or more of train_data"
            )
        candidates = [_candidate(ctx, entry, records) for entry in entries]
        failed = [c for c in candidates if c.role == "teacher" and c.error]
        if len(failed) == sum(entry.is_teacher for entry in entries):
            reasons = "; ".join(f"{c.name}: {c.error}" for c in failed)
            raise TeacherError(f"no teacher could be asked: {reasons}")
        folder = ctx.run.audition()
        found = build_audition(
            run=ctx.config.name,
            task=ctx.config.task,
            candidates=candidates,
            samples={
                c.name: read_jsonl(folder.samples(c.name), Sample)
                for c in candidates
                if not c.error
            },
            metrics=named_metrics(ctx.task, ctx.config.evaluate.metrics),
            num_rows=len(records),
            seed=ctx.config.evaluate.seed,
            warnings=[*warnings, *(c.terms for c in candidates if c.terms)],
        )
        write_text(folder.report_json, found.model_dump_json(indent=1) + "\n")
        write_text(folder.report_markdown, render_audition(found))
    return found


def _changed(ctx: Context, **generation: Any) -> Context:
    changed = ctx.config.generation.model_copy(update=generation)
    return dataclasses.replace(ctx, config=ctx.config.model_copy(update={"generation": changed}))


def _entries(
    ctx: Context, teachers: Sequence[str], students: Sequence[str]
) -> tuple[list[_Entry], list[str]]:
    """The candidates with names that differ, and what is to be said about them."""
    config, warnings = ctx.config, []
    own = {name: one for one in reversed(config.teachers) for name in (one.model, one.place)}
    asked = [
        own.get(place) or TeacherConfig(source=place) for place in dict.fromkeys(teachers)
    ] or list(config.teachers)
    is_alone = len(config.teachers) == 1
    pupils = [StudentConfig(source=place) for place in dict.fromkeys(students)]
    if not pupils and config.student.prune is None:
        pupils = [config.student]
    if not pupils:
        warnings.append(
            "the student is still to be cut out of another model, so no untouched student was asked"
        )
    names: dict[str, None] = {}
    entries = []
    for model in (*asked, *pupils):
        name = _free_name(_name_of(model), names)
        names[name] = None
        is_own = is_alone and model is config.teacher
        entries.append(_Entry(name, model, ctx.secrets.get("teacher") if is_own else None))
    return entries, warnings


def _name_of(model: TeacherConfig | StudentConfig) -> str:
    if isinstance(model, TeacherConfig) and model.model:
        return model.model
    place = model.place if "://" in model.place else model.place.rstrip("/").rpartition("/")[2]
    return place if isinstance(model, TeacherConfig) else f"untouched {place}"


def _free_name(name: str, taken: dict[str, None]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def _candidate(ctx: Context, entry: _Entry, records: list[Record]) -> Candidate:
    """Asks one candidate, unless it was asked these very rows in this very way."""
    role = "teacher" if entry.is_teacher else "untouched"
    about: dict[str, Any] = {"name": entry.name, "role": role, "place": entry.model.place}
    stage = f"audition-{entry.name}"
    out = ctx.run.audition()

    def work() -> dict[str, Any]:
        ask = _asked_teacher if entry.is_teacher else _asked_student
        samples, facts = ask(ctx, entry, ref, records)
        write_jsonl(out.samples(entry.name), samples)
        right = [sample.correct for sample in samples if sample.correct is not None]
        share = f", {sum(right) / len(right):.3f} right" if right else ""
        return {**facts, "text": f"{facts['num_answers']:,} answers{share}"}

    try:
        ref = find_model(entry.model.place, workspace=ctx.workspace)
        if not entry.is_teacher:
            ref = untouched_ref(ctx, entry.model.place)
        else:
            terms = terms_of(entry.model, workspace=ctx.workspace)
            about |= {"licence": terms.licence, "terms": terms.text}
        if entry.is_teacher and ref.kind != "endpoint":  # which has no price, and needs none
            ctx = _changed(ctx, max_cost=None)
        about["format"] = ref.kind
        config = ctx.config
        rows = [record.model_dump(mode="json") for record in records]
        inputs = (
            *(role, weights_key(ref.source), getattr(entry.model, "model", None) or ref.model),
            *(config.task, config.generation, config.checks, config.check_limits),
            *(config.evaluate, config.data.privacy, rows),
        )
        if not out.samples(entry.name).exists():
            ctx.run.mark(stage).unlink(missing_ok=True)
        ctx.stage(stage, inputs, work)
    except _UNASKABLE as error:
        ctx.tell(stage, "note", f"could not be asked: {error}")
        return Candidate(**about, error=str(error))
    facts = ctx.run.facts(stage)
    names = ("num_answers", "num_accepted", "metrics", "cost", "cost_per_accepted")
    return Candidate.model_validate({**about, **{name: facts[name] for name in names}})


def _asked_teacher(
    ctx: Context, entry: _Entry, ref: ModelRef, records: list[Record]
) -> tuple[list[Sample], dict[str, Any]]:
    stage = f"audition-{entry.name}"
    seed = ctx.config.evaluate.seed
    # The run asks its own teacher nothing twice, so it is asked here as it will be there.
    generation = asked_generation(ctx) if entry.model == ctx.config.teacher else None

    async def ask() -> tuple[list[Response], dict[str, Estimate]]:
        async with _opened(ctx, entry) as model:
            if (prepare := getattr(model, "prepare", None)) is not None:
                await prepare()
            started = time.monotonic()
            counts, responses = await ask_teacher(
                ctx, model, records, part=stage, stage=stage, generation=generation
            )
            seconds = time.monotonic() - started
            if not counts.answered:
                raise TeacherError(f"none of {len(records):,} prompts: {responses[0].error}")
            found, num_new = {}, counts.answered - counts.reused
            note = f"up to {model.max_in_flight:,} requests open at once"
            if num_new:
                found["answers_per_second"] = Estimate(
                    value=num_new / seconds, n=num_new, unit="answers/s", note=note
                )
            is_launched = getattr(entry.model, "launch", None) is not None
            if ref.kind == "endpoint" or is_launched:
                note = note if is_launched else f"{NETWORK}; {note}"
                times = [r.seconds for r in responses if r.finish_reason != "error"]
                found["latency"] = median_seconds(times, note=note, seed=seed)
            return responses, found

    responses, metrics = wait(ask())
    if "latency" not in metrics:
        metrics |= _measured_here(ctx, ref, records)
    num_answers = sum(response.finish_reason != "error" for response in responses)
    num_accepted = _num_accepted(ctx, records, responses)
    costs = [response.cost for response in responses if response.cost is not None]
    cost = sum(costs) if costs else None
    metrics["accepted"] = share_accepted(num_accepted, len(records))
    return samples_of(ctx, records, responses), {
        "num_answers": num_answers,
        "num_accepted": num_accepted,
        "metrics": _dumped(metrics),
        "cost": cost,
        "cost_per_accepted": None if cost is None or not num_accepted else cost / num_accepted,
    }


def _asked_student(
    ctx: Context, entry: _Entry, ref: ModelRef, records: list[Record]
) -> tuple[list[Sample], dict[str, Any]]:
    out = ctx.run.audition().samples(entry.name)
    samples = wait(ask_untouched(ctx, ref, records, out, stage=f"audition-{entry.name}"))
    metrics = _measured_here(ctx, ref, records)
    seconds = sum(sample.seconds for sample in samples)
    if seconds:
        note = f"in batches of {ctx.config.evaluate.batch_size}"
        metrics["answers_per_second"] = Estimate(
            value=len(samples) / seconds, n=len(samples), unit="answers/s", note=note
        )
    return samples, {
        "num_answers": sum(not sample.error for sample in samples),
        "num_accepted": None,
        "metrics": _dumped(metrics),
        "cost": None,
        "cost_per_accepted": None,
    }


@contextlib.asynccontextmanager
async def _opened(ctx: Context, entry: _Entry) -> AsyncIterator[ChatModel]:
    """The candidate teacher behind the screen that its own place calls for."""
    generation = ctx.config.generation
    wanted = generation.max_in_flight
    opened = open_chat_model(
        entry.model,
        workspace=ctx.workspace,
        batch_size=generation.batch_size,
        max_in_flight=None if wanted == "auto" else wanted,
        key=entry.key,
    )
    model = screen(ctx, opened, entry.model)
    try:
        yield model
    finally:
        await model.close()


def _num_accepted(ctx: Context, records: list[Record], responses: list[Response]) -> int:
    rows = (
        (record, [] if response.finish_reason == "error" else [response])
        for record, response in zip(records, responses, strict=True)
    )
    with judges(ctx) as judged:
        return sum(bool(outcome.accepted) for outcome in judged(rows, []))


def _measured_here(ctx: Context, ref: ModelRef, records: list[Record]) -> dict[str, Estimate]:
    """Speed of single calls and memory of a model of this machine."""
    settings = ctx.config.evaluate
    if settings.num_latency_calls < 2:
        return {}

    async def ask() -> dict[str, Estimate]:
        model = open_chat_model(ref, batch_size=1)
        try:
            found = await measure_latency(
                model,
                records,
                task=ctx.task,
                sampling=decoding(ctx),
                num_calls=settings.num_latency_calls,
                seed=settings.seed,
            )
            if isinstance(model, GgufModel):
                peak = model.memory_bytes()
                found |= memory_of_engine(Path(ref.source), peak, model.setting)
            return found
        finally:
            await model.close()

    found = wait(ask())
    if ref.kind == "huggingface":
        from potstill.models.weights import cached_folder

        found["memory"] = memory_of(cached_folder(ref), records[0].messages[-1].content)["memory"]
    return found


def _dumped(found: dict[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.model_dump(mode="json") for name, estimate in found.items()}
