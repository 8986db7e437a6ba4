"""Stage export: the student as files for other engines, each proven equal before it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.models.catalog import EMBEDDED
from potstill.pipeline.artefacts import NUM_PROMPTS, make_artefact, refuse_early
from potstill.pipeline.context import Context, weights_key
from potstill.pipeline.heal import Lessons, lessons_of_run, make_healed, refuse_unhealable
from potstill.rundir import content_hash, read_jsonl
from potstill.types import Message, Record


def export(ctx: Context) -> None:
    """Makes every artefact the config names; an unequal one is refused and not kept."""
    export_as(ctx, [name for name in ctx.config.export if not _is_healed(ctx, name)])


def export_as(
    ctx: Context,
    names: Sequence[str],
    *,
    limits: Mapping[str, float] | None = None,
    heal: bool = False,
) -> None:
    """Makes artefacts of the run's student in its folder; one that is done is kept.

    Args:
        names: Such as gguf:q8_0.
        limits: Instead of the number formats' own.
        heal: Let the student learn under each one's rounding first, see `pipeline.heal`.

    Raises:
        ConfigError: If the run has no student yet. And as `refuse_early`, before any work.
        ExportError: As `make_artefact`.
    """
    if not names:
        return
    if heal:
        refuse_unhealable(names)
    run = ctx.run
    if not run.model.is_dir():
        raise ConfigError(f"{run.path} has no student yet; train it: potstill train {run.path}")
    refuse_early(run.model, {name: run.export(name) for name in names}, replace=True)
    lessons = lessons_of_run(ctx) if heal else None
    for name in names:
        _export_one(ctx, name, dict(limits or {}), lessons)


def exported_files(ctx: Context) -> dict[str, Path]:
    """Artefacts that can be asked like a model: name as in the config -> main file, or folder."""
    found = {}
    for name in ctx.config.export:
        file = ctx.run.facts(f"export-{name}").get("file")
        if file and file.endswith(".gguf") and (ctx.run.export(name) / file).exists():
            found[name] = ctx.run.export(name) / file
        elif file and name.partition(":")[0] in EMBEDDED and ctx.run.export(name).exists():
            found[name] = ctx.run.export(name)
    return found


def _export_one(ctx: Context, name: str, limits: dict[str, float], lessons: Lessons | None) -> None:
    run, stage = ctx.run, f"export-{name}"
    student, place = run.model, run.export(name)

    def work() -> dict[str, Any]:
        if lessons is None:
            made, more = make_artefact(student, place, name, prompts(ctx), limits=limits), {}
        else:
            told = {"limits": limits, "report": ctx.progress(stage)}
            made = make_healed(student, place, name, prompts(ctx), lessons, **told)
            more = {"healed": content_hash(weights_key(student))}
        text = f"{made.file.name}, {made.text}"
        return {"file": made.file.name, "bytes": made.num_bytes, "text": text, **more}

    healing = [] if lessons is None else ["heal", run.accepted, run.accepted_validation]
    inputs = (name, weights_key(student), *([limits] if limits else []), *healing)
    ctx.stage(stage, inputs, work)


def _is_healed(ctx: Context, name: str) -> bool:
    """Whether somebody had the artefact healed for this very student: a run keeps it then.

    Made anew without healing it might be refused, and the run with it.
    """
    facts, stage = ctx.run.facts(f"export-{name}"), f"export-{name}"
    is_kept = facts.get("healed") == content_hash(weights_key(ctx.run.model))
    if is_kept and (ctx.run.export(name) / facts["file"]).exists():
        ctx.tell(stage, "skipped", facts["text"])
        return True
    return False


def prompts(ctx: Context) -> list[tuple[Message, ...]]:
    """Prompts that an artefact is compared on: training ones, since the test set stays closed."""
    records = read_jsonl(ctx.run.train, Record) + read_jsonl(ctx.run.validation, Record)
    return [ctx.task.turns(record)[0].messages for record in records[:NUM_PROMPTS]]
