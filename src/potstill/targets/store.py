"""Teacher probabilities in a folder: shards of safetensors, and a manifest written last.

    targets/
      shard-00000.safetensors   keys [R, 16], starts [R + 1], ids [N, K], logprobs [N, K], tail [N]
      ...
      manifest.json             fingerprints, k, temperature, checksums; its presence means complete

Rows are found by the hash of their tokens, never by position, so that shuffling,
accumulation or another order of the records cannot pair a row with a stranger's targets.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from potstill.errors import DataError, VocabMismatch
from potstill.rundir import write_text
from potstill.targets.codec import Encoded, decode
from potstill.types import Noun

FORMAT = "potstill-targets-1"
MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


class TargetSettings(Noun):
    """What the numbers in a store mean. Stores with different settings never mix."""

    vocab_fingerprint: str
    template_fingerprint: str
    vocab_size: int
    """Tokens of the shared tokenizer; padding rows of the teacher's head are not counted."""

    k: int
    temperature: float
    """The log-probabilities are those of softmax(logits / temperature)."""

    teacher: str = ""


class Shard(Noun):
    file: str
    crc32: int
    num_rows: int
    num_positions: int


class Manifest(Noun):
    format: str = FORMAT
    settings: TargetSettings
    shards: tuple[Shard, ...]
    num_rows: int
    num_positions: int
    bytes_per_position: float
    mass_kept: float
    """Mean probability of the kept tokens, in (0, 1]."""

    mass_dropped: float = 0.0
    """Mean probability the teacher gave to padding rows beyond the vocabulary, or to tokens that
    the student's vocabulary has not."""


def content_key(ids: Sequence[int], loss_mask: Sequence[int | bool]) -> bytes:
    """16 bytes that name a row: a hash of its tokens and of where it carries loss."""
    digest = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes())
    digest.update(np.asarray(loss_mask, dtype=bool).tobytes())
    return digest.digest()[:16]


class TargetWriter:
    """Writes shards one by one; what an earlier call wrote with the same settings is kept."""

    def __init__(self, path: Path, settings: TargetSettings):
        self.path, self.settings = path, settings
        self.keys: set[bytes] = set()
        path.mkdir(parents=True, exist_ok=True)
        (path / MANIFEST).unlink(missing_ok=True)
        kept: list[Path] = []
        for file in sorted(path.glob("*.safetensors*")):
            if file.suffix == ".safetensors" and self._holds_our_rows(file):
                kept.append(file)
            else:
                log.info("targets: %s is from other settings or was cut; made again", file.name)
                file.unlink()
        self._next = 1 + max((int(file.stem.split("-")[1]) for file in kept), default=-1)

    def __contains__(self, key: bytes) -> bool:
        return key in self.keys

    def write(
        self, keys: Sequence[bytes], rows: Sequence[Encoded], *, mass_dropped: float = 0.0
    ) -> None:
        """Adds one shard: a row's key and its positions. Whole on disk, or not there at all.

        Args:
            mass_dropped: Sum over the positions of the probability of tokens left out: padding
                rows, and tokens that the student's vocabulary has not.
        """
        starts = np.cumsum([0] + [len(row.tail_N) for row in rows], dtype=np.int64)
        tensors = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16).copy(),
            "starts": starts,
            "ids": np.concatenate([row.ids_NK for row in rows]),
            "logprobs": np.concatenate([row.logprobs_NK for row in rows]),
            "tail": np.concatenate([row.tail_N for row in rows]),
        }
        file = self.path / f"shard-{self._next:05d}.safetensors"
        temporary = file.with_name(file.name + ".part")
        facts = {
            "format": FORMAT,
            "settings": self.settings.model_dump_json(),
            "mass_dropped": repr(mass_dropped),
        }
        save_file(tensors, temporary, metadata=facts)
        os.replace(temporary, file)
        self.keys.update(keys)
        self._next += 1

    def finish(self) -> Manifest:
        """Writes the manifest, which makes the store complete."""
        shards, kept, dropped, num_bytes = [], 0.0, 0.0, 0
        for file in sorted(self.path.glob("shard-*.safetensors")):
            with safe_open(file, framework="np") as tensors:
                tail_N = tensors.get_tensor("tail")
                num_rows = tensors.get_slice("keys").get_shape()[0]
                dropped += float(tensors.metadata()["mass_dropped"])
            kept += float(np.sum(1.0 - tail_N, dtype=np.float64))
            num_bytes += file.stat().st_size
            shard = Shard(
                file=file.name, crc32=_crc32(file), num_rows=num_rows, num_positions=len(tail_N)
            )
            shards.append(shard)
        total = sum(shard.num_positions for shard in shards)
        if total == 0:
            raise DataError(f"{self.path}: no position was scored, so there is nothing to learn")
        manifest = Manifest(
            settings=self.settings,
            shards=tuple(shards),
            num_rows=sum(shard.num_rows for shard in shards),
            num_positions=total,
            bytes_per_position=num_bytes / total,
            mass_kept=kept / total,
            mass_dropped=dropped / total,
        )
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def _holds_our_rows(self, file: Path) -> bool:
        try:
            with safe_open(file, framework="np") as tensors:
                facts = tensors.metadata() or {}
                keys = tensors.get_tensor("keys")
        except Exception as error:  # safetensors raises its own class for a cut file
            log.info("targets: %s cannot be read: %s", file.name, error)
            return False
        if facts.get("settings") != self.settings.model_dump_json():
            return False
        self.keys.update(row.tobytes() for row in keys)
        return True


