"""One model folder, one artefact: refused before any work, made, and proven equal."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from potstill.errors import ConfigError, DataError, ExportError
from potstill.export.manifest import Healing
from potstill.protocols import BUILTIN, resolve
from potstill.types import Message, Noun

NUM_PROMPTS = 32
"""Prompts that an artefact is compared on; the proof asks for as many."""

BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.07,
    "int8": 1.07,
    "q4_0": 0.6,
    "q4_1": 0.65,
    "int4": 0.6,
}
"""A weight's bytes by number format; matrices that keep more bits are most of what is above."""

MOST_BYTES = 4.0
SPARE_BYTES = 32_000_000
"""Room for the tokenizer and everything else that is no weight."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class Target(NamedTuple):
    """What an artefact is to be, such as gguf:q8_0."""

    kind: str
    quant: str | None

    @property
    def name(self) -> str:
        """As it is written in a config."""
        return self.kind if self.quant is None else f"{self.kind}:{self.quant}"


class Artefact(Noun):
    """An artefact that was made and passed its gate."""

    name: str
    """Format and number format, such as gguf:q8_0."""

    file: Path
    num_bytes: int
    """All files of its folder."""

    text: str
    """How equal it is, in words."""


class Healed(NamedTuple):
    """What came of healing."""

    told: Healing
    weights: Path | None
    """Model folder of the healed weights; None where they did not help."""


def read_target(name: str) -> Target:
    """Reads `FORMAT` or `FORMAT:QUANT`.

    Raises:
        ConfigError: If there is no such format or number format; the message names the nearest.
    """
    kind, _, quant = name.partition(":")
    resolve("exporter", kind)
    quants = getattr(_module(kind), "QUANTS", None)
    if quant and quants is not None and quant not in quants:
        near = difflib.get_close_matches(quant, quants, n=1, cutoff=0.4)
        hint = f"did you mean {kind}:{near[0]}? " if near else ""
        raise ConfigError(
            f"{kind} is not written as {quant!r}: {hint}There are: "
            f"{', '.join(f'{kind}:{one}' for one in quants)}"
        )
    return Target(kind, quant or None)


def refuse_early(
    model_dir: Path, places: Mapping[str, Path], *, replace: bool = False, free: int | None = None
) -> None:
    """Finds in seconds what would spoil an export after minutes; nothing is written.

    Args:
        places: Artefact, such as gguf:q8_0 -> the folder it will be.
        replace: Folders that are there already may be replaced: a run's own.
        free: Bytes that are free where they will be; asked of the disk by default.

    Raises:
        ConfigError: If a format is unknown, the folder has no tokenizer or chat template,
            or a target folder holds something.
        DataError: If the model folder cannot be read.
        ExportError: If the architecture or the tokenizer cannot be exported so, or the
            disk is too full.
        MissingExtra: If a library or an engine is not installed.
    """
    targets = {name: read_target(name) for name in places}
    _refuse_incomplete(model_dir)
    if not replace:
        for folder in places.values():
            _refuse_filled(folder)
    for target in targets.values():
        refuse = getattr(_module(target.kind), "refuse", None)
        if refuse is not None:
            refuse(model_dir, target.quant)
    _refuse_full_disk(model_dir, list(targets.values()), next(iter(places.values())), free)


def make_artefact(
    model_dir: Path,
    out_dir: Path,
    name: str,
    prompts: Sequence[Sequence[Message]],
    *,
    limits: Mapping[str, float] | None = None,
    healed: Healed | None = None,
) -> Artefact:
    """Makes an artefact and compares it with its source; what is not equal is not kept.

    Args:
        name: Such as gguf:q8_0.
        prompts: What both are asked; filled up to 32 with our own.
        limits: Instead of the number format's, see `parity.LIMITS`.
        healed: Weights that stand for the model's own in the artefact; it is compared with
            the model all the same.

    Raises:
        ExportError: If it cannot be made, or differs by more than its limits.
    """
    from potstill.examine.memory import disk_bytes
    from potstill.export.huggingface import AS_TRAINED
    from potstill.export.manifest import note_healing, read_manifest
    from potstill.export.parity import check_artefact

    target, out_dir = read_target(name), out_dir.absolute()
    # What was not proven yet has a name of its own, so that a kill leaves nothing to be taken.
    made = out_dir.with_name(f".{out_dir.name}.unproven")
    weights = healed.weights if healed is not None and healed.weights else model_dir
    file = resolve("exporter", target.kind)(weights, made, quant=target.quant)
    if healed is not None:
        note_healing(made, healed.told, model_dir)
    manifest = read_manifest(made)
    parity = manifest.parity
    if parity is None and manifest.quant != AS_TRAINED:
        asked = [*prompts, *own_prompts()][: max(NUM_PROMPTS, len(prompts))]
        parity = check_artefact(model_dir, made / manifest.main, asked, limits=limits)
    shutil.rmtree(out_dir, ignore_errors=True)
    os.replace(made, out_dir)
    size = disk_bytes(out_dir)
    text = f"{size / 1e6:,.0f} MB"
    if parity is not None:
        text += (
            f"; same next token as the student at {parity.argmax_agreement:.1%} of "
            f"{parity.num_tokens:,} places, {parity.mean_kl_nats:.2g} nats apart"
        )
    elif manifest.notes:
        text += f"; {manifest.notes[0]}"
    if healed is not None:
        text += f"; {healing_text(healed.told)}"
    main_file = out_dir / file.relative_to(made)
    return Artefact(name=target.name, file=main_file, num_bytes=size, text=text)


def healing_text(told: Healing) -> str:
    """What healing brought, in words."""
    from potstill.examine.numbers import estimate

    word = "healed" if told.kept else "healing did not help and was left out"
    return (
        f"{word}: from {told.before.value:.2g} to {told.after.value:.2g} nats on {told.gain.n:,} "
        f"validation records, {estimate(told.gain, sign=True)} nearer, after {told.steps:,} steps"
    )


def own_prompts() -> list[tuple[Message, ...]]:
    """Thirty-two questions of many kinds and scripts, for a model that came without its own."""
    text = files("potstill.pipeline").joinpath("prompts.txt").read_text(encoding="utf-8")
    return [(Message(role="user", content=line),) for line in text.splitlines() if line]


def _module(kind: str) -> ModuleType:
    target = BUILTIN["exporter"].get(kind, kind)
    return importlib.import_module(target.partition(":")[0])


def _refuse_incomplete(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError(
            f"{folder} has no tokenizer ({_TOKENIZERS[0]}), so no engine could read a prompt; copy "
            f"the one the model was trained with into the folder"
        )
    if not _has_template(folder):
        raise ConfigError(
            f"{folder} has no chat template, so an engine would make up its own and the model "
            f"would answer nonsense; put the one it was trained with into chat_template.jinja"
        )


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return False
    try:
        return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{config} is not JSON: {error}") from None


def _refuse_filled(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is not empty, and an export replaces nothing; name another with --out, or "
            f"empty it"
        )


def _refuse_full_disk(
    model_dir: Path, targets: Sequence[Target], place: Path, free: int | None
) -> None:
    needed = sum(needed_bytes(model_dir, target) for target in targets)
    there = place.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free if free is None else free
    if needed > free:
        raise ExportError(
            f"{', '.join(target.name for target in targets)} take about {needed / 1e6:,.0f} MB, "
            f"and {free / 1e6:,.0f} MB are free in {there}; free some, or choose a disk with --out"
        )


def needed_bytes(model_dir: Path, target: Target) -> int:
    """About what an artefact takes on disk, from the headers of the weights alone."""
    from potstill.pipeline.estimate_training import num_weights

    if target.quant == "adapter":
        return SPARE_BYTES
    width = BYTES.get(target.quant or "", MOST_BYTES)
    return int(num_weights(model_dir) * width) + SPARE_BYTES
