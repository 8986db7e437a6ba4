"""Stage export: the student as files for other engines, each proven equal before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.data.render import render_prompt
from potstill.pipeline.context import Context, weights_key
from potstill.protocols import resolve
from potstill.rundir import read_jsonl
from potstill.types import Record

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
        from potstill.export.parity import check_parity
        from potstill.models.weights import load_tokenizer

        make = resolve("exporter", kind)
        file = make(run.model, run.export(name), quant=quant or None)
        facts: dict[str, Any] = {"file": file.name, "bytes": file.stat().st_size}
        text = f"{file.name}, {file.stat().st_size / 1e6:,.0f} MB"
        if file.suffix == ".gguf":
            records = read_jsonl(run.train, Record)[:NUM_PARITY_PROMPTS]
            tokenizer = load_tokenizer(run.model)
            prompts = [
                render_prompt(tokenizer, turn.messages)
                for record in records
                for turn in ctx.task.turns(record)[:1]
            ]
            parity = check_parity(run.model, file, prompts)
            facts["parity"] = parity.model_dump(mode="json")
            text += f"; {parity.text}"
        return {**facts, "text": text}

    ctx.stage(f"export-{name}", (name, weights_key(run.model)), work)
