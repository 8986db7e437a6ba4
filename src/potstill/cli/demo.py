"""The command that shows everything: a real distillation on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, go_offline
from potstill.rundir import RunDir
from potstill.types import Report

STORY = """\
A customer-support message goes in, a ticket comes out:
  "hi, the jade desk fan I ordered a fortnight ago is still not here, please hurry"
  track | jade desk fan | 2 weeks | urgent
The teacher is SmolLM2-135M-Instruct, tuned here and now on a few hundred messages with tickets.
It labels messages it has not seen; a student with 13 of its 30 layers learns from that. Then all
answer the same test messages, whose wordings and items nobody was trained on.
"""
EXTRA_SEEDS = (1, 2)


def add_to(app: typer.Typer) -> None:
    """Adds `demo`."""
    app.command("demo")(demo)


def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Fewer rows and steps: shows the way, not the result.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also a student on all known answers, and two more seeds."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides data, order and resampling.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="Your own teacher: URL, folder, file.gguf or name.")
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="Name of the model at the teacher's URL.")
    ] = None,
    teacher_key: Annotated[
        str | None, typer.Option(help="Where the key is: env:NAME or file:PATH.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Weights to cut the student out of, instead of SmolLM2's.")
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Distil for real on this machine: no account, no GPU, about ten minutes.

    Ctrl-C and the same command continue where it was.

    Example: potstill demo
    """
    go_offline(offline)
    own = _own_teacher(teacher, teacher_model, teacher_key)
    seeds = [seed, *(s for s in EXTRA_SEEDS if full)]
    reports: dict[int, Report] = {}
    folder = runs
    for number in seeds:
        folder = runs / _name(fast, full, number, own is not None)
        reports[number] = _one(folder, number, fast, full, own, student, quiet=json)
    if json:
        found: Any = {number: report.model_dump(mode="json") for number, report in reports.items()}
        console.print_json(found if full else found[seed])
        return
    for report in reports.values():
        console.print_report(report)
    page = RunDir(folder).report_html
    console.print_line(f"\nreport: {page}")
    console.print_next([f"open {page}", f"potstill run {folder / 'distill.yaml'} (after a change)"])


def _one(
    folder: Path,
    seed: int,
    fast: bool,
    full: bool,
    teacher: dict[str, Any] | None,
    student: str | None,
    *,
    quiet: bool,
) -> Report:
    from potstill.demo.run import demo as run_demo

    started = time.monotonic()
    with console.Watch(quiet=quiet) as watch:
        if not quiet:
            console.print_story(STORY)
        report = run_demo(
            folder,
            fast=fast,
            gold_all=full,
            seed=seed,
            teacher=teacher,
            student=student,
            on_event=watch,
        )
    if not quiet:
        console.stage_line("total", f"seed {seed}", time.monotonic() - started)
    return report


def _own_teacher(teacher: str | None, model: str | None, key: str | None) -> dict[str, Any] | None:
    if teacher is None:
        return None
    if teacher.startswith(("http://", "https://")):
        found = {"url": teacher, "model": model, "key": key}
        return {name: value for name, value in found.items() if value is not None}
    return {"source": str(Path(teacher).resolve()) if Path(teacher).exists() else teacher}


def _name(fast: bool, full: bool, seed: int, own: bool) -> str:
    parts = [
        "demo",
        *(["own"] if own else []),
        *(["fast"] if fast else []),
        *(["full"] if full else []),
        *([f"seed-{seed}"] if seed else []),
    ]
    return "-".join(parts)
