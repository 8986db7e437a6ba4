"""Commands that do the work: run, one stage of it, report, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.cli.options import (
    RUNS,
    ConfigFile,
    Json,
    Offline,
    Overrides,
    Runs,
    existing_run,
    go_offline,
    read_config,
)
from potstill.config import TASKS
from potstill.errors import ConfigError, GateFailed, PotstillError
from potstill.rundir import RunDir, write_text
from potstill.types import Report

STAGE_HELP = {
    "load": "Read the training files into records.",
    "split": "Deal the records into training, validation and test; refuse leaks.",
    "teach": "Ask the teacher every prompt it has not answered yet.",
    "check": "Keep the teacher's answers that pass every check.",
    "score": "Keep the teacher's probabilities (for a loss that needs them).",
    "prepare": "Cut the student out of a larger model (for student.prune).",
    "train": "Train the student, and the students it is compared with.",
    "export": "Make the student's files for other engines, each proven equal.",
    "evaluate": "Let everybody answer the test records.",
    "compare": "Compare the answers, paired on the same records.",
}
RUN_HELP = """Run the whole pipeline in the foreground; the same command again continues.

Example: potstill run distill.yaml train.num_epochs=1
"""
TRAIN_HELP = f"""{STAGE_HELP["train"]}

Runs the stages before it that are not done. With --processes several processes share every
step; what is learned is the same.

Example: potstill train distill.yaml --processes 2
"""
TEACH_HELP = f"""{STAGE_HELP["teach"]}

Runs the stages before it that are not done. With --verify nothing is asked: every answer that a
run keeps is read again.

Example: potstill teach distill.yaml
"""


def add_to(app: typer.Typer) -> None:
    """Adds `init`, `run`, a command for each stage, and `report`."""
    app.command("init")(init)
    app.command("run", help=RUN_HELP)(run)
    for stage, text in STAGE_HELP.items():
        if stage == "teach":
            app.command(stage, help=TEACH_HELP)(teach)
        elif stage == "train":
            app.command(stage, help=TRAIN_HELP)(train)
        elif stage not in ("compare", "export"):  # which are also commands for models
            _add_stage(app, stage, text)
    app.command("report")(report)


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    accept_terms: Annotated[
        bool,
        typer.Option("--accept-terms", help="You may train on the teachers' outputs all the same."),
    ] = False,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Runs the whole pipeline and prints its report."""
    go_offline(offline)
    try:
        found, folder = _distill(
            config, overrides, runs, quiet=json, stop_after=None, accept_terms=accept_terms
        )
        missed = None
    except GateFailed as error:
        _, folder = read_config(config, overrides, runs)
        found, missed = _read_report(folder), error
    if json:
        console.print_json(found.model_dump(mode="json") if found else None)
    elif found:
        console.print_report(found)
        console.print_next([f"open {folder.report_html}"])
    else:
        console.print_next([f"the student is in {folder.model}; name data.test to compare it"])
    if missed:
        raise missed


def _read_report(folder: RunDir) -> Report:
    from potstill.pipeline.report import read_report

    return read_report(folder)


def _add_stage(app: typer.Typer, stage: str, text: str) -> None:
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        runs: Runs = RUNS,
        json: Json = False,
        offline: Offline = False,
    ) -> None:
        go_offline(offline)
        run_to(stage, config, overrides, runs, json)

    help_text = (
        f"{text}\n\nRuns the stages before it that are not done.\n\n"
        f"Example: potstill {stage} distill.yaml"
    )
    app.command(stage, help=help_text)(command)


def run_to(stage: str, config: Path, overrides: list[str] | None, runs: Path, json: bool) -> None:
    """Runs the stages up to one; what `potstill STAGE CONFIG` does."""
    _, folder = _distill(config, overrides, runs, quiet=json, stop_after=stage)
    if json:
        console.print_json({"stage": stage, "run": str(folder.path), **folder.facts(stage)})


