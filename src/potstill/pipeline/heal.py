"""Wins back what 4 bits cost: the student learns, under its file's own rounding, to be itself.

The teacher is the student before rounding: its probabilities on a run's training rows, at every
place of them. What comes of it is judged on validation rows, and kept only where it surely helps.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.config import LossConfig, TrainConfig
from potstill.data.load import load_dataset
from potstill.data.render import Rendered, render
from potstill.errors import ConfigError
from potstill.export.manifest import Healing
from potstill.pipeline.artefacts import Artefact, Healed, make_artefact, read_target
from potstill.pipeline.context import Context
from potstill.rundir import RunDir, content_hash, read_jsonl
from potstill.types import Estimate, Message, Record

HEALABLE = ("gguf:q4_0", "gguf:q4_1")
"""Artefacts whose rounding is known here bit for bit, and loses something."""

EIGHT_OR_MORE = ("q8_0", "int8", "f16", "bf16", "f32", "fp32", "float32", "adapter")

STEPS = 200
"""Most steps; fewer where `PASSES` over the rows are."""

PASSES = 3
NUM_ROWS = 1024
"""Rows that are used, drawn at random where there are more."""

RATE = 0.0025
"""Learning rate as a share of the mean distance of two values that 4 bits tell apart, so that it
fits weights of any size: two hundred steps can move a weight by a quarter of that distance.
Four times as much was too fast for SmolLM2-135M (docs/results/heal.md)."""

LOOKS = 10
MIN_ROWS = 32
MIN_RECORDS = 16
MAX_RECORDS = 256
"""Validation records that the verdict rests on."""

MAX_WATCHED = 64
K = 64

Report = Callable[..., None]
"""Called with (done, total, text)."""


class Lessons(NamedTuple):
    """What a student heals with."""

    rows: list[Rendered]
    judged: list[list[Rendered]]
    """Validation rows, by the record they belong to; nothing is learnt or chosen with them."""

    train: TrainConfig
    """How rows are computed; how long and how fast is healing's own."""


def refuse_unhealable(names: Sequence[str]) -> None:
    """Refuses formats that cannot be healed, or have nothing to heal.

    Raises:
        ConfigError: For the first of them.
    """
    for name in names:
        target = read_target(name)
        if target.name in HEALABLE:
            continue
        if target.quant is None or target.quant in EIGHT_OR_MORE:
            why = "loses next to nothing, so there is nothing to heal"
        else:
            why = "is rounded by a library in a way that training cannot repeat bit for bit"
        raise ConfigError(
            f"--heal: {target.name} {why}; --heal is for {' and '.join(HEALABLE)}, export others "
            f"without it"
        )


def lessons_of_run(ctx: Context) -> Lessons:
    """The accepted answers that the student learnt from, and those it was watched on.

    Raises:
        ConfigError: If they are too few.
    """
    from potstill.models.weights import load_tokenizer
    from potstill.pipeline.teach import accepted_rows

    tokenizer = load_tokenizer(ctx.run.model)
    rows = accepted_rows(ctx, tokenizer, "train")
    limit = ctx.config.train.max_tokens
    turns = (ctx.task.turns(r) for r in read_jsonl(ctx.run.accepted_validation, Record))
    judged = [_rendered(tokenizer, record, limit) for record in turns]
    what = f"{ctx.run.path} has"
    return _checked(Lessons(rows, judged, ctx.config.train), what, "distil with more records")


