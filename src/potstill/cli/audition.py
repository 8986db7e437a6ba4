"""The command that tells which teacher is any good on the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    """Adds `audition`."""
    app.command("audition")(audition)


def audition(
    config: ConfigFile,
    overrides: Overrides = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="A candidate: name, folder, file or URL; again for more of them."),
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="An untouched student, instead of the config's.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows with known answers to ask.")] = 100,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Compare teachers, and the untouched student, on known answers in the training data.

    Answers are kept: the same command asks nothing again, and neither does the run.

    Example: potstill audition distill.yaml --teacher deepseek-v3 --teacher qwen3-32b
    """
    go_offline(offline)
    from potstill.jobs.workspace import find_models

    job, folder = read_config(config, overrides, runs)
    models = find_models()
    from potstill.examine.audition import audition_table
    from potstill.pipeline.audition import audition as hold_audition
    from potstill.pipeline.context import Context

    with console.Watch(quiet=json) as watch:
        for note in job.notes:
            watch.note(note)
        ctx = Context(job.config, folder, models, job.secrets, watch)
        found = hold_audition(ctx, teachers=teacher or (), students=student or (), num_rows=rows)
    if json:
        console.print_json(found.model_dump(mode="json"))
        return
    console.print_line()
    console.print_table(*audition_table(found))
    console.print_line()
    for sentence in found.verdict:
        console.print_line(sentence)
    for warning in found.warnings:
        console.print_line(f"warning: {warning}")
    page: Path = folder.audition().report_markdown
    console.print_next([f"open {page}", f"potstill run {config}"])
