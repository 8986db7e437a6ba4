"""Stage train: the student, and the students it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered
from potstill.models.catalog import find_model
from potstill.models.weights import cached_folder, load_weights
from potstill.pipeline.context import Context, weights_key
from potstill.pipeline.data import gold_records
from potstill.pipeline.preflight import place_key, teacher_ref
from potstill.pipeline.teach import accepted_rows, lessons_key, render_rows
from potstill.rundir import RunDir
from potstill.targets.store import TargetStore, content_key
from potstill.train.checkpoint import remove_checkpoints
from potstill.types import Record

MAX_PASSES = 6
"""Passes that a student makes over known answers, where `train.max_steps` would be more."""


def student_folder(ctx: Context) -> Path:
    """Folder of the student before training."""
    if ctx.config.student.prune:
        return ctx.run.untouched
    return cached_folder(find_model(ctx.config.student.place, workspace=ctx.workspace))


def teacher_folder(ctx: Context) -> Path:
    """Folder of the teacher, where it runs beside the student."""
    return cached_folder(teacher_ref(ctx))


def train(ctx: Context) -> None:
    """Trains the configured student, then the variants it will be compared with."""
    config, run = ctx.config, ctx.run
    answers = (run.accepted, run.accepted_validation, *lessons_key(ctx))
    targets = run.mark("score") if config.loss.kind != "sft" else None
    _train_one(ctx, "train", run, config.loss, (*answers, *([targets] if targets else [])))
    text_only = LossConfig(kind="sft")
    for name in config.evaluate.baselines:
        if name == "text" and config.loss.kind != "sft":
            _train_one(ctx, "train-text", run.variant("text"), text_only, answers)
        elif name in ("gold_few", "gold_all"):
            limit = config.evaluate.num_few if name == "gold_few" else None
            gold = gold_records(ctx)[:limit]
            _train_one(ctx, f"train-{name}", run.variant(name), text_only, answers, gold=gold)


def _train_one(
    ctx: Context,
    stage: str,
    out: RunDir,
    loss: LossConfig,
    inputs: tuple[Any, ...],
    gold: list[Record] | None = None,
) -> None:
    """Trains one student, on the teacher's accepted answers or on known ones."""
    start, train = student_folder(ctx), ctx.config.train
    key = (train.learned, loss, weights_key(start), *inputs, gold and [r.id for r in gold])
    if loss.needs_teacher:
        key = (*key, weights_key(place_key(ctx, ctx.config.teachers)))

    def work() -> dict[str, Any]:
        from potstill.train.beside import load_teacher
        from potstill.train.loop import fine_tune_student
        from potstill.train.together import fine_tune_together, open_targets

        model, tokenizer = load_weights(start)
        rows = _rows(ctx, tokenizer, "train") if gold is None else render_rows(ctx, tokenizer, gold)
        watched = _rows(ctx, tokenizer, "validation")
        targets = open_targets(ctx.run.targets, tokenizer, loss)
        if targets is not None:
            rows, watched = with_targets(rows, targets), with_targets(watched, targets) or watched
        seen = _Losses(ctx, stage)
        beside = teacher_folder(ctx) if loss.needs_teacher else None
        settings: dict[str, Any] = {
            "loss": loss,
            "train": train if gold is None else _few_passes(train, len(rows)),
            "out": out,
            "on_progress": seen,
        }
        if train.processes > 1:
            del model  # every process reads its own
            settings["teacher"] = beside
            result = fine_tune_together(start, rows, watched, targets=ctx.run.targets, **settings)
        else:
            settings["teacher"] = load_teacher(beside, train.precision)
            result = fine_tune_student(model, tokenizer, rows, watched, targets=targets, **settings)
        text = f"{result.steps:,} steps, {seen.text}{result.tokens_per_second:,.0f} tokens/s"
        if result.stopped_early:
            text += f", best at step {result.best_step:,}"
        if result.warning:
            text += f"; {result.warning}"
        return {**result.model_dump(), "num_rows": len(rows), "text": text}

    ctx.stage(stage, key, work)
    remove_checkpoints(out.checkpoints)


def with_targets(rows: list[Rendered], targets: TargetStore) -> list[Rendered]:
    """The rows whose probabilities are known; what came without was told by the stage score."""
    return [row for row in rows if content_key(row.ids, row.loss_mask) in targets]


def _few_passes(train: TrainConfig, num_rows: int) -> TrainConfig:
    """At most so many passes over known answers: with few of them, more only fits them better."""
    most = math.ceil(MAX_PASSES * num_rows / train.batch_size)
    planned = train.max_steps or math.ceil(train.num_epochs * num_rows / train.batch_size)
    return train.model_copy(update={"max_steps": max(1, min(planned, most))})


class _Losses:
    """Passes the loop's progress on, and remembers the first and the last loss."""

    def __init__(self, ctx: Context, stage: str):
        self._report = ctx.progress(stage)
        self._first: float | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        loss = figures.get("train/loss_nats")
        if loss is not None:
            self._first = loss if self._first is None else self._first
            self._last = loss
        self._report(done, total, f"loss {self._last:.3f}")

    @property
    def text(self) -> str:
        """`loss 3.10 -> 0.12 nats, `; empty where nothing was left to do."""
        return "" if self._first is None else f"loss {self._first:.2f} -> {self._last:.2f} nats, "


def _rows(ctx: Context, tokenizer: Any, split: str) -> list[Rendered]:
    return accepted_rows(ctx, tokenizer, split)
