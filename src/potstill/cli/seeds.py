"""`potstill seeds`: several runs of one distillation as one."""

from __future__ import annotations

from typing import Annotated

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, existing_run, go_offline
from potstill.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Adds `seeds`."""
    app.command("seeds")(seeds)


def seeds(
    run: Annotated[
        list[str], typer.Argument(help="Names or folders of runs, two or more.", metavar="RUN...")
    ],
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Say what several runs that differ in their seed have in common: mean and interval over runs.

    Example: potstill seeds faq-seed-0 faq-seed-1 faq-seed-2
    """
    go_offline(offline)
    folders = [existing_run(name, runs) for name in run]
    for folder in folders:
        if not folder.report_json.exists():
            raise ConfigError(
                f"{folder.path} has no report yet; make one with: potstill compare {folder.path}"
            )
    from potstill.examine.numbers import estimate, number
    from potstill.examine.report_verdict import metric_text
    from potstill.examine.seeds import over_seeds
    from potstill.pipeline.report import read_report

    found = over_seeds([read_report(folder) for folder in folders])
    if json:
        console.print_json(found.model_dump(mode="json"))
        return
    primary = found.primary_metric
    console.print_line(
        f"{len(found.runs)} runs of {found.task}: mean of {metric_text(primary)} over the runs, "
        "with its 95 % interval"
    )
    rows = []
    for role, metrics in found.models.items():
        unit = metrics[primary].unit
        each = ", ".join(number(value, unit) for value in found.values[role])
        rows.append([role, estimate(metrics[primary]), metrics[primary].note, each])
    console.print_table(["ROW", "MEAN", "NOTE", "EACH RUN"], rows)
    rows = [
        [pair, estimate(metrics[primary], sign=True), _counted(found.verdicts.get(pair, {}))]
        for pair, metrics in found.differences.items()
        if primary in metrics
    ]
    rows += [[name.replace("_", " "), estimate(e), e.note] for name, e in found.retention.items()]
    if rows:
        console.print_line()
        console.print_table(["DIFFERENCE, KEPT", "MEAN", "VERDICTS"], rows)


def _counted(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}x" for name, count in verdicts.items())
