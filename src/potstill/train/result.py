"""What a training is told where to write, what it tells, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from potstill.types import Noun

Figures = dict[str, float]
OnProgress = Callable[[int, int, Figures], None]
"""Called after each step with steps done, steps planned, and the line for metrics.jsonl."""


class TrainPaths(Protocol):
    """Where training writes; a `RunDir` or one of its variants."""

    checkpoints: Path
    metrics: Path
    model: Path


class TrainResult(Noun):
    """What came of a training."""

    steps: int
    num_steps: int
    """Planned; more than `steps` when training stopped early."""

    best_step: int
    """The step whose weights were kept; the last one without validation rows."""

    best_validation_loss_nats: float | None
    seconds: float
    """Of all steps and looks, also those before an interruption."""

    tokens_per_second: float
    stopped_early: bool
    num_parameters: int
    num_trainable: int
    precision: str
    packed: bool
    """Whether rows were computed one behind the other, without padding."""

    peak_memory_bytes: int
    """Of all processes together."""

    warning: str = ""
    """What to know of how it went; empty where there is nothing."""

    resumed_from: int = 0
    """Step of the checkpoint that was continued; 0 is a fresh start."""
