"""One process of benchmarks/kd_step.py: prints a line of JSON.

kd_step_side.py prepare FOLDER ...                       student, rows and targets, once
kd_step_side.py sft|cached|online|trl FOLDER --rows NAME ...   some steps of one way

sft      learning from text
cached   text and the teacher's 64 largest probabilities, half and half, from a store
online   the teacher's probabilities alone; it computes its hidden states in the step
trl      the same as `online`, by TRL's experimental GKD trainer, off-policy
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from potstill.config import LossConfig, TrainConfig
from potstill.data.load import load_dataset
from potstill.data.render import Rendered, render, template_fingerprint, vocab_fingerprint
from potstill.models.local import LocalModel
from potstill.models.packed import attend_by_document
from potstill.models.weights import load_tokenizer, load_weights
from potstill.targets.store import TargetStore
from potstill.tasks import get_task
from potstill.teach.score import score
from potstill.train.beside import load_teacher
from potstill.train.head import head_of
from potstill.train.loop import Training
from potstill.train.memory import Memory, resident_bytes
from potstill.train.objective import TeacherTargets, states_at_labels
from potstill.train.optimizers import BETAS
from potstill.train.plan import StepPlan, num_loss_tokens
from potstill.train.prune import choose_layers, cut_layers, save_untouched
from potstill.train.student import prepare_student
from potstill.train.targets import TeacherHidden

LOSSES = {
    "sft": LossConfig(),
    "cached": LossConfig(kind="forward_kl"),
    "online": LossConfig(kind="forward_kl", sft_weight=0.0),
}


class Steps(NamedTuple):
    """What was seen of some steps."""

    clock: list[float]
    """When each ended, seconds."""

    losses: list[float]
    """Nats a loss position."""

    loaded: int
    """Bytes resident before the first step."""

    peak: int
    """Most bytes resident in the steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["prepare", *LOSSES, "trl"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, help="file of conversations")
    parser.add_argument("--rows", choices=["equal", "real"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--length", type=int, default=256, help="tokens of an equal row")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "autocast"], default="autocast")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side == "prepare":
        prepare(options)
        return
    rows = read(options.folder / f"{options.rows}.json")
    num_steps = options.warmup + options.steps
    plan = StepPlan(tuple(len(row.ids) for row in rows), settings(options))
    taken = [[rows[place] for place in plan.rows(step)] for step in range(num_steps)]
    run = theirs if options.side == "trl" else ours
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = run(options, rows, taken)
    after = resource.getrusage(resource.RUSAGE_SELF)
    # A step lasts until the end of the next: what lies between two belongs to a trainer too.
    seconds = [end - start for start, end in zip(found.clock, found.clock[1:], strict=False)]
    timed = slice(options.warmup, None)
    figures = {
        "seconds": seconds[options.warmup - 1 :],
        "tokens": [sum(len(row.ids) for row in step) for step in taken][timed],
        "loss_positions": [sum(map(num_loss_tokens, step)) for step in taken][timed],
        "padded": [len(step) * max(len(row.ids) for row in step) for step in taken][timed],
        "system_seconds": after.ru_stime - before.ru_stime,
        "user_seconds": after.ru_utime - before.ru_utime,
        **found._asdict(),
    }
    print(json.dumps(figures))


def settings(options: argparse.Namespace) -> TrainConfig:
    """Steps of both trainers: constant rate, clipped at 1, no accumulation."""
    return TrainConfig(
        batch_size=options.batch_size,
        max_steps=options.warmup + options.steps,
        order="random",
        schedule="constant",
        warmup=0.0,
        precision=options.precision,
    )


def prepare(options: argparse.Namespace) -> None:
    """Cuts the student, renders the rows and scores them."""
    model, tokenizer = load_weights(options.teacher)
    keep = choose_layers(model, tokenizer, [], options.layers, by="even")[0]
    save_untouched(cut_layers(model, keep), tokenizer, options.folder / "student")
    num_rows = options.batch_size * (options.warmup + options.steps)
    rows = {"real": conversations(tokenizer, options.data, num_rows)}
    rows["equal"] = cut_even(tokenizer, options.data, num_rows, options.length)
    for name, some in rows.items():
        (options.folder / f"{name}.json").write_text(json.dumps(some), encoding="utf-8")
    score(
        LocalModel(options.teacher, dtype="bfloat16"),
        [row for some in rows.values() for row in some],
        options.folder / "targets",
        k=LOSSES["cached"].targets.k,
        temperature=1.0,
        student_vocab_fingerprint=vocab_fingerprint(tokenizer),
    )


def conversations(tokenizer: Any, file: Path, num_rows: int) -> list[Rendered]:
    """The last answer of some conversations, behind everything said before."""
    task = get_task("conversation")
    records = load_dataset(file, task="conversation")
    random.Random(0).shuffle(records)
    rows = []
    for record in records:
        turn = list(task.turns(record))[-1]
        row = render(tokenizer, turn.messages, turn.reference, max_tokens=2048)
        if row is not None:
            rows.append(row)
        if len(rows) == num_rows:
            break
    return rows


def cut_even(tokenizer: Any, file: Path, num_rows: int, length: int) -> list[Rendered]:
    """Rows of one length, every token of which but the first is to be learned."""
    ids: list[int] = []
    for row in conversations(tokenizer, file, 2 * num_rows):
        ids += row.ids
    assert len(ids) >= num_rows * length, "the file has too few conversations"
    mask = [0] + [1] * (length - 1)
    return [Rendered(ids[i * length : (i + 1) * length], mask) for i in range(num_rows)]


def read(file: Path) -> list[Rendered]:
    return [Rendered(*row) for row in json.loads(file.read_text(encoding="utf-8"))]


class Online(Training):
    """A training whose teacher computes in the step what a store would have kept."""

    def learn_from(self, teacher: Any) -> Online:
        self.teacher, self.teacher_head = teacher, head_of(teacher)
        if self.parts.packed:
            attend_by_document(teacher)
        return self

    @torch.no_grad()
    def _targets(self, rows: list[Rendered]) -> TeacherTargets:
        batch = self.parts.tensors(rows)
        positions_BT = batch.position_BT if self.parts.packed else None
        hidden_NH, _ = states_at_labels(
            self.teacher, batch.ids_BT, batch.loss_mask_BT, None, positions_BT
        )
        target = TeacherHidden(hidden_NH, self.teacher_head)
        return TeacherTargets(target, len(self.teacher_head.weight_VH))


def ours(options: argparse.Namespace, rows: list[Rendered], _: list[list[Rendered]]) -> Steps:
    """Steps of this project's loop; it draws the rows of a step itself."""
    model, tokenizer = load_weights(options.folder / "student")
    train, loss, targets = settings(options), LOSSES[options.side], None
    if options.side == "cached":
        targets = TargetStore(
            options.folder / "targets",
            vocab_fingerprint=vocab_fingerprint(tokenizer),
            template_fingerprint=template_fingerprint(tokenizer),
            temperature=1.0,
        )
    student = prepare_student(model, train, torch.device("cpu"))
    parts = student, tokenizer, rows, [], loss, train, targets
    if options.side == "online":
        teacher = load_teacher(options.teacher, options.precision)
        training: Training = Online(*parts).learn_from(teacher.requires_grad_(False))
    else:
        training = Training(*parts)
    memory, loaded = Memory(), resident_bytes()
    memory.peak()
    clock, losses = [], []
    for _ in range(train.max_steps):
        losses.append(training.step()["train/loss_nats"])
        clock.append(time.perf_counter())
    return Steps(clock, losses, loaded, memory.peak())


def theirs(options: argparse.Namespace, _: list[Rendered], taken: list[list[Rendered]]) -> Steps:
    """Steps of TRL's trainer with its own collator, on the same tokens in the same order."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

    train = settings(options)
    model, _ = load_weights(options.folder / "student")
    teacher = load_teacher(options.teacher, options.precision)
    dataset = Dataset.from_list(
        [
            {"prompt": "", "input_ids": row.ids, "completion_mask": row.loss_mask}
            for step in taken
            for row in step
        ]
    )
    with tempfile.TemporaryDirectory() as place:
        config = GKDConfig(
            output_dir=place,
            use_cpu=True,
            bf16=options.precision == "autocast",
            per_device_train_batch_size=train.batch_size,
            max_steps=train.max_steps,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            learning_rate=train.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=train.weight_decay,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=train.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GKDTrainer(
            model=model.train(),
            teacher_model=teacher,
            args=config,
            train_dataset=dataset,
            processing_class=load_tokenizer(options.folder / "student"),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        memory, loaded = Memory(), resident_bytes()
        memory.peak()
        trainer.train()
        peak = memory.peak()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Steps(clock, losses, loaded, peak)


if __name__ == "__main__":
    main()
