"""What `--device` asks and shows: whether artefacts fit, and how fast they are under its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill import console
from potstill.errors import ConfigError
from potstill.examine.limited import refuse_untold
from potstill.models.devices import Device, read_device

if TYPE_CHECKING:
    from potstill.pipeline.devices import Tried
    from potstill.rundir import RunDir

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="Run it under a device's limits: phone-4gb, or 3gb:2:2048; again for more."
    ),
]
COLUMNS = {
    "memory": "peak memory",
    "load": "load",
    "ttft": "first token",
    "ttft.full": "at full context",
    "tokens_per_second": "tokens/s",
}


def read_devices(given: Sequence[str] | None) -> list[Device]:
    """The devices that were named, each once.

    Raises:
        ConfigError: If one is not known, or this system does not tell what a process takes.
    """
    if given:
        refuse_untold()
    return list({device.name: device for device in map(read_device, given or ())}.values())


def tried(
    run: RunDir | None,
    folders: Mapping[str, Path] | None,
    devices: Sequence[Device],
    prompts: Sequence[Any],
    watch: Any,
) -> list[Tried]:
    """Runs exported folders as on devices; all of a run's where none are named.

    Raises:
        ConfigError: If there is nothing to run.
    """
    from potstill.pipeline.devices import artefacts, runnable, try_artefacts

    others = {} if run is None else artefacts(run)
    places: dict[str, Path] = dict(others)
    if folders is not None:
        known = {name: runnable(folder) for name, folder in folders.items()}
        places = {name: place for name, place in known.items() if place is not None}
    if not places:
        raise ConfigError("--device runs whole models, and there is none; make one: --to gguf:q8_0")
    return try_artefacts(places, devices, prompts, others=others, on_event=watch)


def told_of(name: str, found: Sequence[Tried]) -> dict[str, Any]:
    """The trials of one artefact, for JSON; nothing where there were none."""
    trials = [one for one in found if one.name == name]
    return {"devices": [one.trial.model_dump(mode="json") for one in trials]} if trials else {}


def end_tried(found: Sequence[Tried], *, is_shown: bool) -> None:
    """Shows what was found, and ends the command where something does not fit.

    Raises:
        ExportError: If an artefact does not fit a device.
    """
    from potstill.pipeline.devices import refuse_what_does_not_fit

    if found and is_shown:
        _show(found)
    refuse_what_does_not_fit(found)


def _show(found: Sequence[Tried]) -> None:
    """A row for each artefact and device, and what its figures are only true for."""
    from potstill.examine.numbers import estimate

    rows = []
    for one in found:
        metrics = one.trial.metrics
        cells = {name: estimate(metrics[name]) for name in COLUMNS if name in metrics}
        limit = console.size(one.trial.limit_bytes)
        cells["memory"] = f"{'' if one.trial.fits else '> '}{cells['memory']} of {limit}"
        fits = "yes" if one.trial.fits else "NO"
        rows.append((one.name, one.trial.device, fits, *(cells.get(n, "") for n in COLUMNS)))
    console.print_table(("", "device", "fits", *COLUMNS.values()), rows)
    for note in dict.fromkeys(note for one in found for note in _notes(one)):
        console.print_note(note)


def _notes(one: Tried) -> list[str]:
    trial = one.trial
    threads = "1 thread" if trial.threads == 1 else f"{trial.threads} threads"
    told = f"{one.name} on {trial.device}: {threads}, context {trial.context:,} tokens"
    counts = {"load": "load", "ttft": "answers, with 95 % intervals", "ttft.full": "full context"}
    counted = [
        f"{what} n = {trial.metrics[k].n}" for k, what in counts.items() if k in trial.metrics
    ]
    few = trial.metrics["ttft"].note if "ttft" in trial.metrics else ""
    return ["; ".join(part for part in (told, *counted, few) if part), *trial.notes]
