"""The command that says what a run will take: of its teacher, and of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from potstill.pipeline.estimate import Forecast
    from potstill.pipeline.estimate_training import TrainingForecast

Training = Annotated[
    bool,
    typer.Option(
        "--training/--no-training",
        help="Train for 20 steps, where the student's weights are here, to see what all take.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds `estimate`."""
    app.command("estimate")(estimate)


def estimate(
    config: ConfigFile,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    training: Training = True,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Say what asking the teacher and training the student will take. Asks nobody.

    Requests, tokens, money and time of teacher and judge; memory, time and energy of training, from
    20 steps on this machine, and the largest micro-batch that fits.

    Example: potstill estimate distill.yaml
    """
    go_offline(offline)
    from potstill.models.workspace import find_models
    from potstill.pipeline.context import Context
    from potstill.pipeline.estimate import estimate as forecast

    job, folder = read_config(config, overrides, runs)
    ctx = Context(job.config, folder, find_models(), job.secrets)
    found = forecast(ctx, training=training)
    if json:
        console.print_json(found.model_dump(mode="json"))
        return
    console.print_line(f"{found.num_records:,} records, {found.num_requests:,} requests")
    _print_asking(found)
    if found.judge is not None:
        console.print_line()
        console.print_line(
            f"judge: {found.judge.num_records:,} test answers, at most "
            f"{found.judge.num_requests:,} requests"
        )
        _print_asking(found.judge)
    if found.training is not None:
        _print_training(found.training)


def _print_asking(found: Forecast) -> None:
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


def _print_training(found: TrainingForecast) -> None:
    gigabytes = [(found.peak_memory_bytes or 0) / 1e9, (found.usable_memory_bytes or 0) / 1e9]
    rows = [("memory", f"{gigabytes[0]:,.2f} of {gigabytes[1]:,.2f} GB")]
    if found.seconds is not None:
        likely, low, most = map(
            console.duration, (found.seconds, found.seconds_low, found.seconds_most)
        )
        rows.append(("time", f"{likely} ({low} to {most})"))
        parts = f"{found.micro_batch_size} rows at once"
        if found.accumulation and found.accumulation > 1:
            parts += f", {found.accumulation} times a step"
        rows.append(("micro-batch", parts))
        joules = found.joules_per_step
        energy = found.energy_source if joules is None else f"{joules:,.0f} J a step"
        rows.append(("energy", energy if joules is None else f"{energy}, {found.energy_source}"))
    console.print_line()
    console.print_line(
        f"training: {found.num_rows:,} rows, {found.num_steps:,} steps, "
        f"{found.num_trainable or 0:,} of {found.num_parameters or 0:,} weights, "
        f"{found.precision} on {found.device or 'this machine'}"
    )
    console.print_table(("", "training"), rows)
    for note in found.notes:
        console.print_note(note)
    if found.proposal:
        console.print_line("fits with a change: " if found.seconds else "does not fit: ")
        console.print_line(f"  {found.proposal}")
