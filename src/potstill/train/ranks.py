"""Processes that train together: the same weights, each a share of every step.

Every process knows the plan, so nobody is told which rows are whose. A step's gradients are
added up over all processes once, after each has accumulated its own; since the sum is
already divided by the loss positions of the whole step, the result is that of one process.
All then do the same optimizer step, and their weights stay equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 16 * 2**20
"""Numbers that are added up at once: few messages, little extra memory."""


class Ranks:
    """This process among those that train together; alone by default."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", rank if size > 1 else 0) if has_gpu else _CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This process's rows of a step: shares are disjoint and of about the same length.

        The longest row goes first, each to the share with the fewest tokens so far.

        Args:
            rows: The rows of the step, the same in every process.
            lengths: Tokens of all rows, by row.
        """
        if self.size == 1:
            return list(rows)
        tokens = [0] * self.size
        mine = []
        for row in sorted(rows, key=lambda row: (-lengths[row], row)):
            least = tokens.index(min(tokens))
            tokens[least] += lengths[row]
            if least == self.rank:
                mine.append(row)
        return mine

    def seed(self, seed: int, step: int) -> int:
        """A seed for the dropout of a step; others in other processes.

        Random numbers follow from the step, so a checkpoint need not keep their state.
        """
        digest = hashlib.sha256(f"{seed}/{step}/{self.rank}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes; one that is missing counts 0."""
        if self.size == 1:
            return
        waiting: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            is_other = any(g.dtype != parameter.grad.dtype for g in waiting[:1])
            if is_other or sum(g.numel() for g in waiting) >= BUCKET:
                _add_up(waiting)
                waiting = []
            waiting.append(parameter.grad)
        _add_up(waiting)

    def total(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes; a process without rows gives an empty mapping."""
        found: dict[str, float] = {}
        for part in self.gather(dict(figures)):
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def gather(self, value: Any) -> list[Any]:
        """A small value of every process, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


_CPU = torch.device("cpu")
ALONE = Ranks()


def _add_up(gradients: Sequence[Tensor]) -> None:
    if len(gradients) == 1:
        dist.all_reduce(gradients[0])
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
