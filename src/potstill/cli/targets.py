"""The command that looks at the teacher's probabilities on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill import console
from potstill.cli.options import RUNS, Json, Offline, Runs, existing_run, go_offline
from potstill.config import load_config
from potstill.errors import ConfigError, MissingExtra
from potstill.rundir import RunDir

if TYPE_CHECKING:
    from potstill.targets.inspect import Inspection
    from potstill.targets.manifest import TargetSettings


def add_to(app: typer.Typer) -> None:
    """Adds `targets inspect`."""
    targets = typer.Typer(help="The teacher's probabilities on disk.", no_args_is_help=True)
    targets.callback()(lambda: None)  # else a group of one command swallows its name
    targets.command("inspect")(inspect)
    app.add_typer(targets, name="targets")


def inspect(
    place: Annotated[
        str,
        typer.Argument(help="Name or folder of a run, or a folder of targets.", metavar="RUN"),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder with the student's tokenizer; found in the run by default."),
    ] = None,
    runs: Runs = RUNS,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Say how the teacher's probabilities are kept: bytes a token, mass kept, error, examples.

    Example: potstill targets inspect faq-student
    """
    go_offline(offline)
    try:
        from potstill.targets.inspect import inspect as look
        from potstill.targets.manifest import read_manifest
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'targets need an extra ({error.name} is missing): pip install "potstill[train]"'
        ) from None
    folder, places = _folder(place, runs)
    settings = read_manifest(folder).settings
    found = look(folder, _tokenizer(settings, tokenizer, places))
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        _print(found)


def _folder(place: str, runs: Path) -> tuple[Path, list[Path]]:
    """The folder of targets, and where its tokenizer may be."""
    path = Path(place)
    is_run = RunDir(path).config.exists()
    if path.is_dir() and not is_run:
        run = RunDir(path.parent)
        folder = path
    else:
        run = existing_run(place, runs)
        folder = run.targets
    if not folder.is_dir():
        raise ConfigError(
            f"{run.path} keeps no probabilities: its loss learns from text, or the teacher has "
            f"not scored yet (potstill score)"
        )
    places = [run.model, run.untouched]
    if run.config.exists():
        places.append(Path(load_config(run.config).student.place or ""))
    return folder, places


def _tokenizer(settings: TargetSettings, given: Path | None, places: list[Path]) -> Any | None:
    from tokenizers import Tokenizer

    from potstill.targets.inspect import fits

    if given is not None:
        file = given / "tokenizer.json" if given.is_dir() else given
        if not file.is_file():
            raise ConfigError(f"{given} has no tokenizer.json")
        return Tokenizer.from_file(str(file))
    for place in places:
        if (file := place / "tokenizer.json").is_file():
            found = Tokenizer.from_file(str(file))
            if fits(found, settings):
                return found
    return None


def _print(found: Inspection) -> None:
    settings, size = found.settings, console.size(found.disk_bytes)
    line = console.print_line
    line(
        f"{found.folder}: {found.num_rows:,} rows, {found.num_positions:,} positions, {size} in "
        f"{found.num_shards:,} shards"
    )
    if settings.kind == "topk":
        kept = f"the {settings.k:,} largest of {settings.vocab_size:,} probabilities"
    else:
        kept = (
            f"{settings.k:,} draws from {settings.vocab_size:,} tokens, "
            f"{found.tokens_per_position:.1f} of them different"
        )
    line(f"kept: {kept}")
    parts = ", ".join(f"{name} {value:.1f}" for name, value in found.parts.items() if value)
    line(f"bytes a position: {found.bytes_per_position:.1f} ({parts})")
    line(f"probability on tokens that the student has not: {found.mass_dropped:.4%}")
    if found.at:
        rows = [
            [f"{at.temperature:g}", f"{at.mass_kept:.4f}"]
            + [f"{value:.2e}" for value in (at.error_nats, at.worst_error_nats)]
            for at in found.at
        ]
        console.print_table(["TEMPERATURE", "MASS KEPT", "ERROR (NATS)", "AT WORST"], rows)
    else:
        line(f"temperature: {settings.temperatures[0]:g}; draws are read back as they were made")
    line(f"teacher: {settings.teacher or 'not known'}")
    line(
        f"vocabulary {settings.vocab_fingerprint[:12]}, template "
        f"{settings.template_fingerprint[:12]}"
    )
    rows = [
        [
            str(one.position),
            "  ".join(f"{text!r} {share:.3f}" for text, share in one.tokens)
            + f"  others {one.others:.3f}",
        ]
        for one in found.examples
    ]
    line()
    console.print_table(["POSITION", f"FIRST ROW, TEMPERATURE {settings.temperatures[0]:g}"], rows)
