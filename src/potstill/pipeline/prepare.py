"""Stage prepare: the student, where it is cut out of a larger model."""

from __future__ import annotations

import json
from typing import Any

from potstill.config import PruneConfig
from potstill.data.render import render_prompt
from potstill.models.catalog import find_model
from potstill.models.weights import load_weights
from potstill.pipeline.context import Context, weights_key
from potstill.pipeline.preflight import place_key
from potstill.pipeline.teach import accepted_rows
from potstill.rundir import read_jsonl, write_text
from potstill.types import Record

NUM_PRUNING_PROMPTS = 64
"""Training prompts that decide what a cut student keeps."""


def prepare(ctx: Context) -> None:
    """Cuts the student out of a larger model, where the config wants that."""
    config, run = ctx.config, ctx.run
    cut = config.student.prune
    if cut is None:
        return

    def work() -> dict[str, Any]:
        from potstill.train.prune import save_untouched
        from potstill.train.student import number_format

        place = find_model(cut.from_, workspace=ctx.workspace)
        # In the number format that trained ones are stored in, so that all are of one size.
        weights, arithmetic = number_format(config.train.precision)
        dtype = str(arithmetic or weights).removeprefix("torch.")
        model, tokenizer = load_weights(place, dtype=dtype)
        report = {"from": cut.from_, "parameters": model.num_parameters()}
        model, layers = _cut_layers(ctx, cut, model, tokenizer)
        model, width = _cut_width(ctx, cut, model, tokenizer)
        report |= {"parameters_kept": model.num_parameters(), **layers, **width}
        texts = [part["text"] for part in (layers, width) if part]
        text = f"student: {'; '.join(texts)}; {report['parameters_kept'] / 1e6:,.1f} of "
        text += f"{report['parameters'] / 1e6:,.1f} million weights"
        save_untouched(model, tokenizer, run.untouched)
        write_text(run.cut, json.dumps(report | {"text": text}, indent=1) + "\n")
        told = ("keep", "num_layers", "scores", "ffn", "heads", "kv_heads")
        return {name: report[name] for name in told if name in report} | {"text": text}

    rows = (run.accepted,) if cut.by == "greedy" else ()
    key = weights_key(place_key(ctx, config.student))
    ctx.stage("prepare", (cut, config.train.precision, key, run.train, *rows), work)


def _cut_layers(
    ctx: Context, cut: PruneConfig, model: Any, tokenizer: Any
) -> tuple[Any, dict[str, Any]]:
    """The model with fewer layers, and what went."""
    from potstill.train.prune import choose_layers, cut_layers, greedy_layers

    if cut.layers is None:
        return model, {}
    total, scores, by = model.config.get_text_config().num_hidden_layers, {}, "hand"
    if not isinstance(cut.layers, int):
        keep = cut.layers
    elif cut.by == "greedy":
        pad = tokenizer.pad_token_id
        keep, scores = greedy_layers(
            model,
            accepted_rows(ctx, tokenizer, "train"),
            cut.layers,
            pad_id=tokenizer.eos_token_id if pad is None else pad,
            on_progress=ctx.progress("prepare"),
        )
        by = "greedy"
    else:
        prompts = _prompts(ctx, tokenizer)
        keep, scores = choose_layers(model, tokenizer, prompts, cut.layers, by=cut.by)
        by = cut.by
    text = f"{len(keep)} of {total} layers kept: {', '.join(map(str, keep))}"
    facts = {"keep": list(keep), "num_layers": total, "by": by, "scores": scores}
    return cut_layers(model, keep), {**facts, "text": text}


def _cut_width(
    ctx: Context, cut: PruneConfig, model: Any, tokenizer: Any
) -> tuple[Any, dict[str, Any]]:
    """The model with narrower layers, and what each of them keeps."""
    from potstill.train.width import choose_width, cut_width, width_importance

    if cut.ffn is None and cut.heads is None and cut.kv_heads is None:
        return model, {}
    before = model.config.get_text_config()
    importance = width_importance(model, _prompts(ctx, tokenizer))
    width = choose_width(
        importance,
        before.num_key_value_heads,
        ffn=cut.ffn,
        heads=cut.heads,
        kv_heads=cut.kv_heads,
    )
    narrow = cut_width(model, width)
    after = narrow.config.get_text_config()
    names = {
        "ffn": ("intermediate_size", "feed-forward channels"),
        "heads": ("num_attention_heads", "query heads"),
        "kv_heads": ("num_key_value_heads", "key-value heads"),
    }
    facts: dict[str, Any] = {}
    for key, (name, _) in names.items():
        facts[key] = {"of": getattr(before, name), "kept": getattr(after, name)}
    cut_ones = [key for key, found in facts.items() if found["of"] != found["kept"]]
    said = [f"{facts[key]['kept']:,} of {facts[key]['of']:,} {names[key][1]}" for key in cut_ones]
    facts["channels_kept"], facts["heads_kept"] = width.channels, width.heads
    facts["activity_kept"] = {
        what: [
            round((active[kept].sum() / active.sum().clamp_min(1e-30)).item(), 4)
            for active, kept in zip(measured, chosen, strict=True)
        ]
        for what, measured, chosen in (
            ("channels", importance.channels, width.channels),
            ("heads", importance.heads, width.heads),
        )
    }
    text = f"each layer keeps {', '.join(said)}" if said else "no layer made narrower"
    return narrow, {**facts, "text": text}


def _prompts(ctx: Context, tokenizer: Any) -> list[Any]:
    records = read_jsonl(ctx.run.train, Record)[:NUM_PRUNING_PROMPTS]
    return [render_prompt(tokenizer, record.messages) for record in records]
