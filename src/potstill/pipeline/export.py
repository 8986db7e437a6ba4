"""Stage export: the student as files for other engines, each proven equal before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.pipeline.context import Context, weights_key
from potstill.protocols import resolve
from potstill.rundir import read_jsonl
from potstill.types import Message, Record

NUM_PARITY_PROMPTS = 32


def export(ctx: Context) -> None:
    """Makes every artefact the config names; an unequal one is refused and not kept."""
    for name in ctx.config.export:
        _export_one(ctx, name)


def exported_files(ctx: Context) -> dict[str, Path]:
    """Artefacts that can be asked like a model: name as in the config -> main file."""
    found = {}
    for name in ctx.config.export:
        file = ctx.run.facts(f"export-{name}").get("file")
        if file and file.endswith(".gguf") and (ctx.run.export(name) / file).exists():
            found[name] = ctx.run.export(name) / file
    return found


def _export_one(ctx: Context, name: str) -> None:
    run = ctx.run
    kind, _, quant = name.partition(":")

    def work() -> dict[str, Any]:
        from potstill.export.parity import check_gguf

        make = resolve("exporter", kind)
        file = make(run.model, run.export(name), quant=quant or None)
        facts: dict[str, Any] = {"file": file.name}
        text = file.name
        if file.is_file():
            facts["bytes"] = file.stat().st_size
            text += f", {file.stat().st_size / 1e6:,.0f} MB"
        if file.suffix == ".gguf":
            prompts = _prompts(ctx)
            parity = check_gguf(run.model, file, prompts, min_prompts=len(prompts))
            facts["parity"] = parity.model_dump(mode="json")
            text += (
                f"; same next token as the student at {parity.argmax_agreement:.1%} of "
                f"{parity.num_tokens:,} places"
            )
        return {**facts, "text": text}

    ctx.stage(f"export-{name}", (name, weights_key(run.model)), work)


def _prompts(ctx: Context) -> list[tuple[Message, ...]]:
    """Prompts that an artefact is compared on: training ones, since the test set stays closed."""
    records = read_jsonl(ctx.run.train, Record) + read_jsonl(ctx.run.validation, Record)
    return [ctx.task.turns(record)[0].messages for record in records[:NUM_PARITY_PROMPTS]]
