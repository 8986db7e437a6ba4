"""The command that compares: the rows of one run, or any two models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, go_offline
from potstill.cli.run import STAGE_HELP, run_to
from potstill.config import JudgeConfig
from potstill.errors import ConfigError
from potstill.rundir import write_text

if TYPE_CHECKING:
    from potstill.library.versus import Arena
    from potstill.library.versus_report import Versus

_OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")
HELP = f"""{STAGE_HELP["compare"]} Or compare any two models.

With a config or a run folder it is a stage of the run, and the stages before it are run where they
are not done. With two places, A and B, it compares two runs, two rows of runs (RUN:ROW) or two
models (name, folder, file, URL); who has not answered the test set is asked.

Example: potstill compare runs/faq-v1 runs/faq-v2 --judge qwen3-32b
"""


def add_to(app: typer.Typer) -> None:
    """Adds `compare`."""
    app.command("compare", help=HELP)(compare)


def compare(
    places: Annotated[
        list[str], typer.Argument(help="A config and changes to it, or two places.", metavar="A B")
    ],
    test: Annotated[
        Path | None, typer.Option(help="Records that both are asked; a run's own by default.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the test records.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="A model that says which answer is better.")
    ] = None,
    criteria: Annotated[str, typer.Option(help="What makes an answer good, for the judge.")] = "",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Pairs that are judged or voted on; all by default.")
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Write a page on which people vote, models hidden.")
    ] = False,
    votes: Annotated[
        list[Path] | None, typer.Option(help="Votes that the page saved; again for more voters.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and page.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Compares."""
    go_offline(offline)
    changes = [place for place in places if _OVERRIDE.match(place)]
    others = [place for place in places if place not in changes]
    if len(others) == 1:
        _refuse_options({"--test": test, "--judge": judge, "--blind": blind, "--votes": votes})
        run_to("compare", Path(others[0]), changes, runs, json)
        return
    if len(others) != 2 or changes:
        raise ConfigError(
            "give one config with changes to it (potstill compare distill.yaml "
            "evaluate.margin=0.03), or two places (potstill compare A B)"
        )
    from potstill.library.versus import folder_of, versus

    a, b = others
    folder = out or folder_of(a, b, runs)
    with console.Watch(quiet=json) as watch:
        arena = _arena(folder, runs, test, task, max_new_tokens, watch)
        if blind:
            _write_page(arena, a, b, rows, json)
            return
        asked = {"source": judge, "criteria": criteria, "num_rows": rows}
        judging = JudgeConfig.model_validate(asked) if judge else None
        found = versus(arena, a, b, judge=judging, votes=votes or ())
    page = _write_report(folder, found)
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        _print(found)
        console.print_next([f"open {page}"])


def _refuse_options(options: dict[str, Any]) -> None:
    used = [name for name, value in options.items() if value]
    if used:
        raise ConfigError(
            f"{' and '.join(used)} {'is' if len(used) == 1 else 'are'} for two places: potstill "
            f"compare A B; the judge of a run is evaluate.judge in its config"
        )


def _arena(
    folder: Path, runs: Path, test: Path | None, task: str | None, longest: int, watch: Any
) -> Arena:
    from potstill.jobs.workspace import find_models
    from potstill.library.versus import Arena
    from potstill.pipeline.context import Event

    def tell(stage: str, done: int, total: int | None, text: str) -> None:
        watch(Event(stage=stage, kind="progress", done=done, total=total, text=text))

    return Arena(
        folder,
        runs=runs,
        test=test,
        task=task,
        max_new_tokens=longest,
        workspace=find_models(),
        on_progress=tell,
    )


def _write_page(arena: Arena, a: str, b: str, rows: int | None, json: bool) -> None:
    from potstill.examine.ballots import pairs_of
    from potstill.examine.blind import blind_page
    from potstill.rundir import RunDir

    one, other, _ = arena.sides(a, b)
    pairs = pairs_of(one.samples, other.samples, rows)
    page = RunDir(arena.folder).blind_page
    write_text(page, blind_page(pairs))
    num_asked = sum(pair.settled() is None for pair in pairs)
    if json:
        console.print_json({"page": str(page), "num_pairs": num_asked})
        return
    console.print_line(f"{page}: {num_asked:,} pairs, {len(pairs) - num_asked:,} need no vote")
    console.print_next([f"open {page}", f"potstill compare {a} {b} --votes FILE"])


def _write_report(folder: Path, found: Versus) -> Path:
    """Writes report.json, report.md and report.html; returns the last."""
    from potstill.examine.report_html import render_html
    from potstill.examine.report_markdown import render_markdown
    from potstill.library.versus_report import versus_report
    from potstill.rundir import RunDir

    run, report = RunDir(folder), versus_report(found)
    run.reports.mkdir(parents=True, exist_ok=True)
    write_text(run.report_json, report.model_dump_json(indent=1) + "\n")
    write_text(run.report_markdown, render_markdown(report))
    write_text(run.report_html, render_html(report, student=found.a))
    return run.report_html


def _print(found: Versus) -> None:
    from potstill.examine.numbers import estimate, interval, number, p_value
    from potstill.examine.report_judge import judge_lines, judge_table
    from potstill.examine.report_verdict import metric_text

    for sentence in found.verdict:
        console.print_line(sentence)
    console.print_line()
    if found.comparisons:
        rows = []
        for c in found.comparisons:
            ours, theirs = (found.metrics[label][c.metric] for label in (c.a, c.b))
            ends = interval(c.low, c.high, ours.unit, sign=True)
            difference = f"{number(c.difference, ours.unit, sign=True)} {ends}".strip()
            told = [p_value(c.p_holm), c.verdict.replace("_", "-")]
            rows.append(
                [metric_text(c.metric), estimate(ours), estimate(theirs), difference, *told]
            )
        headings = ["METRIC", found.a, found.b, "DIFFERENCE", "P (HOLM)", "VERDICT"]
        console.print_table(headings, rows)
        console.print_line(
            f"only {found.a} is right: {found.num_only_a:,}; only {found.b}: {found.num_only_b:,}"
        )
        for note in dict.fromkeys(c.note for c in found.comparisons if c.note):
            console.print_line(f"note: {note}")
    for said in (found.judge, found.people):
        if said.get("preferences"):
            console.print_line()
            console.print_table(*judge_table(said))
        for line in judge_lines(said):
            console.print_line(line)
    for note in found.notes:
        console.print_line(f"note: {note}")
