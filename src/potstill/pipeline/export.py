"""Stage export: the student as files for other engines, each proven equal before it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError
from potstill.models.catalog import EMBEDDED
from potstill.pipeline.artefacts import NUM_PROMPTS, make_artefact, refuse_early
from potstill.pipeline.context import Context, weights_key
from potstill.rundir import read_jsonl
from potstill.types import Message, Record


def export(ctx: Context) -> None:
    """Makes every artefact the config names; an unequal one is refused and not kept."""
    export_as(ctx, ctx.config.export)


def export_as(
    ctx: Context, names: Sequence[str], *, limits: Mapping[str, float] | None = None
) -> None:
    """Makes artefacts of the run's student in its folder; one that is done is kept.

    Args:
        names: Such as gguf:q8_0.
        limits: Instead of the number formats' own.

    Raises:
        ConfigError: If the run has no student yet. And as `refuse_early`, before any work.
        ExportError: As `make_artefact`.
    """
    if not names:
        return
    run = ctx.run
    if not run.model.is_dir():
        raise ConfigError(f"{run.path} has no student yet; train it: potstill train {run.path}")
    refuse_early(run.model, {name: run.export(name) for name in names}, replace=True)
    for name in names:
        _export_one(ctx, name, dict(limits or {}))


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


def _export_one(ctx: Context, name: str, limits: dict[str, float]) -> None:
    run = ctx.run

    def work() -> dict[str, Any]:
        made = make_artefact(run.model, run.export(name), name, prompts(ctx), limits=limits)
        text = f"{made.file.name}, {made.text}"
        return {"file": made.file.name, "bytes": made.num_bytes, "text": text}

    inputs = (name, weights_key(run.model), *([limits] if limits else []))
    ctx.stage(f"export-{name}", inputs, work)


def prompts(ctx: Context) -> list[tuple[Message, ...]]:
    """Prompts that an artefact is compared on: training ones, since the test set stays closed."""
    records = read_jsonl(ctx.run.train, Record) + read_jsonl(ctx.run.validation, Record)
    return [ctx.task.turns(record)[0].messages for record in records[:NUM_PROMPTS]]
