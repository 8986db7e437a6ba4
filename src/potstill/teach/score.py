"""Scores responses: the teacher's probabilities at every loss position, once, to disk.

Shape letters of this file:
    B  rows     T  tokens of a row     N  loss positions     V  vocabulary     S  shared tokens
    K  tokens kept, or draws made, at each position
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from potstill.data.batch import collate
from potstill.data.render import Rendered, template_fingerprint, vocab_fingerprint
from potstill.errors import DataError, VocabMismatch
from potstill.models.fingerprint import identity_of
from potstill.protocols import WhiteBoxModel
from potstill.targets.align import (
    WAY_OUT,
    SharedTokens,
    check_same_pieces,
    check_same_vocabulary,
    shared_logits,
    shared_tokens,
)
from potstill.targets.codec import Row
from potstill.targets.manifest import Kind
from potstill.targets.store import Manifest, TargetSettings, TargetWriter, content_key

SLICE = 256
"""Positions whose probabilities are worked out at once: 50 MB at 49,152 tokens, 100 MB in the
float64 that draws are made in."""

SHARD_POSITIONS = 1 << 18
"""Most positions of a shard: they wait in memory until it is written, 0.5 KB each at k = 64."""


class Translation(NamedTuple):
    """What scoring needs where teacher and student have different vocabularies."""

    student_tokenizer: Any
    teacher_rows: Sequence[Rendered]
    """The rows again, in the same order, made with the teacher's own tokenizer and template."""


class _Item(NamedTuple):
    """A row to be scored."""

    key: bytes
    row: Rendered
    """As the teacher reads it."""


def score(
    teacher: WhiteBoxModel,
    rendered_rows: Sequence[Rendered],
    store_path: Path,
    *,
    k: int,
    temperature: float,
    temperatures: Sequence[float] = (),
    kind: Kind = "topk",
    student_vocab_fingerprint: str,
    student_template_fingerprint: str | None = None,
    translation: Translation | None = None,
    **others: Any,
) -> Manifest:
    """Stores the teacher's largest probabilities, or draws from them, wherever a row carries loss.

    Running it again after a crash scores only the rows that no finished shard holds. What is
    stored is right at the temperatures given: a merged tail cannot be softened later.

    Args:
        rendered_rows: As the student reads them.
        k: Tokens kept at each position; for `sampled`, draws made.
        temperature: `loss.temperature` of the training these targets are for.
        temperatures: Others that they shall be right at too.
        kind: `topk` or `sampled`. Draws depend on a row's content alone.
        student_template_fingerprint: The chat template the rows were rendered with; the
            teacher's by default.
        translation: Given, tokenizers that share pieces are mapped; else they must be equal.
        others: As `score_into`.

    Raises:
        VocabMismatch: As `score_into`.
        DataError: If there is nothing to score, or k exceeds the vocabulary.
    """
    vocab_size = len(translation.student_tokenizer if translation else teacher.tokenizer)
    template = student_template_fingerprint or template_fingerprint(teacher.tokenizer)
    settings = target_settings(
        vocab_size,
        k=k,
        kind=kind,
        temperatures=tuple(sorted({temperature, *temperatures})),
        vocab_fingerprint=student_vocab_fingerprint,
        template_fingerprint=template,
        teacher=identity_of(teacher),
    )
    writer = TargetWriter(store_path, settings)
    score_into(
        writer,
        teacher,
        rendered_rows,
        translation=translation,
        **others,
    )
    return writer.finish()


def target_settings(
    vocab_size: int, *, k: int, kind: Kind = "topk", **settings: Any
) -> TargetSettings:
    """Settings of a store.

    Raises:
        DataError: If more tokens are to be kept than the vocabulary has.
    """
    if kind == "topk" and not 1 <= k <= vocab_size:
        raise DataError(
            f"loss.targets.k must be between 1 and {vocab_size:,} (the vocabulary), got {k:,}"
        )
    return TargetSettings(vocab_size=vocab_size, k=k, kind=kind, **settings)


