"""The teacher's probabilities in a folder: shards, and a manifest written last.

    targets/
      shard-00000.safetensors   the bytes of its rows, their keys and lengths, and how to read them
      ...
      manifest.json             fingerprints, kind, temperatures, checksums; its presence
                                means complete

Rows are found by the hash of their tokens, never by position, so that shuffling,
accumulation or another order of the records cannot pair a row with a stranger's targets.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from potstill.errors import DataError, VocabMismatch
from potstill.rundir import crc32_of, disk_errors, write_text
from potstill.targets.buckets import fit_buckets, make_buckets, read_classes, write_classes
from potstill.targets.codec import (
    STEPS,
    Code,
    Drawn,
    Row,
    TopK,
    error_nats,
    joined,
    ordered,
    read_row,
    write_row,
)
from potstill.targets.manifest import (
    FORMAT,
    MANIFEST,
    AtTemperature,
    Manifest,
    Shard,
    TargetSettings,
    content_key,
    read_manifest,
)
from potstill.types import Noun

__all__ = [
    "Manifest",
    "TargetSettings",
    "TargetStore",
    "TargetWriter",
    "content_key",
]
log = logging.getLogger(__name__)


class _Sums(Noun):
    """What was measured of a shard while it was written; sums over its positions."""

    num_tokens: int = 0
    ids: int = 0
    """Bytes, like the next two."""

    values: int = 0
    tail: int = 0
    mass_dropped: float = 0.0
    mass_kept: tuple[float, ...] = ()
    """One for each temperature, like the next two."""

    error_nats: tuple[float, ...] = ()
    worst_error_nats: tuple[float, ...] = ()


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
        self, keys: Sequence[bytes], rows: Sequence[Row], *, mass_dropped: float = 0.0
    ) -> None:
        """Adds one shard: a row's key and its positions. Whole on disk, or not there at all.

        Args:
            mass_dropped: Sum over the positions of the probability of tokens that the student
                has not.
        """
        is_topk = self.settings.kind == "topk"
        temperatures = self.settings.temperatures
        num_positions = sum(len(row.ids_NK) for row in rows)
        ids = np.concatenate([row.ids_NK[row.ids_NK >= 0] for row in rows])
        code = Code(
            fit_buckets(ids, num_positions, self.settings.vocab_size),
            step=min(temperatures) / STEPS if is_topk else 0.0,
            temperatures=temperatures if is_topk else (),
        )
        rows = [ordered(row, code) for row in rows]
        written = [write_row(row, code) for row in rows]
        errors = [_errors(row, one.data, code) for row, one in zip(rows, written, strict=True)]
        odds_NT = np.concatenate([row.log_odds_NT for row in rows]).astype(np.float64)
        sums = _Sums(
            num_tokens=len(ids),
            ids=sum(one.ids for one in written),
            values=sum(one.values for one in written),
            tail=sum(one.tail for one in written),
            mass_dropped=mass_dropped,
            mass_kept=tuple(np.exp(-np.logaddexp(0.0, odds_NT)).sum(0).tolist()),
            error_nats=tuple(np.sum([found.sum(0) for found in errors], axis=0).tolist()),
            worst_error_nats=tuple(np.max([found.max(0) for found in errors], axis=0).tolist()),
        )
        self._save(keys, rows, [one.data for one in written], code, sums)
        self.keys.update(keys)
        self._next += 1

    def _save(
        self,
        keys: Sequence[bytes],
        rows: Sequence[Row],
        data: Sequence[bytes],
        code: Code,
        sums: _Sums,
    ) -> None:
        tensors = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16).copy(),
            "num_positions": np.array([len(row.ids_NK) for row in rows], np.uint32),
            "num_bytes": np.array([len(part) for part in data], np.uint32),
            "widths": code.buckets.widths_B,
            "classes": np.frombuffer(write_classes(code.buckets.classes_V), np.uint8).copy(),
            "data": np.frombuffer(b"".join(data), dtype=np.uint8).copy(),
        }
        facts = {
            "format": FORMAT,
            "settings": self.settings.model_dump_json(),
            "step": repr(code.step),
            "sums": sums.model_dump_json(),
        }
        file = self.path / f"shard-{self._next:05d}.safetensors"
        temporary = file.with_name(file.name + ".part")
        with disk_errors(file):
            save_file(tensors, temporary, metadata=facts)
        os.replace(temporary, file)

    def mass_dropped(self) -> float:
        """Mean probability of dropped tokens in all shards so far; 0 without any."""
        found = [_sums(file) for file in self._files()]
        total = sum(num for num, _ in found)
        return sum(sums.mass_dropped for _, sums in found) / total if total else 0.0

    def finish(self) -> Manifest:
        """Writes the manifest, which makes the store complete."""
        shards, found, num_bytes = [], [], 0
        for file in self._files():
            num_positions, sums = _sums(file)
            with safe_open(file, framework="np") as tensors:
                num_rows = tensors.get_slice("keys").get_shape()[0]
            shard = Shard(
                file=file.name, crc32=crc32_of(file), num_rows=num_rows, num_positions=num_positions
            )
            shards.append(shard)
            found.append(sums)
            num_bytes += file.stat().st_size
        total = sum(shard.num_positions for shard in shards)
        if total == 0:
            raise DataError(f"{self.path}: no position was scored, so there is nothing to learn")
        parts = {
            name: sum(getattr(sums, name) for sums in found) / total
            for name in ("ids", "values", "tail")
        }
        parts["index"] = num_bytes / total - sum(parts.values())
        manifest = Manifest(
            settings=self.settings,
            shards=tuple(shards),
            num_rows=sum(shard.num_rows for shard in shards),
            num_positions=total,
            tokens_per_position=sum(sums.num_tokens for sums in found) / total,
            bytes_per_position=num_bytes / total,
            parts=parts,
            at=_at_temperatures(self.settings, found, total),
            mass_dropped=sum(sums.mass_dropped for sums in found) / total,
        )
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("shard-*.safetensors"))

    def _holds_our_rows(self, file: Path) -> bool:
        try:
            with safe_open(file, framework="np") as tensors:
                facts = tensors.metadata() or {}
                keys = tensors.get_tensor("keys")
        except Exception as error:  # safetensors raises its own class for a cut file
            log.info("targets: %s cannot be read: %s", file.name, error)
            return False
        ours = (FORMAT, self.settings.model_dump_json())
        if (facts.get("format"), facts.get("settings")) != ours:
            return False
        self.keys.update(row.tobytes() for row in keys)
        return True


class TargetReader:
    """The rows of a finished store, read through memory-mapped shards; fits any student."""

    def __init__(self, path: Path):
        """Opens a store.

        Raises:
            DataError: If it is unfinished, damaged or of another format.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.settings = self.manifest.settings
        self._shards: list[tuple[safe_open, Code]] = []
        self._where: dict[bytes, tuple[int, int, int, int]] = {}
        for number, shard in enumerate(self.manifest.shards):
            self._open(number, shard)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def keys(self) -> list[bytes]:
        """The names of all rows, in the order they were written."""
        return list(self._where)

    def read(self, key: bytes, temperature: float) -> TopK | Drawn:
        """One row at one of the stored temperatures.

        Raises:
            DataError: If the row was not scored.
        """
        if key not in self._where:
            raise DataError(
                f"{self.path}: no targets for a row with the key {key.hex()}; the records have "
                f"changed since they were scored. Score again: potstill score"
            )
        number, start, end, num_positions = self._where[key]
        tensors, code = self._shards[number]
        data = tensors.get_slice("data")[start:end]
        return read_row(data, num_positions, code, temperature)

    def _open(self, number: int, shard: Shard) -> None:
        file = self.path / shard.file
        if not file.exists() or crc32_of(file) != shard.crc32:
            found = "is damaged (its checksum differs)" if file.exists() else "is missing"
            raise DataError(f"{file} {found}; delete {self.path} and score again: potstill score")
        tensors = safe_open(file, framework="np")
        is_topk = self.settings.kind == "topk"
        code = Code(
            make_buckets(
                read_classes(tensors.get_tensor("classes").tobytes()), tensors.get_tensor("widths")
            ),
            step=float(tensors.metadata()["step"]),
            temperatures=self.settings.temperatures if is_topk else (),
        )
        self._shards.append((tensors, code))
        ends = np.cumsum(tensors.get_tensor("num_bytes"), dtype=np.int64).tolist()
        lengths = tensors.get_tensor("num_positions").tolist()
        for row, key in enumerate(tensors.get_tensor("keys")):
            start = ends[row - 1] if row else 0
            self._where[key.tobytes()] = (number, start, ends[row], lengths[row])


