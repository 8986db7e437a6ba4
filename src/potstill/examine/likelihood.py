"""How probable a model finds the known answers, and how far that is from its teacher.

Shape letters of this file:
    B  rows     T  tokens of a row     N  tokens of answers, over all rows     V  vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from potstill.data.render import Rendered, render
from potstill.protocols import Task, WhiteBoxModel
from potstill.types import Likelihood, Record

BATCH_TOKENS = 4096
"""Most tokens, padding included, that go through a model at once."""

Key = tuple[str, int]


def likelihoods(
    model: WhiteBoxModel,
    records: Sequence[Record],
    task: Task,
    *,
    teacher: WhiteBoxModel | None = None,
) -> dict[Key, Likelihood]:
    """(record id, turn) -> how probable the model finds the known answer.

    Answers without a reference, and rows longer than the model reads, are left out. The
    divergence from the teacher is left out where the two tokenizers differ.
    """
    if teacher is not None and teacher.vocab_fingerprint != model.vocab_fingerprint:
        teacher = None
    longest = min(
        (m.context for m in (model, teacher) if getattr(m, "context", None)), default=None
    )
    rows: list[tuple[Key, Rendered, int]] = []
    for record in records:
        for turn, prompt in enumerate(task.turns(record)):
            if prompt.reference is None:
                continue
            row = render(model.tokenizer, prompt.messages, prompt.reference, max_tokens=longest)
            if row is not None:
                size = len(prompt.reference.encode("utf-8"))
                rows.append(((record.id, turn), row, size))
    rows.sort(key=lambda row: len(row[1].ids))
    found: dict[Key, Likelihood] = {}
    for batch in _batches(rows):
        found |= _score(model, teacher, batch)
    return found


def _batches(rows: Sequence[tuple[Key, Rendered, int]]) -> Iterator[list]:
    """Rows of like length together; one alone may be longer than a batch."""
    batch: list[tuple[Key, Rendered, int]] = []
    for row in rows:
        if batch and len(row[1].ids) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _score(
    model: WhiteBoxModel,
    teacher: WhiteBoxModel | None,
    batch: Sequence[tuple[Key, Rendered, int]],
) -> dict[Key, Likelihood]:
    ids_BT, positions_BT = _padded([row for _, row, _ in batch])
    targets_N = ids_BT[:, 1:][positions_BT[:, :-1]]
    log_q_NV = _log_probabilities(model, ids_BT, positions_BT)
    nats_N = -log_q_NV.gather(-1, targets_N[:, None].to(log_q_NV.device))[:, 0].double()
    counts = positions_BT.sum(-1).tolist()
    nats = [part.sum().item() for part in nats_N.split(counts)]
    apart: list[float | None] = [None] * len(batch)
    if teacher is not None:
        log_p_NV = _log_probabilities(teacher, ids_BT, positions_BT).to(log_q_NV.device)
        kl_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).double()
        apart = [part.sum().item() for part in kl_N.split(counts)]
    return {
        key: Likelihood(
            nats=nats[i], num_tokens=counts[i], num_bytes=size, divergence_nats=apart[i]
        )
        for i, (key, _, size) in enumerate(batch)
    }


def _padded(rows: Sequence[Rendered]) -> tuple[Tensor, Tensor]:
    """Ids [B, T], padded on the right, and where the token that follows belongs to an answer."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    positions_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.ids)] = torch.tensor(row.ids)
        positions_BT[i, : len(row.ids) - 1] = torch.tensor(row.loss_mask[1:], dtype=torch.bool)
    return ids_BT, positions_BT


def _log_probabilities(model: WhiteBoxModel, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """[N, V], nats, over the tokenizer's own tokens: rows of the head beyond them do not count."""
    logits_NV = model.logits(ids_BT, positions_BT)[:, : len(model.tokenizer)]
    return logits_NV.float().log_softmax(-1)
