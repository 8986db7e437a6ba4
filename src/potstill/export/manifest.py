"""manifest.json beside every artefact: what it is, what it was made of, how equal it is."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

from potstill.errors import ExportError
from potstill.rundir import content_hash, write_text
from potstill.types import Estimate, Noun

NAME = "manifest.json"
CARD = "README.md"
"""The model card, which is written last and again whenever more is known."""

DEVICES = "devices.jsonl"
"""What was found when the artefact was run as on devices. Says something about it, and is no part
of it either."""

TOOLS = (
    *("potstill", "torch", "transformers", "peft", "gguf", "xllamacpp"),
    *("ctranslate2", "onnxruntime", "onnxruntime-genai"),
)


class File(Noun):
    name: str
    num_bytes: int
    sha256: str


class Parity(Noun):
    """How equal an artefact's predictions are to those of the model it was made of."""

    num_prompts: int
    num_tokens: int
    """Predictions compared: every generated token of every prompt."""

    argmax_agreement: float
    """Share of predictions whose most probable token is the same, in [0, 1]."""

    mean_kl_nats: float
    """Mean KL(model || artefact) over the artefact's most probable tokens and all others as
    one; a lower bound of the KL over the whole vocabulary."""

    max_logprob_difference: float
    """Largest difference of one of those log-probabilities that the model gives 0.001 or
    more, nats."""

    tokenizer_agreement: float
    """Share of prompts that the artefact's own tokenizer cuts into the same tokens."""

    template_agreement: float | None = None
    """Share of prompts that the artefact's own chat template and tokenizer turn into the same
    tokens, with the same tokens to end an answer; None where its engine tells neither."""

    limits: dict[str, float]
    changed_limits: dict[str, float] = {}
    """Those of `limits` that somebody gave instead of the number format's own."""

    passed: bool
    engine: str = ""


class Healing(Noun):
    """A short training of the student with the artefact's own rounding, and what it brought.

    Distances are KL(student || rounded student) in nats a token over its
    64 most probable tokens and all others as one, on validation rows that were not learnt from.
    """

    kept: bool
    """Whether the artefact is made of the healed weights: only where `gain` is surely above 0."""

    num_rows: int
    """Rows that were learnt from."""

    steps: int
    best_step: int
    seconds: float
    learning_rate: float
    before: Estimate
    after: Estimate
    gain: Estimate
    """`before` minus `after` on the same records."""


class ExportManifest(Noun):
    format: str
    """What the artefact is, by the exporter's short name, such as gguf."""

    quant: str
    """Number format of the matrices."""

    main: str
    """The artefact's main file, relative to this one."""

    files: tuple[File, ...]
    source_sha256: str
    """Hash of the model folder it was made of."""

    tools: dict[str, str]
    notes: tuple[str, ...] = ()
    """What format and number format do not say, such as matrices that keep more bits."""

    healing: Healing | None = None
    """None where nobody asked for it. The source stays the student before healing."""

    parity: Parity | None = None
    """None until it was compared with its source."""


def write_manifest(
    folder: Path,
    *,
    format: str,
    quant: str,
    main: str,
    source: Path,
    notes: tuple[str, ...] = (),
) -> ExportManifest:
    """Hashes all files of a folder, but for its card, and writes its manifest."""
    files = tuple(
        File(
            name=str(path.relative_to(folder)),
            num_bytes=path.stat().st_size,
            sha256=_sha256(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (NAME, CARD, DEVICES)
    )
    manifest = ExportManifest(
        format=format,
        quant=quant,
        main=main,
        files=files,
        source_sha256=content_hash(source),
        tools={name: version for name in TOOLS if (version := _version(name))},
        notes=notes,
    )
    _write(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> ExportManifest:
    """The manifest of an exported folder.

    Raises:
        ExportError: If there is none, or it cannot be read.
    """
    try:
        tree = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return ExportManifest.model_validate(tree)
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder / NAME} cannot be read: {error}; export again") from None


def note_parity(folder: Path, parity: Parity) -> ExportManifest:
    """Adds what the comparison found."""
    manifest = read_manifest(folder).model_copy(update={"parity": parity})
    _write(folder, manifest)
    return manifest


def note_healing(folder: Path, healing: Healing, source: Path) -> ExportManifest:
    """Adds what healing did, and the model that it began with as the source."""
    news = {"healing": healing, "source_sha256": content_hash(source)}
    manifest = read_manifest(folder).model_copy(update=news)
    _write(folder, manifest)
    return manifest


def _write(folder: Path, manifest: ExportManifest) -> None:
    write_text(folder / NAME, manifest.model_dump_json(indent=1) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