def score_into(
    writer: TargetWriter,
    teacher: WhiteBoxModel,
    rendered_rows: Sequence[Rendered],
    *,
    translation: Translation | None = None,
    max_dropped: float = 0.05,
    batch_tokens: int = 4096,
    shard_seconds: float = 30.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """As `score`, into a store that is being written; rows that it has are left alone.

    Args:
        max_dropped: Most of the teacher's probability that may be on tokens the student has not.
        batch_tokens: Most tokens, padding included, that go through the teacher at once.
        shard_seconds: Most work that a crash can lose.
        on_progress: Called with rows done and rows in all.

    Raises:
        VocabMismatch: If the student's tokenizer is another than the teacher's and cannot be
            mapped, or more than `max_dropped` is lost.
    """
    shared, rows = _shared(writer.settings, teacher, rendered_rows, translation)
    _refuse_dropped(writer, max_dropped)  # an earlier call may have been refused after its last row
    missing = [item for key, item in rows.items() if key not in writer]
    done = len(rows) - len(missing)
    pending, num_positions, dropped, flushed_at = [], 0, 0.0, time.monotonic()
    for batch in _batches(missing, batch_tokens):
        found, lost = _score_batch(teacher, batch, writer.settings, shared)
        pending += zip((item.key for item in batch), found, strict=True)
        num_positions += sum(len(row.ids_NK) for row in found)
        dropped += lost
        done += len(batch)
        is_due = time.monotonic() - flushed_at >= shard_seconds
        if is_due or num_positions >= SHARD_POSITIONS or done == len(rows):
            keys, values = zip(*pending, strict=True)
            writer.write(keys, values, mass_dropped=dropped)
            _refuse_dropped(writer, max_dropped)
            pending, num_positions, dropped, flushed_at = [], 0, 0.0, time.monotonic()
        if on_progress is not None:
            on_progress(done, len(rows))


def _shared(
    settings: TargetSettings,
    teacher: WhiteBoxModel,
    rendered_rows: Sequence[Rendered],
    translation: Translation | None,
) -> tuple[SharedTokens | None, dict[bytes, _Item]]:
    """Shared tokens, where the vocabularies differ, and the rows as the teacher reads them."""
    is_same = teacher.vocab_fingerprint == settings.vocab_fingerprint
    keys = [content_key(row.ids, row.loss_mask) for row in rendered_rows]
    if is_same or translation is None:
        check_same_vocabulary(teacher.vocab_fingerprint, settings.vocab_fingerprint)
        items = map(_Item, keys, rendered_rows)
        return None, {item.key: item for item in items}
    assert vocab_fingerprint(translation.student_tokenizer) == settings.vocab_fingerprint
    shared = shared_tokens(teacher.tokenizer, translation.student_tokenizer)
    check_same_pieces(translation.teacher_rows, rendered_rows, shared)
    if settings.kind == "topk" and settings.k > len(shared.student_S):
        raise DataError(
            f"loss.targets.k is {settings.k:,}, but teacher and student share "
            f"{len(shared.student_S):,} tokens; keep fewer"
        )
    items = map(_Item, keys, translation.teacher_rows)
    return shared, {item.key: item for item in items}


@torch.inference_mode()
def _score_batch(
    teacher: WhiteBoxModel,
    items: Sequence[_Item],
    settings: TargetSettings,
    shared: SharedTokens | None,
) -> tuple[list[Row], float]:
    """What is to be stored of each row, and the dropped mass summed over their positions."""
    pad = teacher.tokenizer.pad_token_id
    rows = [item.row for item in items]
    batch = collate(rows, pad_id=teacher.tokenizer.eos_token_id if pad is None else pad)
    # The mask marks labels; the logits one position earlier are the prediction of a label.
    positions_BT = torch.zeros_like(batch.loss_mask_BT, dtype=torch.bool)
    positions_BT[:, :-1] = batch.loss_mask_BT[:, 1:].bool()
    logits_NV = teacher.logits(batch.ids_BT, positions_BT)
    counts = positions_BT.sum(-1).tolist()
    offsets_N = torch.cat([_offsets(item.key, n) for item, n in zip(items, counts, strict=True)])
    columns_S = None if shared is None else torch.from_numpy(shared.teacher_S).to(logits_NV.device)
    parts, dropped = [], 0.0
    for part_NV, part_N in zip(logits_NV.split(SLICE), offsets_N.split(SLICE), strict=True):
        part_NS, dropped_N = shared_logits(part_NV.float(), len(teacher.tokenizer), columns_S)
        if settings.kind == "topk":
            parts.append(largest(part_NS, settings.k, settings.temperatures))
        else:
            parts.append(drawn(part_NS / settings.temperatures[0], part_N, settings.k))
        dropped += dropped_N.sum().item()
    whole = Row(*map(np.concatenate, zip(*parts, strict=True)))
    if shared is not None:
        ids_NK = np.where(whole.ids_NK < 0, -1, shared.student_S[whole.ids_NK])
        whole = whole._replace(ids_NK=ids_NK)
    ends = np.cumsum(counts)[:-1]
    arrays = (np.split(array, ends) for array in whole)
    return [Row(*parts) for parts in zip(*arrays, strict=True)], dropped


def largest(logits_NS: Tensor, k: int, temperatures: Sequence[float]) -> Row:
    """The k largest logits, and the odds of all others at each temperature."""
    top = logits_NS.topk(k, dim=-1)
    others_NS = logits_NS.scatter(-1, top.indices, -torch.inf)
    log_odds = [
        (others_NS / temperature).logsumexp(-1) - (top.values / temperature).logsumexp(-1)
        for temperature in temperatures
    ]
    arrays = (top.indices, top.values, torch.stack(log_odds, dim=-1))
    return Row(*(array.cpu().numpy() for array in arrays))


def drawn(logits_NS: Tensor, offsets_N: Tensor, num: int) -> Row:
    """Tokens drawn from softmax(logits), `num` at each position, and how often each was.

    Draws stand evenly, 1 / num apart, on the cumulative distribution, and all move together
    with one random offset: a token of probability p is drawn num * p times rounded down or up,
    num * p times on average. So the share of the draws is unbiased like that of independent
    draws, and varies less.

    Args:
        offsets_N: Uniform in [0, 1), float64.

    Source:
        Learning from draws: random sampling distillation, arXiv:2503.16870. Drawing evenly:
        Madow (1949), "On the theory of systematic sampling, II", Annals of Mathematical
        Statistics 20.
    """
    total_NS = logits_NS.double().softmax(-1).cumsum(-1)
    total_NS /= total_NS[:, -1:].clone()
    steps_K = torch.arange(num, dtype=torch.float64, device=logits_NS.device)
    points_NK = (steps_K + offsets_N.to(logits_NS.device)[:, None]) / num
    ids = torch.searchsorted(total_NS, points_NK, right=True).clamp_max_(logits_NS.shape[-1] - 1)
    ids_NK = ids.cpu().numpy()
    is_first_NK = np.diff(ids_NK, axis=-1, prepend=-1) != 0
    lengths_M = np.diff(np.flatnonzero(is_first_NK), append=ids_NK.size)
    counts_NK = np.zeros_like(ids_NK)
    counts_NK[is_first_NK] = lengths_M
    return Row(np.where(is_first_NK, ids_NK, -1), counts_NK, np.zeros((len(ids_NK), 0)))


def _offsets(key: bytes, num_positions: int) -> Tensor:
    """The same numbers for the same row, whatever is scored with it."""
    seed = int.from_bytes(key, "little")
    return torch.from_numpy(np.random.default_rng(seed).random(num_positions))


def _refuse_dropped(writer: TargetWriter, most: float) -> None:
    found = writer.mass_dropped()
    if found > most:
        raise VocabMismatch(
            f"the teacher gives {found:.1%} of its probability to tokens that the student has "
            f"not, more than loss.targets.max_dropped allows ({most:.1%}); {WAY_OUT}, or raise "
            f"it if that is little to you"
        )


def _batches(items: Sequence[_Item], batch_tokens: int) -> Iterator[list[_Item]]:
    """Rows of like length together, longest first: if memory runs out, then at once."""
    batch: list[_Item] = []
    for item in sorted(items, key=lambda item: -len(item.row.ids)):
        if batch and (len(batch) + 1) * len(batch[0].row.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