class TargetStore(TargetReader):
    """A finished store, for one student and one loss temperature."""

    def __init__(
        self,
        path: Path,
        *,
        vocab_fingerprint: str,
        template_fingerprint: str,
        temperature: float,
    ):
        """Opens a store.

        Raises:
            VocabMismatch: If the targets belong to another tokenizer.
            DataError: If the store is unfinished or damaged, belongs to another chat
                template, or does not hold this loss temperature.
        """
        super().__init__(path)
        self.temperature = temperature
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
        if temperature not in self.settings.temperatures:
            # Softening needs the single probabilities inside the merged tail, which are gone.
            held = ", ".join(f"{one:g}" for one in self.settings.temperatures)
            raise DataError(
                f"{path} was captured at loss.temperature {held} and cannot be softened to "
                f"{temperature:g}; {again}, or set loss.temperature back"
            )

    def lookup(self, key: bytes) -> TopK | Drawn:
        """The targets of one row: N are its loss positions in order.

        Raises:
            DataError: If the row was not scored.
        """
        return self.read(key, self.temperature)

    def batch(self, keys: Sequence[bytes]) -> TopK | Drawn:
        """The targets of several rows, one after the other.

        Raises:
            DataError: If one was not scored.
        """
        return joined([self.lookup(key) for key in keys])


def _errors(row: Row, data: bytes, code: Code) -> np.ndarray:
    """KL [N, T] between a row and what is read back of its bytes."""
    buffer = np.frombuffer(data, np.uint8)
    num_positions = len(row.ids_NK)
    errors = np.zeros((num_positions, len(code.temperatures)))
    for place, temperature in enumerate(code.temperatures):
        found = read_row(buffer, num_positions, code, temperature)
        errors[:, place] = error_nats(row, found, code, temperature)
    return errors


def _sums(file: Path) -> tuple[int, _Sums]:
    """Positions of a shard, and what was measured of them."""
    with safe_open(file, framework="np") as tensors:
        num_positions = int(tensors.get_tensor("num_positions").sum())
        return num_positions, _Sums.model_validate_json(tensors.metadata()["sums"])


def _at_temperatures(
    settings: TargetSettings, found: Sequence[_Sums], total: int
) -> tuple[AtTemperature, ...]:
    if settings.kind == "sampled":
        return ()
    return tuple(
        AtTemperature(
            temperature=temperature,
            mass_kept=sum(sums.mass_kept[place] for sums in found) / total,
            error_nats=sum(sums.error_nats[place] for sums in found) / total,
            worst_error_nats=max(sums.worst_error_nats[place] for sums in found),
        )
        for place, temperature in enumerate(settings.temperatures)
    )
