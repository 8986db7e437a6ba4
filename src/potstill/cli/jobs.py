"""Commands for work in the background: submit, and the jobs that were."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.cli.options import ConfigFile, Json, Offline, Overrides, go_offline
from potstill.entities import Job

Name = Annotated[str, typer.Argument(help="Name of the job.", metavar="JOB")]


def add_to(app: typer.Typer) -> None:
    """Adds `submit` and `jobs ...`."""
    app.command("submit")(submit)
    jobs = typer.Typer(help="Look at, stop and continue jobs.", no_args_is_help=True)
    for name, command in (
        ("list", list_jobs),
        ("show", show),
        ("logs", logs),
        ("cancel", cancel),
        ("resume", resume),
    ):
        jobs.command(name)(command)
    app.add_typer(jobs, name="jobs")


def submit(
    config: ConfigFile, overrides: Overrides = None, json: Json = False, offline: Offline = False
) -> None:
    """Start a distillation in the background and return at once.

    Example: potstill submit distill.yaml
    """
    go_offline(offline)
    from potstill.dialects import read_job

    client = _client()
    job = read_job(config, overrides or ())
    for note in job.notes:
        console.print_note(note)
    _show(client.jobs.create_or_update(job), json)


def list_jobs(json: Json = False, offline: Offline = False) -> None:
    """List the jobs, the newest first.

    Example: potstill jobs list
    """
    go_offline(offline)
    found = _client().jobs.list()
    if json:
        console.print_json([job.model_dump(mode="json") for job in found])
        return
    rows = [
        [
            job.name,
            str(job.status),
            job.stage or "",
            f"{job.progress:.0%}" if job.progress is not None else "",
            console.clock(job.created_at),
        ]
        for job in found
    ]
    console.print_table(["NAME", "STATUS", "STAGE", "PROGRESS", "SUBMITTED"], rows)


def show(name: Name, json: Json = False, offline: Offline = False) -> None:
    """Show one job: state, stage, progress, error, folder.

    Example: potstill jobs show faq-student
    """
    go_offline(offline)
    _show(_client().jobs.get(name), json)


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Print what the job's worker has said.

    Example: potstill jobs logs faq-student --follow
    """
    go_offline(offline)
    lines = _client().jobs.logs(name, follow=follow)
    if json:
        console.print_json({"job": name, "lines": list(lines)})
        return
    for line in lines:
        console.print_line(line)


def cancel(name: Name, json: Json = False, offline: Offline = False) -> None:
    """Stop a job; what it has done is kept, and `jobs resume` goes on with it.

    Example: potstill jobs cancel faq-student
    """
    go_offline(offline)
    _show(_client().jobs.cancel(name), json)


def resume(name: Name, json: Json = False, offline: Offline = False) -> None:
    """Go on with a job that failed, was cancelled or lost its worker.

    Example: potstill jobs resume faq-student
    """
    go_offline(offline)
    _show(_client().jobs.resume(name), json)


def _client() -> Any:
    from potstill.jobs.client import MLClient

    return MLClient.from_config()


def _show(job: Job, json: bool) -> None:
    if json:
        console.print_json(job.model_dump(mode="json"))
        return
    progress = "" if job.progress is None else f" at {job.progress:.0%}"
    stage = f" in {job.stage}{progress}" if job.stage else ""
    console.print_line(f"{job.name} {job.status}{stage}")
    if job.error:
        console.print_line(f"  {job.error}")
    console.print_line(f"run folder: {Path(job.run)}")
    if job.status.is_over and job.error:
        console.print_next([f"potstill jobs resume {job.name}"])
    elif not job.status.is_over:
        console.print_next([f"potstill jobs logs {job.name} --follow"])
