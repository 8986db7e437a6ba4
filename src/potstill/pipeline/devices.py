"""Artefacts tried as on devices: the verdict beside each, and a way out where one does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from potstill.errors import ExportError
from potstill.examine.device import DeviceTrial, try_on_device
from potstill.examine.memory import disk_bytes
from potstill.examine.numbers import count, number, size
from potstill.export.huggingface import ADAPTER
from potstill.export.manifest import DEVICES, NAME, read_manifest
from potstill.models.catalog import ModelRef, find_model
from potstill.models.devices import LEAST_CONTEXT, Device
from potstill.pipeline.best import made
from potstill.pipeline.context import Event, wait
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.types import Message, Noun

OnEvent = Callable[[Event], None]
Prompts = Sequence[Sequence[Message]]


class Tried(Noun):
    """What became of one artefact on one device."""

    name: str
    trial: DeviceTrial
    way_out: str = ""
    """What would fit, where this does not."""


def artefacts(run: RunDir) -> dict[str, Path]:
    """What a run has exported and an engine here runs: name -> file or folder."""
    places = {name: runnable(run.export(name)) for name in made(run, ())}
    return {name: place for name, place in places.items() if place is not None}


def runnable(folder: Path) -> Path | None:
    """What an engine opens of an exported folder; None for an adapter, which runs with its base.

    Raises:
        ExportError: If its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest.quant == ADAPTER:
        return None
    return folder / manifest.main if manifest.main.endswith(".gguf") else folder


def try_artefacts(
    places: Mapping[str, Path | ModelRef],
    devices: Sequence[Device],
    prompts: Prompts,
    *,
    others: Mapping[str, Path] | None = None,
    on_event: OnEvent,
) -> list[Tried]:
    """Runs each artefact as on each device; an artefact's folder keeps what was found.

    Args:
        places: Name -> GGUF file, folder or model.
        others: The run's other artefacts: tried for memory alone where one does not fit.

    Raises:
        ConfigError, DataError, MissingExtra, TeacherError: As `try_on_device`.
    """
    found = []
    for name, place in places.items():
        ref = place if isinstance(place, ModelRef) else find_model(str(place))
        for device in devices:
            trial = _try_one(name, ref, device, prompts, on_event)
            _note(Path(ref.source), trial)
            found.append(Tried(name=name, trial=trial))
    return [
        one
        if one.trial.fits
        else one.model_copy(
            update={"way_out": _way_out(one, found, places, devices, others or {}, on_event)}
        )
        for one in found
    ]


def refuse_what_does_not_fit(found: Sequence[Tried]) -> None:
    """Names every artefact that does not fit, why, and the way out.

    Raises:
        ExportError: If there is one.
    """
    told = [
        f"{one.name} does not fit {one.trial.device}: {one.trial.why}; {one.way_out}"
        for one in found
        if not one.trial.fits
    ]
    if told:
        raise ExportError("\n".join(told))


def trials_of(folder: Path) -> list[DeviceTrial]:
    """What was found of an exported folder, one trial for each device."""
    file = folder / DEVICES
    return read_jsonl(file, DeviceTrial) if file.exists() else []


def _try_one(
    name: str, ref: ModelRef, device: Device, prompts: Prompts, on_event: OnEvent
) -> DeviceTrial:
    stage = f"device {device.name}"
    on_event(Event(stage=stage, kind="start"))

    def on_progress(done: int, total: int, what: str) -> None:
        on_event(
            Event(stage=stage, kind="progress", done=done, total=total, text=f"{name}, {what}")
        )

    trial = wait(try_on_device(ref, device, prompts, on_progress=on_progress))
    peak = number(trial.metrics["memory"].value, "bytes")
    text = f"{name} fits: {peak} of {size(trial.limit_bytes)}"
    on_event(Event(stage=stage, kind="done", text=text if trial.fits else f"{name} does not fit"))
    return trial


def _note(place: Path, trial: DeviceTrial) -> None:
    """Keeps a trial beside the artefact's manifest, one for each device."""
    folder = place if place.is_dir() else place.parent
    if (folder / NAME).is_file():
        kept = [one for one in trials_of(folder) if one.device != trial.device]
        write_jsonl(folder / DEVICES, [*kept, trial])


def _way_out(
    one: Tried,
    found: Sequence[Tried],
    places: Mapping[str, Path | ModelRef],
    devices: Sequence[Device],
    others: Mapping[str, Path],
    on_event: OnEvent,
) -> str:
    device = next(device for device in devices if device.name == one.trial.device)
    fitting = [f.name for f in found if f.trial.fits and f.trial.device == device.name]
    if fitting:
        return f"{' and '.join(fitting)} would"
    place = places[one.name]
    ref = place if isinstance(place, ModelRef) else find_model(str(place))

    def fits(ref: ModelRef, device: Device) -> bool:
        on_event(Event(stage=f"device {device.name}", kind="progress", text=f"trying {ref.name}"))
        return wait(try_on_device(ref, device, (), only_memory=True)).fits

    own_bytes = disk_bytes(Path(ref.source))
    smaller = {
        name: disk_bytes(path)
        for name, path in others.items()
        if name not in places and disk_bytes(path) < own_bytes
    }
    for name in sorted(smaller, key=lambda name: -smaller[name]):
        if smaller[name] < device.memory_bytes and fits(find_model(str(others[name])), device):
            return f"{name} would, which the run has already"
    context = one.trial.context // 2
    while own_bytes < device.memory_bytes and context >= LEAST_CONTEXT:
        if fits(ref, device.model_copy(update={"context": context})):
            base = device.name.partition(":")[0]
            return (
                f"with a context of {count(context)} tokens it would: --device "
                f"{base}:{device.threads}:{context}"
            )
        context //= 2
    return "export fewer bits, such as gguf:q4_0, or distil a smaller student"
