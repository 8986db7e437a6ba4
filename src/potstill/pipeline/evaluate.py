"""Stages evaluate, compare and report: everybody answers the same test records."""

from __future__ import annotations

from potstill.pipeline.context import Context
from potstill.pipeline.preflight import place_key
from potstill.pipeline.train import student_folder


def rows_of(ctx: Context) -> dict[str, str]:
    """Row of the report -> where its model is: a folder, a file, or the teacher's place."""
    config, run = ctx.config, ctx.run
    rows: dict[str, str] = {}
    if config.evaluate.teacher:
        rows["teacher"] = place_key(ctx, config.teacher)
    for name in config.evaluate.baselines:
        if name == "untouched":
            rows[name] = str(student_folder(ctx))
        elif name != "plain" and run.variant(name).model.exists():
            rows[name] = str(run.variant(name).model)
    rows["distilled"] = str(run.model)
    return rows