def teach(
    config: ConfigFile,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all answers again and say what is damaged.")
    ] = False,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Asks the teacher, or reads what it answered again."""
    go_offline(offline)
    if not verify:
        run_to("teach", config, overrides, runs, json)
        return
    from potstill.pipeline.teach import verify as verify_answers

    is_config = config.is_file()
    folder = read_config(config, None, runs)[1] if is_config else existing_run(str(config), runs)
    found = verify_answers(folder)
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        console.print_line(f"{folder.responses}: {found.text}")
    if found.damage:
        raise PotstillError(f"{found.damage}. The next potstill run asks for them again")
    if not json:
        console.print_line("all of it is whole")


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="Processes that train together; one a GPU."),
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Trains the student, in one process or several."""
    go_offline(offline)
    asked = [] if processes is None else [f"train.processes={processes}"]
    run_to("train", config, [*(overrides or ()), *asked], runs, json)


def _distill(
    config_file: Path,
    overrides: list[str] | None,
    runs: Path,
    *,
    quiet: bool,
    stop_after: str | None,
    accept_terms: bool = False,
) -> tuple[Report | None, Any]:
    from potstill.jobs.workspace import find_models

    job, folder = read_config(config_file, overrides, runs)
    wanted = job.config
    if accept_terms:
        all_of_them = [t.model_copy(update={"accept_terms": True}) for t in wanted.teachers]
        teacher = tuple(all_of_them) if len(all_of_them) > 1 else all_of_them[0]
        wanted = wanted.model_copy(update={"teacher": teacher})
    models = find_models()
    from potstill.pipeline import distill

    with console.Watch(quiet=quiet) as watch:
        watch.title(wanted, folder)
        for note in job.notes:
            watch.note(note)
        found = distill(
            wanted,
            folder,
            workspace=models,
            secrets=job.secrets,
            on_event=watch,
            stop_after=stop_after,
        )
    return found, folder


def report(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.", metavar="RUN")],
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Print the report of a run and draw its pages again; needs no model.

    Example: potstill report faq-student
    """
    go_offline(offline)
    folder = existing_run(run, runs)
    if not folder.report_json.exists():
        raise ConfigError(
            f"{folder.path} has no report yet; make one with: potstill compare {folder.path}"
        )
    from potstill.pipeline.report import render

    render(folder)
    found = _read_report(folder)
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        console.print_report(found)
        console.print_next([f"open {folder.report_html}"])


TEMPLATE = """\
# A distillation: prompts and a teacher in, a small model and an honest report out.
# All keys with their meaning: potstill schema --explain
name: {name}
task: {task}
teacher: deepseek-v3        # a name (potstill models list), folder, file.gguf or URL
student: phi-4-mini         # a name or a folder
train_data: train.jsonl     # one JSON object a line; known answers are optional

data:
  validation: 0.1           # share held back to choose the checkpoint, or a file
  test: 0.2                 # share, or a file, that everybody is compared on

generation:
  temperature: 0.7          # how the teacher samples
  max_new_tokens: 512

loss:
  kind: sft                 # sft: the teacher's text; forward_kl: its probabilities too

train:
  learning_rate: 2.0e-5
  num_epochs: 3
  batch_size: 16
  adapter: lora             # null trains all weights

evaluate:
  baselines: [untouched]    # also: gold_few, gold_all, text, plain
"""


def init(
    task: Annotated[str, typer.Argument(help=f"One of: {', '.join(TASKS)}.")] = "conversation",
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("distill.yaml"),
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Write a commented config file for a task.

    Example: potstill init math
    """
    go_offline(offline)
    if task not in TASKS:
        raise ConfigError(f"no task is called {task!r}; there are: {', '.join(TASKS)}")
    if out.exists():
        raise ConfigError(f"{out} exists; choose another name with --out")
    write_text(out, TEMPLATE.format(name=f"{task}-student", task=task))
    if json:
        console.print_json({"config": str(out), "task": task})
    else:
        console.print_next([f"edit {out}", f"potstill run {out}"])
