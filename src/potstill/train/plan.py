"""What is trained on, in which order, at which learning rate: decided before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config import LossConfig, TrainConfig
from potstill.data.batch import plan_batches
from potstill.data.render import Rendered
from potstill.errors import DataError
from potstill.targets.store import TargetStore, content_key
from potstill.train.packing import PADDED, Parts
from potstill.train.ranks import ALONE, Ranks


def num_loss_tokens(row: Rendered) -> int:
    """Loss positions of a row. The first token has no predecessor that could predict it."""
    return sum(map(int, row.loss_mask[1:]))


def check_rows(rows: Sequence[Rendered], *, max_tokens: int, what: str) -> None:
    """Refuses rows that cannot be trained on, all problems at once.

    Raises:
        DataError: If there are no rows, one carries no loss, or one is too long. They are
            rejected when the data is prepared; here nothing is dropped or cut in silence.
    """
    if not rows and what == "training":
        raise DataError("there are no training rows: every record was rejected or none was given")
    uneven = [i for i, row in enumerate(rows) if len(row.ids) != len(row.loss_mask)]
    empty = [i for i, row in enumerate(rows) if i not in uneven and num_loss_tokens(row) == 0]
    long = [i for i, row in enumerate(rows) if len(row.ids) > max_tokens]
    problems = []
    if uneven:
        problems.append(f"rows {_few(uneven)} have a loss mask of another length than their tokens")
    if empty:
        problems.append(f"rows {_few(empty)} carry no loss: their answers are empty")
    if long:
        longest = max(len(rows[i].ids) for i in long)
        problems.append(
            f"rows {_few(long)} are longer than {max_tokens:,} tokens (the longest: {longest:,}); "
            f"raise train.max_tokens if the model allows it, or drop them"
        )
    if problems:
        raise DataError(f"{what} rows counted from 0: " + "; ".join(problems))


def check_inputs(
    model: Any,
    train_rows: Sequence[Rendered],
    validation_rows: Sequence[Rendered],
    loss: LossConfig,
    train: TrainConfig,
    targets: TargetStore | None,
) -> TargetStore | None:
    """Refuses what cannot be trained on; returns the targets where the loss uses them.

    Raises:
        DataError: If rows are empty, too long or without targets.
    """
    longest = getattr(model.config, "max_position_embeddings", None) or train.max_tokens
    for rows, what in ((train_rows, "training"), (validation_rows, "validation")):
        check_rows(rows, max_tokens=min(train.max_tokens, longest), what=what)
    if loss.kind == "sft":
        return None
    if targets is None:
        raise DataError(f"loss.kind: {loss.kind} needs the teacher's probabilities: potstill score")
    missing = sum(content_key(row.ids, row.loss_mask) not in targets for row in train_rows)
    if missing:
        raise DataError(
            f"{targets.path} has no probabilities for {missing:,} of {len(train_rows):,} "
            f"training rows; score again: potstill score"
        )
    return targets


@dataclass(frozen=True)
class StepPlan:
    """The rows of every optimizer step. The same for one config and one list of rows."""

    lengths: tuple[int, ...]
    train: TrainConfig
    parts: Parts = PADDED
    ranks: Ranks = ALONE

    @property
    def steps_per_epoch(self) -> int:
        return len(self._epoch(0))

    @property
    def padding(self) -> float:
        """Tokens of a pass with each step padded to its longest row, by the rows' own."""
        steps = [[self.lengths[row] for row in rows] for rows in self._epoch(0)]
        return sum(len(step) * max(step) for step in steps) / sum(map(sum, steps))

    @property
    def num_steps(self) -> int:
        if self.train.max_steps is not None:
            return self.train.max_steps
        return max(1, math.ceil(self.train.num_epochs * self.steps_per_epoch - 1e-9))

    @property
    def eval_steps(self) -> int:
        """Steps between two looks at the validation loss."""
        return self.train.eval_steps or max(1, self.num_steps // 10)

    def rows(self, step: int) -> list[int]:
        """Rows of one step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return list(self._epoch(epoch)[place])

    def micro_batches(self, step: int) -> list[list[int]]:
        """This process's rows of a step, in the parts that are computed at once."""
        return self.parts.cut(self.ranks.share(self.rows(step), self.lengths), self.lengths)

    def learning_rate(self, step: int) -> float:
        """Warm-up to the peak, then constant, a line, or half a cosine towards 0."""
        train, total = self.train, self.num_steps
        warmup = math.ceil(train.warmup * total)
        if step < warmup:
            return train.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total - warmup)
        share = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        }[train.schedule]
        return train.learning_rate * share

    def _epoch(self, epoch: int) -> list[list[int]]:
        known = self.__dict__.setdefault("_epochs", {})
        if epoch not in known:
            known.clear()  # one epoch at a time: lists of a large set are large
            known[epoch] = [
                list(batch)
                for batch in plan_batches(
                    list(self.lengths),
                    self.train.batch_size,
                    seed=self.train.seed,
                    epoch=epoch,
                    by_length=self.train.order == "by_length",
                )
            ]
        return known[epoch]


def _few(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:5]))
    return text + (f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else "")
