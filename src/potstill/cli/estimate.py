"""The command that says what a run will ask of its teacher, and what that costs."""

from __future__ import annotations

import typer

from potstill import console
from potstill.cli.options import (
    RUNS,
    ConfigFile,
    Json,
    Offline,
    Overrides,
    Runs,
    go_offline,
    read_config,
)


def add_to(app: typer.Typer) -> None:
    """Adds `estimate`."""
    app.command("estimate")(estimate)


def estimate(
    config: ConfigFile,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Say what asking the teacher will take: requests, tokens, money and time. Asks nobody.

    Example: potstill estimate distill.yaml
    """
    go_offline(offline)
    from potstill.models.workspace import find_models
    from potstill.pipeline.context import Context
    from potstill.pipeline.estimate import estimate as forecast

    job, folder = read_config(config, overrides, runs)
    found = forecast(Context(job.config, folder, find_models(), job.secrets))
    if json:
        console.print_json(found.model_dump(mode="json"))
        return
    console.print_line(f"{found.num_records:,} records, {found.num_requests:,} requests")
    parts = [
        ("prompt tokens", found.prompt_tokens, lambda value: f"{value:,.0f}"),
        ("answer tokens", found.answer_tokens, lambda value: f"{value:,.0f}"),
        ("cost", found.cost, lambda value: f"{value:,.4f}"),
        ("time", found.seconds, console.duration),
    ]
    rows = [
        (name, *("not known" if v is None else show(v) for v in (r.low, r.likely, r.most)))
        for name, r, show in parts
        if r is not None
    ]
    console.print_table(("", "low", "likely", "most"), rows)
    for note in found.notes:
        console.print_note(note)
