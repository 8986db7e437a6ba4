"""What stops a training: a loss or gradient that is no number, and a loss that jumps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from potstill.config import TrainConfig
from potstill.errors import TrainError
from potstill.train.checkpoint import TrainState

MEMORY = 50
"""Steps whose losses a new one is compared with."""

LEAST = 20
"""Steps before a jump can be told from the fall at the beginning."""

RISE = 1.05
"""A validation loss that ends so many times above its lowest has risen, and not only trembled."""

FACTOR = 4.0
"""A jump is at least so many times the median: losses on softened probabilities are large."""


def remember(losses: Sequence[float], loss: float) -> tuple[float, ...]:
    """The losses of the last steps, with one more."""
    return (*losses, loss)[-MEMORY:]


def overfitting(state: TrainState) -> str:
    """What to say where the validation loss rose after its lowest; empty where it did not."""
    best, last = state.best_loss, state.last_loss
    if best is None or last is None or last <= RISE * best:
        return ""
    return (
        f"the student overfits: its validation loss rose from {best:.3g} at step "
        f"{state.best_step:,}, whose weights are kept, to {last:.3g}; more records, fewer "
        f"train.num_epochs or a lower train.learning_rate would help"
    )


def check_step(
    figures: Mapping[str, float],
    losses: Sequence[float],
    rows: Sequence[int],
    *,
    step: int,
    train: TrainConfig,
) -> None:
    """Stops before a step that would spoil the weights.

    Args:
        figures: `train/loss_nats` and `train/grad_norm` of the step, among others.
        losses: Of the steps before, the last `MEMORY` of them.
        rows: The training rows of the step.
        step: Counted from 1.

    Raises:
        TrainError: If a figure is not finite, or the loss is `train.max_loss_jump` nats above
            the median of `losses` and `FACTOR` times as high. Names the rows.
    """
    loss, norm = figures["train/loss_nats"], figures["train/grad_norm"]
    where = (
        f"step {step}: loss {loss:.6g}, gradient norm {norm:.6g}; the training rows in it, "
        f"counted from 0, are {', '.join(map(str, rows))}"
    )
    slower = f"lower train.learning_rate (now {train.learning_rate:g})"
    if not all(map(math.isfinite, figures.values())):
        raise TrainError(f"{where}. {slower.capitalize()}, or set train.precision: fp32")
    if train.max_loss_jump is None or len(losses) < LEAST:
        return
    median = statistics.median(losses)
    if loss > median + train.max_loss_jump and loss > FACTOR * median:
        raise TrainError(
            f"{where}. The median of the last {len(losses)} steps is {median:.3g}: either these "
            f"rows are unlike all others, or training runs away. Look at them, {slower}, or set "
            f"train.max_loss_jump: null to go on"
        )
