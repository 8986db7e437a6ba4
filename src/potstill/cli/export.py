"""The command that lets a student out: files for other engines, cards, and printed hand-overs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.cli.devices import Devices, end_tried, read_devices, told_of, tried
from potstill.cli.options import RUNS, Json, Offline, Overrides, Runs, go_offline
from potstill.cli.run import STAGE_HELP, run_to
from potstill.errors import ConfigError
from potstill.rundir import RunDir

HELP = f"""{STAGE_HELP["export"]} Or export any model.

With a config it is a stage of the run, and the stages before it are run where they are not done.
With --to, a run's student or any model is written in each format and compared with its source, and
what is not equal is not kept. A run's files go into its folder, others below exports or to --out.
With --heal, the student first learns, for a few minutes, to be itself in 4 bits.
With --best, the smallest of a run's files is named that is still good enough on the test set. With
--device, the files (all of a run's, without --to) are run under its limits of memory and threads:
does it fit, and how fast is it? With
--print, nothing is made: the commands of a tool that has an environment of its own are printed.

Example: potstill export faq-student --to gguf:q8_0 --to gguf:q4_0
"""
Targets = Annotated[
    list[str] | None,
    typer.Option("--to", help="Format, or FORMAT:QUANT such as gguf:q4_0; again for more."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", help="A limit of the comparison, such as mean_kl_nats=0.2."),
]


def add_to(app: typer.Typer) -> None:
    """Adds `export`."""
    app.command("export", help=HELP)(export)


def export(
    place: Annotated[
        str, typer.Argument(help="A config, a run, or a model.", metavar="CONFIG|RUN|MODEL")
    ],
    overrides: Overrides = None,
    to: Targets = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; with several formats, one in it for each.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to compare on; a run's own, or ours, by default.")
    ] = None,
    limit: Limits = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Win back what gguf:q4_0 or gguf:q4_1 costs.")
    ] = False,
    best: Annotated[
        str | None, typer.Option(help="Rule for the smallest: 'accuracy >= 0.98 * student'.")
    ] = None,
    device: Devices = None,
    tool: Annotated[
        str | None, typer.Option("--print", help="vllm, olive, openvino, executorch or mlx.")
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Exports."""
    go_offline(offline)
    if tool is not None:
        _print_handover(place, tool, runs, json)
        return
    devices = read_devices(device)
    if devices and best is not None:
        raise ConfigError(
            "--best and --device are two questions: ask for --best, then for its file"
        )
    if not to:
        _refuse_without_format(
            {"--out": out, "--prompts": prompts, "--limit": limit, "--heal": heal}
        )
    if not to and best is None and not devices:
        _refuse_model(place)
        run_to("export", _config_or_run(place, runs), overrides, runs, json)
        return
    if overrides:
        raise ConfigError(
            f"{overrides[0]!r} changes a config, and --to, --best and --device take what is there"
        )
    if devices and not to:
        _try_run(place, devices, runs, json)
        return
    _make(place, to or [], out, prompts, limit or [], heal, best, devices, runs, json)


def _make(
    place: str,
    names: list[str],
    out: Path | None,
    prompts: Path | None,
    limit: list[str],
    heal: bool,
    best: str | None,
    devices: list[Any],
    runs: Path,
    json: bool,
) -> None:
    """Makes the files and says how equal they are; with a rule, which of a run's is the best."""
    from potstill.examine.gates import parse_gate
    from potstill.export.parity import read_limits

    if best is not None:
        parse_gate(best, where="--best")  # a wrong one is found before anything is made
    limits, run = read_limits(limit), _run_of(place, runs)
    if best is not None and (run is None or out is not None):
        raise ConfigError(
            "--best compares a run's files on its test set; name a run, without --out"
        )
    rows: list[dict[str, Any]] = []
    with console.Watch(quiet=json) as watch:
        if run is not None and out is None:
            rows = _from_run(run, names, prompts, limits, heal, watch)
        else:
            rows = _from_model(place, run, names, out, prompts, limits, heal, watch)
        held = _held(run, best, watch) if run is not None and best is not None else []
        folders = {row["name"]: Path(row["folder"]) for row in rows}
        found = (
            tried(run, folders, devices, _prompts(run, prompts, watch), watch) if devices else []
        )
    if best is not None:
        _print_best(run, best, held, json)
    elif json:
        console.print_json([{**row, **told_of(row["name"], found)} for row in rows])
    else:
        console.print_table(
            ("format", "folder", "size", "proof"),
            [(r["name"], r["folder"], console.size(r["bytes"]), r["text"]) for r in rows],
        )
    end_tried(found, is_shown=not json)


def _try_run(place: str, devices: list[Any], runs: Path, json: bool) -> None:
    """Runs what a run has exported as on devices."""
    run = _run_of(place, runs)
    if run is None:
        raise ConfigError(
            f"{place} is no run, and there is nothing of it to try: say what to make of it, such "
            f"as --to gguf:q8_0; or try it as it is: potstill bench {place} --device "
            f"{devices[0].name}"
        )
    with console.Watch(quiet=json) as watch, run.locked():
        found = tried(run, None, devices, _prompts(run, None, watch), watch)
    if json:
        console.print_json([one.model_dump(mode="json") for one in found])
    end_tried(found, is_shown=not json)


def _prompts(run: RunDir | None, file: Path | None, watch: Any) -> list[Any]:
    """What an artefact is asked: of the file, else the run's training prompts, else ours."""
    from potstill.pipeline.artefacts import own_prompts
    from potstill.pipeline.export import prompts as prompts_of

    of_run = [] if run is None else prompts_of(_context(run, watch))
    return _asked(file) or of_run or own_prompts()


def _held(run: RunDir, rule: str, watch: Any) -> list[Any]:
    from potstill.pipeline.best import choose

    with run.locked():
        return choose(_context(run, watch), rule)


def _print_best(run: Any, rule: str, rows: list[Any], json: bool) -> None:
    """Every artefact with its value, and the first that holds.

    Raises:
        ExportError: If the rule holds for none; the table is printed before.
    """
    from potstill.pipeline.best import first_that_holds

    if not json:
        console.print_table(
            ("format", "size", "holds", rule),
            [
                (r.name, console.size(r.num_bytes), "yes" if r.holds else "no", r.found)
                for r in rows
            ],
        )
    chosen = first_that_holds(rows, rule)
    folder = str(run.export(chosen.name))
    if json:
        told = [row.model_dump(mode="json") for row in rows]
        console.print_json({"best": chosen.name, "folder": folder, "artefacts": told})
    else:
        console.print_line(f"{chosen.name} is the smallest that holds: {folder}")


def _print_handover(place: str, tool: str, runs: Path, json: bool) -> None:
    from potstill.export.handover import handover

    folder, name = _folder_of(place, _run_of(place, runs))
    text = handover(tool, folder, name=name)
    if json:
        console.print_json({"tool": tool, "model": str(folder), "text": text})
    else:
        console.print_line(text)


def _folder_of(place: str, run: RunDir | None) -> tuple[Path, str]:
    """A run's student or a model, as a folder on this machine, and what it is called."""
    from potstill.jobs.workspace import find_models
    from potstill.models.catalog import find_model
    from potstill.models.weights import cached_folder

    if run is None:
        ref = find_model(place, workspace=find_models())
        return cached_folder(ref), ref.name.replace("/", "--")
    if not run.model.is_dir():
        raise ConfigError(f"{run.path} has no student yet; train it: potstill train {run.path}")
    return run.model, run.path.resolve().name


def _from_run(
    run: RunDir,
    names: list[str],
    prompts: Path | None,
    limits: dict[str, float],
    heal: bool,
    watch: Any,
) -> list[dict[str, Any]]:
    from potstill.pipeline.cards import write_cards
    from potstill.pipeline.export import export_as

    if prompts is not None:
        raise ConfigError(
            "--prompts is for models without a run: a run's files are compared on its training "
            "prompts; with --out they are compared on yours"
        )
    ctx = _context(run, watch)
    with run.locked():
        export_as(ctx, names, limits=limits, heal=heal)
        write_cards(ctx)
    rows = []
    for name in names:
        facts = run.facts(f"export-{name}")
        row = {"name": name, "folder": str(run.export(name)), "bytes": facts["bytes"]}
        rows.append({**row, "file": facts["file"], "text": facts["text"]})
    return rows


def _from_model(
    place: str,
    run: RunDir | None,
    names: list[str],
    out: Path | None,
    prompts: Path | None,
    limits: dict[str, float],
    heal: bool,
    watch: Any,
) -> list[dict[str, Any]]:
    from potstill.pipeline.artefacts import make_artefact, read_target, refuse_early
    from potstill.pipeline.context import Event
    from potstill.pipeline.export import prompts as prompts_of
    from potstill.pipeline.heal import make_healed

    for name in names:
        read_target(name)  # a wrong one is found before a model is fetched
    asked = _asked(prompts)
    folder, title = _folder_of(place, run)
    if run is not None:
        asked = asked or prompts_of(_context(run, watch))
    base = out or Path("exports") / title
    alone = out is not None and len(names) == 1
    places = {name: base if alone else base / RunDir(base).export(name).name for name in names}
    lessons = _lessons(place, run, prompts, names, folder, watch) if heal else None
    refuse_early(folder, places)
    rows = []
    for name, target in places.items():
        watch(Event(stage=f"export {name}", kind="start"))
        if lessons is None:
            made = make_artefact(folder, target, name, asked, limits=limits)
        else:
            told = {"limits": limits, "report": _reporting(f"export {name}", watch)}
            made = make_healed(folder, target, name, asked, lessons, **told)
        watch(Event(stage=f"export {name}", kind="done", text=made.text))
        row = {"name": made.name, "folder": str(target), "bytes": made.num_bytes}
        rows.append({**row, "file": made.file.name, "text": made.text})
    return rows


def _lessons(
    place: str, run: RunDir | None, prompts: Path | None, names: list[str], folder: Path, watch: Any
) -> Any:
    """What a student heals with: a run's rows, or those of a file.

    Raises:
        ConfigError: If there are none, or a format cannot be healed.
    """
    from potstill.pipeline.heal import lessons_of_file, lessons_of_run, refuse_unhealable

    refuse_unhealable(names)
    if prompts is not None:
        return lessons_of_file(prompts, folder)
    if run is None:
        raise ConfigError(
            f"--heal: {place} is a model without a run, so there are no rows to heal with; give "
            f"some with answers: --prompts FILE"
        )
    return lessons_of_run(_context(run, watch))


def _reporting(stage: str, watch: Any) -> Any:
    from potstill.pipeline.context import Event

    def report(done: int, total: int | None = None, text: str = "") -> None:
        watch(Event(stage=stage, kind="progress", done=done, total=total, text=text))

    return report


def _asked(file: Path | None) -> list[Any]:
    """Prompts of a file; none where none is given."""
    from potstill.data.load import load_dataset
    from potstill.pipeline.artefacts import NUM_PROMPTS

    if file is None:
        return []
    found = [record.messages for record in load_dataset(file)][:NUM_PROMPTS]
    if len(found) < NUM_PROMPTS:
        raise ConfigError(
            f"{file} holds {len(found)} prompts, and a comparison needs {NUM_PROMPTS}; give more, "
            f"or leave --prompts out"
        )
    return found


def _context(run: RunDir, watch: Any) -> Any:
    from potstill.config import load_config
    from potstill.jobs.workspace import find_models
    from potstill.pipeline.context import Context

    return Context(load_config(run.config), run, find_models(), on_event=watch)


def _run_of(place: str, runs: Path) -> RunDir | None:
    """The run of that path or name; None where there is none, so that it may be a model."""
    found = (RunDir(path) for path in (Path(place), runs / place))
    return next((run for run in found if run.config.exists()), None)


def _config_or_run(place: str, runs: Path) -> Path:
    run = _run_of(place, runs)
    return Path(place) if run is None else run.path


def _refuse_model(place: str) -> None:
    """A model without --to: there is nothing that says what it should become."""
    path = Path(place)
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        raise ConfigError(f"{place} is a model; say what to make of it, such as --to gguf:q8_0")


def _refuse_without_format(options: dict[str, Any]) -> None:
    used = [name for name, value in options.items() if value]
    if used:
        raise ConfigError(f"{used[0]} says how --to is done; add --to FORMAT, such as gguf:q8_0")
