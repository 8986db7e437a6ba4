"""The training loop: one student, rows that carry loss, and the teacher's probabilities.

The loss of a step is the sum over all loss positions of its rows, divided once by their
number in the whole step. Gradients therefore do not depend on how the step is cut into
micro-batches, on padding or packing, on the order of rows, or on how many processes share it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered
from potstill.errors import TrainError
from potstill.models.packed import attend_as_before
from potstill.rundir import adapter_of, content_hash
from potstill.targets.store import TargetStore, content_key
from potstill.train.average import Average
from potstill.train.beside import Matching, build_matching, with_matching
from potstill.train.checkpoint import (
    TrainState,
    check_room,
    checkpoint_bytes,
    copy_weights,
    latest_checkpoint,
    load_checkpoint,
    put_weights,
    save_checkpoint,
)
from potstill.train.guard import check_step, overfitting, remember
from potstill.train.journal import Journal
from potstill.train.memory import peak_memory_bytes
from potstill.train.objective import (
    Objective,
    check_head,
    mean_figures,
)
from potstill.train.optimizers import build_optimizer
from potstill.train.packing import choose_parts
from potstill.train.passes import Passes
from potstill.train.plan import StepPlan, check_inputs, num_loss_tokens
from potstill.train.ranks import ALONE, Ranks
from potstill.train.result import Figures, OnProgress, TrainPaths, TrainResult
from potstill.train.shard import clip_gradients, let_go, make_whole, share_out
from potstill.train.student import (
    Student,
    decoder_layers,
    merged,
    prepare_student,
    save_adapter,
    save_model,
    signature,
)
from potstill.train.trackers import open_tracker

log = logging.getLogger(__name__)


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
    teacher: nn.Module | None = None,
    on_progress: OnProgress | None = None,
    checkpoint_seconds: float = 60.0,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains a student and writes it to `out.model`; called again, it goes on from the last step.

    The model is trained in place and ends with the best weights (lowest validation loss;
    the last ones without validation rows). Checkpoints stay until the caller has noted that
    training is done, and calls `remove_checkpoints`.

    Args:
        targets: The teacher's probabilities for every training row; None for `sft`. Where
            all validation rows have targets too, that loss chooses the best step, else the
            loss on their text.
        teacher: For `loss.hidden` and `loss.attention`: the model whose layers are learnt from.
        checkpoint_seconds: Least time between two checkpoints; stretched so that writing
            them takes at most a twentieth of the time.
        ranks: This process among those that train together (`train.together` starts them).
            The first one writes the files.

    Raises:
        DataError: If rows are empty, too long or without targets, or a checkpoint in `out`
            belongs to another training.
        TrainError: If a loss is not finite, or the student's family is not supported.
    """
    targets = check_inputs(student_model, train_rows, validation_rows, loss, train, targets)
    if ranks.size == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError(
            "a launcher started this process as one of several; start it without one and set "
            "train.processes"
        )
    if train.processes != ranks.size:
        raise TrainError(
            f"train.processes: {train.processes}, and this is one of {ranks.size}; "
            f"fine_tune_together starts them"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(train.seed)
        # A student that is shared out need not fit on one device before it is.
        first_device = torch.device("cpu") if train.shard else ranks.device
        student = prepare_student(student_model, train, first_device)
        check_head(student.model, list(train_rows[0].ids))
        matching = build_matching(student.model, teacher, loss, train_rows)
        rows = train_rows, validation_rows
        training = Training(student, tokenizer, *rows, loss, train, targets, ranks, matching)
        resumed_from = training.resume(out)
        if ranks.is_first:
            training.check_room(out)
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
        ranks: Ranks = ALONE,
        matching: Matching | None = None,
    ):
        self.ranks = ranks
        self.student, self.tokenizer, self.train = student, tokenizer, train
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.objective = with_matching(Objective(student.model, loss), matching)
        takes_packed = getattr(self.objective, "takes_packed", False)
        lengths = tuple(len(row.ids) for row in train_rows)
        self.parts = choose_parts(
            student.model,
            train_rows,
            train,
            pad_id=self._pad_id,
            takes_packed=takes_packed,
            padding=StepPlan(lengths, train).padding,
            device=ranks.device.type,
        )
        self.plan = StepPlan(lengths, train, self.parts, ranks)
        self.best: dict[str, Tensor] | None = None
        keys = [content_key(r.ids, r.loss_mask) for r in (*train_rows, *validation_rows)]
        # All or none: a mean over two kinds of loss would depend on who is in which batch.
        watched, names = keys[len(train_rows) :], [key.hex() for key in keys]
        watches = targets is not None and all(key in targets for key in watched)
        settings = None if targets is None else targets.manifest
        models = [student.model] + ([matching.teacher] if matching else [])
        weights = map(signature, models)
        fingerprint = content_hash(train.learned, loss, names, settings, *weights)
        self.state = TrainState(fingerprint=fingerprint)
        if train.shard:
            share_out(self.objective, decoder_layers(student.model), ranks)
            self.student = replace(student, device=ranks.device)
            for beside in models[1:]:
                beside.to(ranks.device)
        self.passes = Passes(self.objective, self.student, self.parts, targets, watches)
        self.parameters = student.trainable() | (matching.trainable() if matching else {})
        self.optimizer = build_optimizer(self.parameters, train)
        self.average = None if train.ema is None else Average(self.parameters, train.ema)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has stood still for `patience` looks."""
        return self.train.early_stopping and self.state.looks_without_best >= self.train.patience

    def resume(self, out: TrainPaths) -> int:
        """Loads the last checkpoint, if there is one; returns its step.

        Raises:
            TrainError: If the processes do not start from the same place.
        """
        checkpoint = latest_checkpoint(out.checkpoints)
        if checkpoint is not None:
            self.state, self.best = load_checkpoint(
                checkpoint,
                self.state.fingerprint,
                self.parameters,
                self.optimizer,
                self._averaged,
            )
            log.info("train: going on after step %d", self.state.step)
        if len(set(self.ranks.gather((self.state.step, self.state.fingerprint)))) > 1:
            raise TrainError("the processes read different weights, rows or checkpoints")
        return self.state.step

    def check_room(self, out: TrainPaths) -> None:
        """Raises DataError where the disk has no room for what training will write."""
        has_best = bool(self.validation_rows)
        one = checkpoint_bytes(self.parameters, self.train, has_best=has_best)
        model = self.student.num_weights * self.student.stored.itemsize
        check_room(out.checkpoints, one, model)

    def run(
        self, out: TrainPaths, on_progress: OnProgress | None, checkpoint_seconds: float
    ) -> None:
        """Steps, looks and checkpoints until the plan is done or nothing gets better."""
        saved_at, wait = time.monotonic(), checkpoint_seconds
        with self._journal(out) as journal:
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
                journal.write(figures)
                if on_progress is not None:
                    on_progress(done, self.plan.num_steps, figures)
                is_time = time.monotonic() - saved_at >= wait and done < self.plan.num_steps
                if self._is_due(is_time):
                    began = time.monotonic()
                    save_checkpoint(
                        out.checkpoints,
                        self.state,
                        self.parameters,
                        self.optimizer,
                        self.best,
                        self._averaged,
                        write=self.ranks.is_first,
                    )
                    saved_at = time.monotonic()
                    if checkpoint_seconds > 0:
                        wait = max(checkpoint_seconds, 20 * (saved_at - began))

    def step(self) -> Figures:
        """One optimizer step; returns its figures.

        Raises:
            TrainError: If the loss or the gradient is not finite, or the loss jumps. The
                weights are those of the step before.
        """
        started, step = time.monotonic(), self.state.step
        rows = self.plan.rows(step)
        num_loss = sum(num_loss_tokens(self.train_rows[row]) for row in rows)
        learning_rate = self.plan.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.student.model.train()
        torch.manual_seed(self.ranks.seed(self.train.seed, step))
        sums, batches = [], self.plan.micro_batches(step)
        num_idle = self._num_idle(len(batches))
        for batch in batches:
            part = self.passes([self.train_rows[row] for row in batch])
            (part.loss / num_loss).backward()
            sums.append(part._replace(loss=part.loss.detach()))
        for part in self.passes.without_loss(self.train_rows, num_idle):
            part.loss.backward()
        if not self.train.shard:
            self.ranks.add_gradients(self.parameters.values())
        norm = clip_gradients(self.parameters.values(), self.train.max_grad_norm)
        means = self.ranks.total(mean_figures(sums, num_loss))
        figures = {f"train/{k}": v for k, v in means.items()}
        figures["train/grad_norm"] = norm
        losses = self.state.losses
        check_step(figures, losses, rows, step=step + 1, train=self.train)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        num_tokens = sum(len(self.train_rows[row].ids) for row in rows)
        self._count(step=1, num_tokens=num_tokens)
        kept = remember(losses, figures["train/loss_nats"])
        self.state = self.state.model_copy(update={"losses": kept})
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
        rows, parts = self.validation_rows, self.parts
        if parts.max_tokens is None:
            parts = replace(parts, max_rows=parts.max_rows or self.train.batch_size)
        lengths = [len(row.ids) for row in rows]
        mine = self.ranks.share(range(len(rows)), lengths)
        with self.average.in_place() if self.average else contextlib.nullcontext():
            batches = parts.cut(mine, lengths)
            num_idle = self._num_idle(len(batches))
            sums = [self.passes([rows[place] for place in batch]) for batch in batches]
            list(self.passes.without_loss(rows, num_idle))
            let_go(self.objective)
        means = self.ranks.total(mean_figures(sums, sum(map(num_loss_tokens, rows))))
        found = means["loss_nats"]
        if not math.isfinite(found):
            raise TrainError(
                f"step {self.state.step}: the validation loss is {found}; lower "
                f"train.learning_rate (now {self.train.learning_rate:g})"
            )
        if self.state.best_loss is None or found < self.state.best_loss:
            self.best = self._averaged_copy()
            news = {"best_loss": found, "best_step": self.state.step, "looks_without_best": 0}
        else:
            news = {"looks_without_best": self.state.looks_without_best + 1}
        self.state = self.state.model_copy(update={**news, "last_loss": found})
        return {f"validation/{key}": value for key, value in means.items()}

    def finish(self, out: TrainPaths, resumed_from: int) -> TrainResult:
        """Saves the best weights as a plain model; the first process does."""
        state = self.state
        peak = sum(self.ranks.gather(peak_memory_bytes()))
        if self.best is not None or self.average is not None:
            put_weights(self.parameters, self.best or self._averaged_copy())
        num_trainable = sum(p.numel() for p in self.student.trainable().values())
        attend_as_before(self.student.model)
        make_whole(self.student.model, keep=self.ranks.is_first)
        if warning := overfitting(state):
            log.warning("train: %s", warning)
        model = self.student.model
        if self.ranks.is_first:
            save_adapter(self.student, adapter_of(out.model))
            model = merged(self.student).eval()
            save_model(model, self.tokenizer, out.model)
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
            packed=self.parts.packed,
            peak_memory_bytes=peak,
            warning=warning,
            resumed_from=resumed_from,
        )

    def _num_idle(self, num_batches: int) -> int:
        """Passes in which this process only helps others to gather their weights."""
        return max(self.ranks.gather(num_batches)) - num_batches if self.train.shard else 0

    def _is_due(self, is_time: bool) -> bool:
        """Whether this process takes part in writing a checkpoint now: the first one says when."""
        if not self.train.shard:
            return is_time and self.ranks.is_first
        return self.ranks.gather(is_time)[0]

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _journal(self, out: TrainPaths) -> Journal:
        """Where figures go; only the first process has any."""
        if not self.ranks.is_first:
            return Journal(None, self.state.step)
        tell = out.metrics.parent.name, self.state.fingerprint, self.train.learned
        trackers = [open_tracker(kind, *tell) for kind in self.train.track]
        return Journal(out.metrics, self.state.step, trackers)

    @property
    def _averaged(self) -> dict[str, Tensor] | None:
        return None if self.average is None else self.average.values

    def _averaged_copy(self) -> dict[str, Tensor]:
        """The weights as they are judged and saved: averaged with `train.ema`."""
        if self.average is None:
            return copy_weights(self.parameters)
        return {
            name: self.average.values[name].to("cpu", p.dtype, copy=True)
            for name, p in self.parameters.items()
        }

    def _count(self, **more: float) -> None:
        added = {name: getattr(self.state, name) + value for name, value in more.items()}
        self.state = self.state.model_copy(update=added)
