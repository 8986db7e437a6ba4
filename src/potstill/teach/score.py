"""Scores responses: the teacher's probabilities at every loss position, once, to disk.

Shape letters of this file:
    B  rows     T  tokens of a row     N  loss positions of a batch     V  vocabulary
    K  tokens kept at each position
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.data.batch import collate
from potstill.data.render import Rendered, template_fingerprint
from potstill.errors import DataError
from potstill.models.fingerprint import identity_of
from potstill.protocols import WhiteBoxModel
from potstill.targets.align import check_same_vocabulary, shared_logits
from potstill.targets.codec import Encoded, encode
from potstill.targets.store import Manifest, TargetSettings, TargetWriter, content_key

SLICE = 512
"""Positions whose probabilities are worked out at once: 100 MB at 49,152 tokens."""


def score(
    teacher: WhiteBoxModel,
    rendered_rows: Sequence[Rendered],
    store_path: Path,
    *,
    k: int,
    temperature: float,
    student_vocab_fingerprint: str,
    student_template_fingerprint: str | None = None,
    batch_tokens: int = 4096,
    shard_seconds: float = 30.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Stores the k largest teacher probabilities wherever a row carries loss.

    Running it again after a crash scores only the rows that no finished shard holds. What is
    stored is softmax(logits / temperature): a merged tail cannot be softened later.

    Args:
        temperature: `loss.temperature` of the training these targets are for.
        student_template_fingerprint: The chat template the rows were rendered with; the
            teacher's by default.
        batch_tokens: Most tokens, padding included, that go through the teacher at once.
        shard_seconds: Most work that a crash can lose.
        on_progress: Called with rows done and rows in all.

    Raises:
        VocabMismatch: If the student's tokenizer is another than the teacher's.
        DataError: If there is nothing to score, or k exceeds the vocabulary.
    """
    check_same_vocabulary(teacher.vocab_fingerprint, student_vocab_fingerprint)
    template = student_template_fingerprint or template_fingerprint(teacher.tokenizer)
    settings = target_settings(
        len(teacher.tokenizer),
        k=k,
        temperature=temperature,
        vocab_fingerprint=student_vocab_fingerprint,
        template_fingerprint=template,
        teacher=identity_of(teacher),
    )
    writer = TargetWriter(store_path, settings)
    score_into(
        writer,
        teacher,
        rendered_rows,
        batch_tokens=batch_tokens,
        shard_seconds=shard_seconds,
        on_progress=on_progress,
    )
    return writer.finish()


def target_settings(vocab_size: int, *, k: int, **settings: Any) -> TargetSettings:
    """Settings of a store of the k largest.

    Raises:
        DataError: If k exceeds the vocabulary.
    """
    if not 1 <= k <= vocab_size:
        raise DataError(
            f"loss.targets.k must be between 1 and {vocab_size:,} (the vocabulary), got {k:,}"
        )
    return TargetSettings(vocab_size=vocab_size, k=k, **settings)


def score_into(
    writer: TargetWriter,
    teacher: WhiteBoxModel,
    rendered_rows: Sequence[Rendered],
    *,
    batch_tokens: int = 4096,
    shard_seconds: float = 30.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """As `score`, into a store that is being written; rows that it has are left alone.

    Raises:
        VocabMismatch: If the store's tokenizer is another than the teacher's.
    """
    settings = writer.settings
    check_same_vocabulary(teacher.vocab_fingerprint, settings.vocab_fingerprint)
    rows = {content_key(row.ids, row.loss_mask): row for row in rendered_rows}
    missing = [(key, row) for key, row in rows.items() if key not in writer]
    done = len(rows) - len(missing)
    pending, flushed_at = _Pending([], [], 0.0), time.monotonic()
    for batch in _batches(missing, batch_tokens):
        encoded, dropped = _score_batch(teacher, [row for _, row in batch], settings)
        pending.add([key for key, _ in batch], encoded, dropped)
        done += len(batch)
        if time.monotonic() - flushed_at >= shard_seconds or done == len(rows):
            writer.write(pending.keys, pending.rows, mass_dropped=pending.dropped)
            pending, flushed_at = _Pending([], [], 0.0), time.monotonic()
        if on_progress is not None:
            on_progress(done, len(rows))


@dataclass
class _Pending:
    """Rows that were scored and are not in a shard yet."""

    keys: list[bytes]
    rows: list[Encoded]
    dropped: float

    def add(self, keys: list[bytes], rows: list[Encoded], dropped: float) -> None:
        self.keys += keys
        self.rows += rows
        self.dropped += dropped


@torch.inference_mode()
def _score_batch(
    teacher: WhiteBoxModel, rows: Sequence[Rendered], settings: TargetSettings
) -> tuple[list[Encoded], float]:
    pad = teacher.tokenizer.pad_token_id
    batch = collate(rows, pad_id=teacher.tokenizer.eos_token_id if pad is None else pad)
    # The mask marks labels; the logits one position earlier are the prediction of a label.
    positions_BT = torch.zeros_like(batch.loss_mask_BT, dtype=torch.bool)
    positions_BT[:, :-1] = batch.loss_mask_BT[:, 1:].bool()
    logits_NV = teacher.logits(batch.ids_BT, positions_BT)
    ids, logprobs, dropped = [], [], 0.0
    for part_NV in logits_NV.split(SLICE):
        shared_NV, dropped_N = shared_logits(
            part_NV.float() / settings.temperature, settings.vocab_size
        )
        top_NK = shared_NV.log_softmax(-1).topk(settings.k, dim=-1)
        ids.append(top_NK.indices.cpu())
        logprobs.append(top_NK.values.cpu())
        dropped += dropped_N.sum().item()
    counts = positions_BT.sum(-1).tolist()
    pairs = zip(torch.cat(ids).split(counts), torch.cat(logprobs).split(counts), strict=True)
    encoded = [
        encode(row_ids.numpy(), row_logprobs.numpy(), vocab_size=settings.vocab_size)
        for row_ids, row_logprobs in pairs
    ]
    return encoded, dropped


def _batches(
    rows: Sequence[tuple[bytes, Rendered]], batch_tokens: int
) -> Iterator[list[tuple[bytes, Rendered]]]:
    """Rows of like length together, longest first: if memory runs out, then at once."""
    batch: list[tuple[bytes, Rendered]] = []
    for item in sorted(rows, key=lambda item: -len(item[1].ids)):
        if batch and (len(batch) + 1) * len(batch[0][1].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
