"""The training loop: one student, rows that carry loss, and the teacher's probabilities.

The loss of a step is the sum over all loss positions of its rows, divided once by their
number in the whole step. Gradients therefore do not depend on how the step is cut into
micro-batches, on padding, or on the order of rows.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from potstill.config import LossConfig, TrainConfig
from potstill.data.batch import collate
from potstill.data.render import Rendered
from potstill.errors import DataError, TrainError
from potstill.rundir import content_hash, write_text
from potstill.targets.store import TargetStore, content_key
from potstill.train.checkpoint import (
    TrainState,
    copy_weights,
    latest_checkpoint,
    load_checkpoint,
    put_weights,
    save_checkpoint,
)
from potstill.train.objective import LossSums, Objective, TeacherTargets, check_head
from potstill.train.plan import StepPlan, check_rows, num_loss_tokens
from potstill.train.student import Student, merged, prepare_student, save_model
from potstill.train.targets import Sampled, TopK
from potstill.types import Noun

BETAS = (0.9, 0.95)
"""AdamW's memory. 0.95 and not 0.999: runs are hundreds of steps, and in bf16 an average over
a thousand steps would stand still, because its changes are smaller than its last bit."""

log = logging.getLogger(__name__)
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
    peak_memory_bytes: int
    resumed_from: int = 0
    """Step of the checkpoint that was continued; 0 is a fresh start."""


def fine_tune_student(
    student_model: nn.Module,
    tokenizer: Any,
    train_rows: Sequence[Rendered],
    validation_rows: Sequence[Rendered],
    *,
    loss: LossConfig,
    train: TrainConfig,
    targets: TargetStore | None,
    out: TrainPaths,
    on_progress: OnProgress | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainResult:
    """Trains a student and writes it to `out.model`; called again, it goes on from the last step.

    The model is trained in place and ends with the best weights (lowest validation loss;
    the last ones without validation rows). Checkpoints are removed when the model is saved.

    Args:
        targets: The teacher's probabilities for every training row; None for `sft`. Where
            all validation rows have targets too, that loss chooses the best step, else the
            loss on their text.
        checkpoint_seconds: Least time between two checkpoints; stretched so that writing
            them takes at most a twentieth of the time.

    Raises:
        DataError: If rows are empty, too long or without targets, or a checkpoint in `out`
            belongs to another training.
        TrainError: If a loss is not finite, or the student's family is not supported.
    """
    targets = _check(student_model, train_rows, validation_rows, loss, train, targets)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise TrainError("training runs on one device; start it without a launcher")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(train.seed)
        student = prepare_student(student_model, train, accelerator.device)
        check_head(student.model, list(train_rows[0].ids))
        training = Training(student, tokenizer, train_rows, validation_rows, loss, train, targets)
        resumed_from = training.resume(out)
        training.run(out, on_progress, checkpoint_seconds)
    return training.finish(out, resumed_from)


class Training:
    """One training under way: weights, optimizer, and how far it has come."""

    def __init__(
        self,
        student: Student,
        tokenizer: Any,
        train_rows: Sequence[Rendered],
        validation_rows: Sequence[Rendered],
        loss: LossConfig,
        train: TrainConfig,
        targets: TargetStore | None,
    ):
        self.student, self.tokenizer, self.train, self.targets = student, tokenizer, train, targets
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.objective = Objective(student.model, loss)
        self.parameters = student.trainable()
        self.optimizer = _optimizer(self.parameters, train)
        self.plan = StepPlan(tuple(len(row.ids) for row in train_rows), train)
        self.best: dict[str, Tensor] | None = None
        keys = [content_key(r.ids, r.loss_mask) for r in (*train_rows, *validation_rows)]
        # All or none: a mean over two kinds of loss would depend on who is in which batch.
        watched, names = keys[len(train_rows) :], [key.hex() for key in keys]
        self._watches_targets = targets is not None and all(key in targets for key in watched)
        settings = None if targets is None else targets.manifest
        fingerprint = content_hash(train, loss, names, settings, _signature(student.model))
        self.state = TrainState(fingerprint=fingerprint)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has stood still for `patience` looks."""
        return self.train.early_stopping and self.state.looks_without_best >= self.train.patience

    def resume(self, out: TrainPaths) -> int:
        """Loads the last checkpoint, if there is one; returns its step."""
        checkpoint = latest_checkpoint(out.checkpoints)
        if checkpoint is not None:
            self.state, self.best = load_checkpoint(
                checkpoint, self.state.fingerprint, self.parameters, self.optimizer
            )
            log.info("train: going on after step %d", self.state.step)
        _keep_lines(out.metrics, self.state.step)
        return self.state.step

    def run(
        self, out: TrainPaths, on_progress: OnProgress | None, checkpoint_seconds: float
    ) -> None:
        """Steps, looks and checkpoints until the plan is done or nothing gets better."""
        saved_at, wait = time.monotonic(), checkpoint_seconds
        with out.metrics.open("a", encoding="utf-8") as file:
            while self.state.step < self.plan.num_steps and not self.stopped_early:
                started = time.monotonic()
                figures = self.step()
                done = self.state.step
                if self.validation_rows and (
                    done % self.plan.eval_steps == 0 or done == self.plan.num_steps
                ):
                    figures |= self.look()
                self._count(seconds=time.monotonic() - started)
                figures = {"step": done, "seconds": round(self.state.seconds, 3), **figures}
                file.write(json.dumps(figures) + "\n")
                file.flush()
                if on_progress is not None:
                    on_progress(done, self.plan.num_steps, figures)
                if time.monotonic() - saved_at >= wait and done < self.plan.num_steps:
                    began = time.monotonic()
                    save_checkpoint(
                        out.checkpoints, self.state, self.parameters, self.optimizer, self.best
                    )
                    saved_at = time.monotonic()
                    if checkpoint_seconds > 0:
                        wait = max(checkpoint_seconds, 20 * (saved_at - began))

    def step(self) -> Figures:
        """One optimizer step; returns its figures.

        Raises:
            TrainError: If the loss or the gradient is not finite. The weights are those
                of the step before.
        """
        started, step = time.monotonic(), self.state.step
        micro_batches = self.plan.micro_batches(step)
        rows = [row for batch in micro_batches for row in batch]
        num_loss = sum(num_loss_tokens(self.train_rows[row]) for row in rows)
        learning_rate = self.plan.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.student.model.train()
        sums = []
        for batch in micro_batches:
            part = self._forward([self.train_rows[row] for row in batch])
            (part.loss / num_loss).backward()
            sums.append(part._replace(loss=part.loss.detach()))
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.train.max_grad_norm)
        figures = {f"train/{k}": v for k, v in _means(sums, num_loss).items()}
        figures["train/grad_norm"] = norm.item()
        if not all(map(math.isfinite, figures.values())):
            raise TrainError(
                f"step {step + 1}: loss {figures['train/loss_nats']}, gradient norm "
                f"{figures['train/grad_norm']}; the training rows in it, counted from 0, are "
                f"{', '.join(map(str, rows))}. Lower train.learning_rate (now "
                f"{self.train.learning_rate:g}), or set train.precision: fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(len(self.train_rows[row].ids) for row in rows)
        self._count(step=1, num_tokens=num_tokens)
        figures |= {
            "train/learning_rate": learning_rate,
            "train/num_loss_tokens": num_loss,
            "speed/tokens_per_second": round(num_tokens / (time.monotonic() - started), 1),
            "speed/peak_memory_bytes": peak_memory_bytes(),
        }
        return figures

    @torch.no_grad()
    def look(self) -> Figures:
        """The loss on the validation rows; remembers the weights when it is the lowest."""
        self.student.model.eval()
        rows = sorted(self.validation_rows, key=lambda row: len(row.ids))
        size = self.train.micro_batch_size or self.train.batch_size
        sums = [self._forward(rows[i : i + size]) for i in range(0, len(rows), size)]
        means = _means(sums, sum(map(num_loss_tokens, rows)))
        found = means["loss_nats"]
        if not math.isfinite(found):
            raise TrainError(
                f"step {self.state.step}: the validation loss is {found}; lower "
                f"train.learning_rate (now {self.train.learning_rate:g})"
            )
        if self.state.best_loss is None or found < self.state.best_loss:
            self.best = copy_weights(self.parameters)
            news = {"best_loss": found, "best_step": self.state.step, "looks_without_best": 0}
        else:
            news = {"looks_without_best": self.state.looks_without_best + 1}
        self.state = self.state.model_copy(update=news)
        return {f"validation/{key}": value for key, value in means.items()}

    def finish(self, out: TrainPaths, resumed_from: int) -> TrainResult:
        """Saves the best weights as a plain model and removes the checkpoints."""
        state = self.state
        if self.best is not None:
            put_weights(self.parameters, self.best)
        num_trainable = sum(p.numel() for p in self.parameters.values())
        model = merged(self.student).eval()
        save_model(model, self.tokenizer, out.model)
        while (checkpoint := latest_checkpoint(out.checkpoints)) is not None:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
        return TrainResult(
            steps=state.step,
            num_steps=self.plan.num_steps,
            best_step=state.best_step if self.best is not None else state.step,
            best_validation_loss_nats=state.best_loss,
            seconds=state.seconds,
            tokens_per_second=state.num_tokens / max(state.seconds, 1e-9),
            stopped_early=state.step < self.plan.num_steps,
            num_parameters=sum(p.numel() for p in model.parameters()),
            num_trainable=num_trainable,
            precision=self.student.precision,
            peak_memory_bytes=peak_memory_bytes(),
            resumed_from=resumed_from,
        )

    def _forward(self, rows: Sequence[Rendered]) -> LossSums:
        batch = collate(rows, pad_id=self._pad_id)
        device = self.student.device
        right_padded = bool((batch.attention_BT[:, 1:] <= batch.attention_BT[:, :-1]).all())
        with self.student.computing():
            return self.objective(
                batch.ids_BT.to(device),
                batch.loss_mask_BT.to(device),
                None if right_padded else batch.attention_BT.to(device),
                self._targets(rows),
            )

    def _targets(self, rows: Sequence[Rendered]) -> TeacherTargets | None:
        if self.targets is None:
            return None
        if not self.student.model.training and not self._watches_targets:
            return None
        keys = [content_key(row.ids, row.loss_mask) for row in rows]
        settings, device = self.targets.settings, self.student.device
        arrays = (torch.from_numpy(array).to(device) for array in self.targets.batch(keys))
        target = Sampled(*arrays) if settings.kind == "sampled" else TopK(*arrays)
        return TeacherTargets(target, settings.vocab_size)

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _count(self, **more: float) -> None:
        added = {name: getattr(self.state, name) + value for name, value in more.items()}
        self.state = self.state.model_copy(update=added)


def peak_memory_bytes() -> int:
    """Most memory this process has held: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _check(
    model: Any,
    train_rows: Sequence[Rendered],
    validation_rows: Sequence[Rendered],
    loss: LossConfig,
    train: TrainConfig,
    targets: TargetStore | None,
) -> TargetStore | None:
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


def _optimizer(parameters: dict[str, nn.Parameter], train: TrainConfig) -> torch.optim.AdamW:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS, fused=fused)


def _means(sums: Sequence[LossSums], num_loss: int) -> dict[str, float]:
    means = {
        "loss_nats": sum(part.loss.item() for part in sums) / num_loss,
        "sft_nats": sum(part.sft.item() for part in sums) / num_loss,
    }
    if all(part.divergence is not None for part in sums):
        means[f"{sums[0].name}_nats"] = sum(part.divergence.item() for part in sums) / num_loss
    return means


def _signature(model: nn.Module) -> list[Any]:
    """Names, shapes and a few values of the weights: tells students apart without reading all."""
    return [
        (name, tuple(p.shape), str(p.dtype), p.detach().flatten()[:8].tolist())
        for name, p in model.named_parameters()
    ]


def _keep_lines(path: Path, step: int) -> None:
    """Drops the figures of steps that will be done again."""
    kept = []
    if path.exists() and step > 0:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    write_text(path, "".join(kept))
