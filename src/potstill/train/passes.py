"""Forward passes: from rows to tensors, with the teacher's probabilities, to summed losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from potstill.data.render import Rendered
from potstill.targets.store import TargetStore, content_key
from potstill.train.objective import LossSums, TeacherTargets
from potstill.train.packing import Parts
from potstill.train.plan import num_loss_tokens
from potstill.train.student import Student
from potstill.train.targets import Sampled, TopK


@dataclass(frozen=True)
class Passes:
    """What rows are computed with."""

    objective: nn.Module
    student: Student
    parts: Parts
    targets: TargetStore | None
    watches_targets: bool
    """Whether validation rows have targets, too."""

    def __call__(self, rows: Sequence[Rendered]) -> LossSums:
        """The losses of rows that are computed at once."""
        batch, device = self.parts.tensors(rows), self.student.device
        # Padding stands on the right, where causal attention never looks: no mask is needed.
        positions = {"position_BT": batch.position_BT.to(device)} if self.parts.packed else {}
        with self.student.computing():
            return self.objective(
                batch.ids_BT.to(device),
                batch.loss_mask_BT.to(device),
                None,
                self._targets(rows),
                **positions,
            )

    def without_loss(self, rows: Sequence[Rendered], number: int) -> Iterator[LossSums]:
        """Passes in which nothing is learnt: others gather weights that lie here in part."""
        shortest = min(rows, key=lambda row: len(row.ids))
        for _ in range(number):
            yield self([Rendered(shortest.ids, [0] * len(shortest.ids))])

    def _targets(self, rows: Sequence[Rendered]) -> TeacherTargets | None:
        if self.targets is None or not any(map(num_loss_tokens, rows)):
            return None
        if not self.student.model.training and not self.watches_targets:
            return None
        keys = [content_key(row.ids, row.loss_mask) for row in rows]
        settings, device = self.targets.settings, self.student.device
        arrays = (torch.from_numpy(array).to(device) for array in self.targets.batch(keys))
        target = Sampled(*arrays) if settings.kind == "sampled" else TopK(*arrays)
        return TeacherTargets(target, settings.vocab_size)
