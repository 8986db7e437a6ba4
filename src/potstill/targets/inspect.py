"""What is in a store of targets, for a person to look at. Needs no weights and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data.render import vocab_fingerprint
from potstill.errors import VocabMismatch
from potstill.targets.codec import Drawn
from potstill.targets.manifest import AtTemperature, Manifest, TargetSettings
from potstill.targets.pieces import piece_bytes
from potstill.targets.store import TargetReader
from potstill.types import Noun

TOKENS = 5
"""Tokens shown of a position."""


class Example(Noun):
    """One position of a row."""

    row: str
    """Key of the row."""

    position: int
    """Among the loss positions of the row, from 0."""

    tokens: tuple[tuple[str, float], ...]
    """The most probable tokens, as text (as ids without a tokenizer), with their
    probabilities; for draws, with the share of the draws."""

    others: float
    """Probability, or share, of all other tokens."""


class Inspection(Noun):
    """What a store says of itself."""

    folder: str
    settings: TargetSettings
    num_rows: int
    num_positions: int
    num_shards: int
    disk_bytes: int
    bytes_per_position: float
    parts: dict[str, float]
    """Bytes a position by part: ids, values, tail, index."""

    tokens_per_position: float
    mass_dropped: float
    at: tuple[AtTemperature, ...]
    examples: tuple[Example, ...]


def inspect(path: Path, tokenizer: Any | None = None, *, num_examples: int = 6) -> Inspection:
    """Reads a store as training would, and shows the first positions of its first row.

    Args:
        tokenizer: The student's, of transformers or of the `tokenizers` package.

    Raises:
        DataError: If the store is unfinished or damaged.
        VocabMismatch: If the tokenizer is another than the store's.
    """
    reader = TargetReader(path)
    settings = reader.settings
    if tokenizer is not None and not fits(tokenizer, settings):
        raise VocabMismatch(
            f"{path} holds probabilities over another vocabulary than this tokenizer's; give the "
            f"student's, or none to see token ids"
        )
    manifest: Manifest = reader.manifest
    return Inspection(
        folder=str(path),
        settings=settings,
        num_rows=manifest.num_rows,
        num_positions=manifest.num_positions,
        num_shards=len(manifest.shards),
        disk_bytes=sum((path / shard.file).stat().st_size for shard in manifest.shards),
        bytes_per_position=manifest.bytes_per_position,
        parts=manifest.parts,
        tokens_per_position=manifest.tokens_per_position,
        mass_dropped=manifest.mass_dropped,
        at=manifest.at,
        examples=_examples(reader, _texts(tokenizer), num_examples),
    )


def fits(tokenizer: Any, settings: TargetSettings) -> bool:
    """Whether a tokenizer is the one that a store's ids belong to."""
    return vocab_fingerprint(tokenizer) == settings.vocab_fingerprint


def _examples(
    reader: TargetReader, texts: Sequence[str] | None, num_examples: int
) -> tuple[Example, ...]:
    key = reader.keys()[0]
    found = reader.read(key, reader.settings.temperatures[0])
    shares_NK = found.weights_NK if isinstance(found, Drawn) else np.exp(found.logprobs_NK)
    examples = []
    for position in range(min(num_examples, len(shares_NK))):
        ids, shares = found.ids_NK[position], shares_NK[position].astype(float)
        best = [place for place in np.argsort(-shares)[:TOKENS] if shares[place] > 0]
        tokens = [
            (str(ids[place]) if texts is None else texts[ids[place]], round(shares[place], 6))
            for place in best
        ]
        others = max(0.0, 1.0 - float(shares[best].sum()))
        examples.append(
            Example(row=key.hex(), position=position, tokens=tuple(tokens), others=round(others, 6))
        )
    return tuple(examples)


def _texts(tokenizer: Any | None) -> list[str] | None:
    """Each token as text; control tokens by their names."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return [
        (backend.id_to_token(id_) or "") if piece is None else piece.decode(errors="replace")
        for id_, piece in enumerate(piece_bytes(tokenizer))
    ]
