"""Sequences to tensors: padding or packing, and which records share a step.

Shape letters of this file:
    B  sequences in a batch
    T  positions: the longest sequence of the batch
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.data.render import Rendered

WINDOW = 32
"""Batches that are sorted by length together: enough that neighbours are of one length."""

NOISE = 0.1
"""How far lengths are blurred before sorting, so that epochs differ in who meets whom."""


class Batch(NamedTuple):
    """Sequences as tensors: padded on the right, or packed one behind the other in one row."""

    ids_BT: Tensor
    """int64; the padding token behind the end."""

    loss_mask_BT: Tensor
    """bool; True on tokens that are to be learned, at their own position (not shifted)."""

    position_BT: Tensor
    """int64, 0 at the first token of each sequence."""

    attention_BT: Tensor
    """int64; 1 on tokens, 0 on padding."""

    rows: tuple[int, ...]
    """Which records these are: positions in the list the batch was planned from."""


def collate(
    rendered: Sequence[Rendered], pad_id: int, *, rows: Sequence[int] | None = None
) -> Batch:
    """Pads sequences to the longest of them.

    Args:
        rows: Their positions in the caller's list; 0, 1, 2 ... where not given.
    """
    if not rendered:
        raise ValueError("a batch needs at least one sequence")
    lengths = [len(one.ids) for one in rendered]
    shape = (len(rendered), max(lengths))
    ids_BT = torch.full(shape, pad_id, dtype=torch.int64)
    loss_mask_BT = torch.zeros(shape, dtype=torch.bool)
    attention_BT = torch.zeros(shape, dtype=torch.int64)
    for row, one in enumerate(rendered):
        end = lengths[row]
        ids_BT[row, :end] = torch.tensor(one.ids)
        loss_mask_BT[row, :end] = torch.tensor(one.loss_mask, dtype=torch.bool)
        attention_BT[row, :end] = 1
    position_BT = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(
        ids_BT,
        loss_mask_BT,
        position_BT,
        attention_BT,
        tuple(rows) if rows is not None else tuple(range(len(rendered))),
    )


def pack(rendered: Sequence[Rendered]) -> Batch:
    """All sequences in one row without padding; positions count anew in each of them.

    The first token of a sequence is never learned: its predecessor is a stranger.
    """
    if not rendered:
        raise ValueError("a batch needs at least one sequence")
    ids = [torch.tensor(one.ids) for one in rendered]
    masks = [torch.tensor([0, *one.loss_mask[1:]], dtype=torch.bool) for one in rendered]
    positions = [torch.arange(len(one.ids)) for one in rendered]
    ids_BT = torch.cat(ids)[None]
    return Batch(
        ids_BT,
        torch.cat(masks)[None],
        torch.cat(positions)[None],
        torch.ones_like(ids_BT),
        tuple(range(len(rendered))),
    )


def fill_bins(
    lengths: Sequence[int], limit: int, *, most: int | None = None, padded: bool = False
) -> list[list[int]]:
    """Sequences into as few bins of at most `limit` tokens as first-fit decreasing finds.

    A sequence longer than `limit` has a bin of its own. Bins begin with their longest.

    Args:
        most: Sequences to a bin.
        padded: A bin costs its longest sequence times their number; they are filled one
            after the other, so that neighbours are of like length.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[bins[-1][0]] if padded and bins else lengths[place]
        tried = range(max(0, len(bins) - 1), len(bins)) if padded else range(len(bins))
        for number in tried:
            if room[number] >= length and (most is None or len(bins[number]) < most):
                bins[number].append(place)
                room[number] -= length
                break
        else:
            bins.append([place])
            room.append(limit - lengths[place])
    return bins


def plan_batches(
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    by_length: bool = True,
) -> list[list[int]]:
    """Who is in which step: each record once, `batch_size` to a step, the rest in the last.

    The same arguments give the same plan on every machine; the rest of an epoch is drawn anew
    in each, whatever its length.

    Args:
        by_length: Records of like length meet, so that little is padding; else steps are
            drawn at random.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chance = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    chance.shuffle(order)
    num_full = len(order) - len(order) % batch_size
    full, rest = order[:num_full], order[num_full:]
    batches = []
    for start in range(0, num_full, WINDOW * batch_size):
        window = full[start : start + WINDOW * batch_size]
        if not by_length:
            batches += [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
            continue
        blurred = {row: lengths[row] * (1 + NOISE * chance.random()) for row in window}
        window.sort(key=blurred.__getitem__)
        batches += [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
    chance.shuffle(batches)
    return [*batches, rest] if rest else batches
