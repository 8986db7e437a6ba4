"""What a folder of targets says of itself: settings, shards, and what was measured in writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.errors import DataError
from potstill.types import Noun

FORMAT = "potstill-targets-2"
MANIFEST = "manifest.json"

Kind = Literal["topk", "sampled"]


class TargetSettings(Noun):
    """What the numbers in a store mean. Stores with different settings never mix."""

    vocab_fingerprint: str
    template_fingerprint: str
    vocab_size: int
    """Tokens of the student's tokenizer; padding rows of a head are not counted."""

    kind: Kind = "topk"
    k: int
    """Tokens kept at each position; for `sampled`, draws."""

    temperatures: tuple[float, ...]
    """The probabilities are those of softmax(logits / temperature), at each of these. One, for
    `sampled`."""

    teacher: str = ""


class Shard(Noun):
    """One file of rows."""

    file: str
    crc32: int
    num_rows: int
    num_positions: int


class AtTemperature(Noun):
    """What is true of the kept tokens at one temperature."""

    temperature: float
    mass_kept: float
    """Mean probability of the kept tokens, in (0, 1]."""

    error_nats: float
    """Mean KL divergence between what was given and what is read back, measured while writing:
    over the kept tokens and one bucket for all others."""

    worst_error_nats: float
    """The same at the worst position."""


class Manifest(Noun):
    """What a finished store holds."""

    format: str = FORMAT
    settings: TargetSettings
    shards: tuple[Shard, ...]
    num_rows: int
    num_positions: int
    tokens_per_position: float
    """Mean number of kept, or of different drawn, tokens."""

    bytes_per_position: float
    """All shards, headers and index included."""

    parts: dict[str, float]
    """The same by part: ids, values, tail, index (keys, lengths, headers)."""

    at: tuple[AtTemperature, ...] = ()
    """One for each temperature; empty for `sampled`, which is read back exactly."""

    mass_dropped: float = 0.0
    """Mean probability the teacher gave to tokens that the student has not: padding rows of
    its head, and pieces of its vocabulary alone."""

    @property
    def mass_kept(self) -> float:
        """Mean probability of the kept tokens at the lowest temperature; 1 for `sampled`."""
        return self.at[0].mass_kept if self.at else 1.0


def content_key(ids: Sequence[int], loss_mask: Sequence[int | bool]) -> bytes:
    """16 bytes that name a row: a hash of its tokens and of where it carries loss."""
    digest = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes())
    digest.update(np.asarray(loss_mask, dtype=bool).tobytes())
    return digest.digest()[:16]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished store.

    Raises:
        DataError: If the store is unfinished, damaged or of another format.
    """
    try:
        tree: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} has no {MANIFEST}: scoring has not finished; run it again: potstill score"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path / MANIFEST} cannot be read: {error}; delete {path} and score again"
        ) from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path} has the format {found!r}, this version reads {FORMAT!r}; "
            f"score again: potstill score"
        )
    try:
        return Manifest.model_validate(tree)
    except ValueError as error:
        raise DataError(
            f"{path / MANIFEST} cannot be read: {str(error).splitlines()[0]}; delete {path} and "
            f"score again"
        ) from None