class TargetStore:
    """A finished store, read through memory-mapped shards."""

    def __init__(
        self,
        path: Path,
        *,
        vocab_fingerprint: str,
        template_fingerprint: str,
        temperature: float,
    ):
        """Opens a store for one student and one loss.

        Raises:
            VocabMismatch: If the targets belong to another tokenizer.
            DataError: If the store is unfinished or damaged, or belongs to another chat
                template or another loss temperature.
        """
        self.path = path
        self.manifest = _read_manifest(path)
        self.settings = self.manifest.settings
        again = "score again: potstill score"
        if self.settings.vocab_fingerprint != vocab_fingerprint:
            raise VocabMismatch(
                f"{path} holds probabilities over another vocabulary "
                f"({self.settings.vocab_fingerprint[:12]}) than the student's "
                f"({vocab_fingerprint[:12]}); {again}, or learn from text (loss.kind: sft)"
            )
        if self.settings.template_fingerprint != template_fingerprint:
            raise DataError(
                f"{path} was scored with another chat template than the student's; {again}"
            )
        if self.settings.temperature != temperature:
            # Softening needs the single probabilities inside the merged tail, which are gone.
            raise DataError(
                f"{path} was captured at loss.temperature {self.settings.temperature:g} and "
                f"cannot be softened to {temperature:g}; {again}, or set loss.temperature back"
            )
        self._shards = []
        self._where: dict[bytes, tuple[int, int, int]] = {}
        for number, shard in enumerate(self.manifest.shards):
            self._open(number, shard)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def lookup(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [N, K] int64 and log-probabilities [N, K] float32 of one row.

        N are the row's loss positions in order.

        Raises:
            DataError: If the row was not scored.
        """
        if key not in self._where:
            raise DataError(
                f"{self.path}: no targets for a row with the key {key.hex()}; the records have "
                f"changed since they were scored. Score again: potstill score"
            )
        number, start, end = self._where[key]
        tensors = self._shards[number]
        ids_NK, logprobs_NK = (tensors.get_slice(name)[start:end] for name in ("ids", "logprobs"))
        return decode(Encoded(ids_NK, logprobs_NK, tensors.get_slice("tail")[start:end]))

    def _open(self, number: int, shard: Shard) -> None:
        file = self.path / shard.file
        if not file.exists() or _crc32(file) != shard.crc32:
            found = "is damaged (its checksum differs)" if file.exists() else "is missing"
            raise DataError(f"{file} {found}; delete {self.path} and score again: potstill score")
        tensors = safe_open(file, framework="np")
        self._shards.append(tensors)
        starts = tensors.get_tensor("starts").tolist()
        for row, key in enumerate(tensors.get_tensor("keys")):
            self._where[key.tobytes()] = (number, starts[row], starts[row + 1])


def _read_manifest(path: Path) -> Manifest:
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
    if tree.get("format") != FORMAT:
        raise DataError(
            f"{path} has the format {tree.get('format')!r}, this version reads {FORMAT!r}; "
            f"score again: potstill score"
        )
    return Manifest.model_validate(tree)


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