def lessons_of_file(file: Path, model_dir: Path) -> Lessons:
    """The rows of a file that have answers; a fifth of them is for the verdict.

    Raises:
        ConfigError: If they are too few.
    """
    from potstill.models.weights import load_tokenizer

    tokenizer, train = load_tokenizer(model_dir), TrainConfig()
    records = load_dataset(file)
    random.Random(0).shuffle(records)
    made = [_rendered(tokenizer, [record], train.max_tokens) for record in records]
    made = [rows for rows in made if rows]
    cut = min(MAX_RECORDS, len(made) // 5)
    rows = [row for rows in made[cut:] for row in rows]
    what = f"{file} has, of rows with answers,"
    return _checked(Lessons(rows, made[:cut], train), what, "give more")


def make_healed(
    model_dir: Path,
    out_dir: Path,
    name: str,
    prompts: Sequence[Sequence[Message]],
    lessons: Lessons,
    *,
    limits: Mapping[str, float] | None = None,
    report: Report | None = None,
) -> Artefact:
    """As `make_artefact`, of weights that were healed for this very number format.

    The weights stand beside the artefact's place, under a hidden name, until one came of them:
    what was interrupted goes on, and with another limit nothing is trained again.

    Raises:
        ConfigError: If the format cannot be healed.
        ExportError: As `make_artefact`; the comparison is with the model before healing.
    """
    refuse_unhealable([name])
    quant = str(read_target(name).quant)
    work = _work_folder(out_dir.absolute(), model_dir, quant, lessons)
    key = work.path.name
    if not work.is_done("heal", key):
        told = heal(model_dir, quant, lessons, work, report or _silent)
        work.mark_done("heal", key, healing=told.model_dump(mode="json"))
    told = Healing.model_validate(work.facts("heal")["healing"])
    healed = Healed(told, work.model if told.kept else None)
    made = make_artefact(model_dir, out_dir, name, prompts, limits=limits, healed=healed)
    shutil.rmtree(work.path)
    return made


def heal(model_dir: Path, quant: str, lessons: Lessons, work: RunDir, report: Report) -> Healing:
    """Trains, judges, and writes the healed weights to `work.model`.

    Raises:
        DataError: If rows cannot be learnt from.
    """
    from potstill.models.weights import load_weights
    from potstill.train.quantised import learn_as_stored, step_size, store_weights
    from potstill.train.ranks import ALONE
    from potstill.train.student import save_model
    from potstill.train.together import open_targets

    rows, watched = _drawn(lessons.rows)
    judged = lessons.judged[:MAX_RECORDS]
    model, tokenizer = load_weights(model_dir)
    loss = LossConfig.model_validate(
        {"kind": "forward_kl", "sft_weight": 0.0, "targets": {"k": min(K, len(tokenizer))}}
    )
    _score(
        model_dir, [*rows, *watched, *(row for one in judged for row in one)], loss, work, report
    )
    targets = open_targets(work.targets, tokenizer, loss)
    assert targets is not None, "forward_kl has targets"
    store_weights(model, quant)
    before = _distances(model.to(ALONE.device), judged, loss, targets)
    model, tokenizer = load_weights(model_dir)
    train = _training(lessons.train, len(rows), RATE * step_size(model, quant))
    state = learn_as_stored(
        model,
        tokenizer,
        rows,
        watched,
        quant=quant,
        loss=loss,
        train=train,
        targets=targets,
        out=work,
        on_progress=lambda done, total, figures: report(
            done, total, f"{figures['train/loss_nats']:.3f} nats from itself"
        ),
    )
    save_model(model.cpu().float(), tokenizer, work.model)
    store_weights(model, quant)
    after = _distances(model.to(ALONE.device), judged, loss, targets)
    figures = judge(before, after)
    return Healing(
        kept=bool(figures["gain"].low is not None and figures["gain"].low > 0),
        num_rows=len(rows),
        steps=state.step,
        best_step=state.best_step,
        seconds=round(state.seconds, 1),
        learning_rate=train.learning_rate,
        **figures,
    )


def judge(before: np.ndarray, after: np.ndarray) -> dict[str, Estimate]:
    """Both distances and the gain, with intervals over the records, paired.

    Args:
        before, after: [n, 2], one row a record: nats summed over its tokens, and how many.
    """
    from potstill.examine.resample import affordable, percentile_interval, resampled_sums

    columns = np.column_stack([before[:, 0], after[:, 0], after[:, 1]])
    num_resamples = affordable(len(columns))
    drawn = resampled_sums(columns, seed=0, num_resamples=num_resamples)

    def value(sums: np.ndarray) -> tuple[Any, Any, Any]:
        first, second = sums[..., 0] / sums[..., 2], sums[..., 1] / sums[..., 2]
        return first, second, first - second

    method = f"bootstrap-percentile, {num_resamples:,} resamples, seed 0"
    found = {}
    names = ("before", "after", "gain")
    for name, one, all_drawn in zip(names, value(columns.sum(0)), value(drawn), strict=True):
        low, high = percentile_interval(all_drawn)
        found[name] = Estimate(
            value=float(one),
            low=low,
            high=high,
            n=len(columns),
            unit="nats",
            method=method,
            higher_is_better=name == "gain",
        )
    return found


def _checked(lessons: Lessons, what: str, way_out: str) -> Lessons:
    judged = [rows for rows in lessons.judged if rows]
    if len(lessons.rows) < MIN_ROWS or len(judged) < MIN_RECORDS:
        raise ConfigError(
            f"--heal: {what} {len(lessons.rows):,} rows to learn from and {len(judged):,} "
            f"validation records, and healing needs {MIN_ROWS} and {MIN_RECORDS}; {way_out}, or "
            f"export without --heal"
        )
    return lessons._replace(judged=judged)


def _rendered(tokenizer: Any, turns: Sequence[Record], limit: int) -> list[Rendered]:
    """Rows of a record's answered turns, but for those that are too long."""
    made = (
        render(tokenizer, turn.messages, turn.reference, max_tokens=limit)
        for turn in turns
        if turn.reference
    )
    return [row for row in made if row is not None]


def _work_folder(out_dir: Path, model_dir: Path, quant: str, lessons: Lessons) -> RunDir:
    """Where healing works; what another model, other rows or settings left there is removed."""
    settings = [STEPS, PASSES, NUM_ROWS, RATE]
    key = content_hash(model_dir, quant, lessons.rows, lessons.judged, lessons.train, settings)
    stem = f".{out_dir.name}.healing-"
    mine = out_dir.with_name(stem + key[:12])
    for other in out_dir.parent.glob(f"{stem}*"):
        if other != mine:
            shutil.rmtree(other)
    return RunDir(mine)


def _drawn(rows: Sequence[Rendered]) -> tuple[list[Rendered], list[Rendered]]:
    """Rows to learn from and a tenth to choose the best step with, all places carrying loss.

    What is to stay equal is the model and not an answer, and prompts have places too.
    """
    chosen = random.Random(0).sample(list(rows), min(NUM_ROWS, len(rows)))
    whole = [Rendered(row.ids, [0, *[1] * (len(row.ids) - 1)]) for row in chosen]
    cut = min(MAX_WATCHED, len(whole) // 10)
    return whole[cut:], whole[:cut]


def _training(train: TrainConfig, num_rows: int, learning_rate: float) -> TrainConfig:
    """How fast and how long healing learns; how rows are computed is the run's own."""
    steps = min(STEPS, math.ceil(PASSES * num_rows / train.batch_size))
    news = {
        "adapter": None,
        "early_stopping": True,
        "ema": None,
        "eval_steps": max(1, steps // LOOKS),
        "freeze_layers": 0,
        "learning_rate": learning_rate,
        "max_steps": steps,
        "optimizer": "adamw",
        # Weights must hold more than the format they are rounded to.
        "precision": "autocast" if train.precision == "bf16" else train.precision,
        "processes": 1,
        "shard": False,
        "track": (),
        "weight_decay": 0.0,
    }
    return train.model_copy(update=news)


def _score(
    model_dir: Path, rows: list[Rendered], loss: LossConfig, work: RunDir, report: Report
) -> None:
    """Keeps the student's own probabilities, before any rounding."""
    from potstill.models.local import LocalModel
    from potstill.teach.score import score

    student = LocalModel(model_dir, dtype="float32")
    score(
        student,
        rows,
        work.targets,
        k=loss.targets.k,
        temperature=loss.temperature,
        student_vocab_fingerprint=student.vocab_fingerprint,
        on_progress=lambda done, total: report(done, total, "asking the student"),
    )


def _distances(
    model: Any, judged: Sequence[Sequence[Rendered]], loss: LossConfig, targets: Any
) -> np.ndarray:
    """KL(student || model) summed over the answers of each record, and their tokens: [n, 2]."""
    from potstill.train.quantised import distance

    return np.array([distance(model, rows, loss, targets) for rows in judged])


def _silent(*_: object) -> None:
    """Tells nobody."""
