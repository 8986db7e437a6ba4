"""What training will take, before it starts: memory, hours and energy from a short probe."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.config import TrainConfig
from potstill.errors import ConfigError, TrainError
from potstill.models.catalog import ModelRef, find_model
from potstill.pipeline.context import Context
from potstill.pipeline.preflight import teacher_ref
from potstill.rundir import JsonLines, RunDir, whole_file
from potstill.types import Noun, Record

if TYPE_CHECKING:
    from potstill.data.render import Rendered
    from potstill.train.probe import Probed

NUM_STEPS = 20
MOST_ROWS = 2000
"""Rows whose lengths are looked at; the others are taken to be like them."""

MARGIN = 0.15
"""How far the time of a whole training may lie from the probe's, on a machine that is as busy."""

CHECKPOINT_EVERY_SECONDS = 60.0
QLORA_BYTES = 1.0
"""Of a weight on average: half a byte, and more for word vectors and head, which stay exact."""

STORED_BYTES = {"fp32": 4, "autocast": 4, "bf16": 2}
"""Bytes of a weight."""


class TrainingForecast(Noun):
    """What training will take on this machine, as it is now."""

    fits: bool
    num_rows: int
    num_steps: int
    """At most: early stopping may end it sooner."""

    micro_batch_size: int | None = None
    """Records in the largest part of a step that is computed at once."""

    accumulation: int | None = None
    """Parts of a step; the step itself stays as long as it is."""

    peak_memory_bytes: int | None = None
    """Of the process that trains; of the GPU alone where there is one."""

    usable_memory_bytes: int | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_most: float | None = None
    joules_per_step: float | None = None
    energy_source: str = "not measured"
    num_parameters: int | None = None
    num_trainable: int | None = None
    precision: str = ""
    device: str = ""
    proposal: str = ""
    """What to change where it does not fit, or does with another micro-batch."""

    notes: tuple[str, ...] = ()


def estimate_training(
    ctx: Context, records: RunDir, *, answer_tokens: float | None
) -> TrainingForecast | str:
    """Trains for 20 steps in a process of its own; the student's folder stays as it is.

    Args:
        records: Where the split records are.
        answer_tokens: How long an answer is likely to be, for records without one.

    Returns:
        The forecast, or why there is none.

    Raises:
        TrainError: If the probe ended without a result.
    """
    try:
        student = find_model(ctx.config.student.place, workspace=ctx.workspace)
    except ConfigError as error:
        return f"training is not estimated: {error}"
    folder = folder_here(student)
    teacher: Path | None = None
    if ctx.config.loss.needs_teacher:
        teacher = folder_here(teacher_ref(ctx))
        if teacher is None:
            return "training is not estimated: the teacher's weights are not on this machine"
    if folder is None:
        return f"training is not estimated: the weights of {student.name} are not on this machine"
    notes: list[str] = []
    rows, num_rows = _rows(ctx, records, "train", folder, answer_tokens, notes)
    watched, num_watched = _rows(ctx, records, "validation", folder, answer_tokens, [])
    if not rows:
        return "training is not estimated: no row is as short as train.max_tokens"
    num_steps = _num_steps(ctx.config.train, num_rows)
    found = _too_large_to_try(ctx, folder) or run_probe(
        ctx, folder, teacher, rows, watched[:200], num_planned=num_steps
    )
    if found.error:
        raise TrainError(f"the probe of 20 steps failed: {found.error}")
    return _forecast(ctx, found, num_rows, (watched, num_watched), notes)


def folder_here(ref: ModelRef) -> Path | None:
    """The model's folder, where its weights are on this machine; nothing is fetched."""
    from potstill.models.weights import cached_folder

    if ref.kind == "gguf" or (ref.kind == "huggingface" and Path(ref.source).is_dir()):
        return cached_folder(ref)
    return None


def num_weights(folder: Path) -> int:
    """How many weights a folder's safetensors hold, from their headers alone."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(found["shape"]) for found in header.values() if "shape" in found)
    return total


def trained_bytes(precision: str, train: TrainConfig) -> int:
    """Bytes that a trained weight takes: itself, its gradient, and what is kept beside it."""
    from potstill.train.optimizers import NUM_KEPT

    kept = STORED_BYTES[precision] * (2 + NUM_KEPT[train.optimizer])
    return kept if train.ema is None else kept + 4


def _too_large_to_try(ctx: Context, folder: Path) -> Probed | None:
    """What a training whose weights alone do not fit would take; None where they may."""
    from potstill.train.memory import has_gpu, usable_memory_bytes
    from potstill.train.probe import HEADROOM, Probed
    from potstill.train.student import number_format

    train, number = ctx.config.train, num_weights(folder)
    weights, arithmetic = number_format(train.precision)
    kind = "autocast" if arithmetic else "bf16" if weights.itemsize == 2 else "fp32"
    is_whole = train.adapter is None and ctx.config.student.prune is None
    is_whole = is_whole and not (train.freeze_layers or train.freeze_embeddings)
    is_rounded = train.adapter is not None and train.adapter.kind == "qlora" and has_gpu()
    frozen = QLORA_BYTES if is_rounded else STORED_BYTES["fp32"]
    needed = round(number * (trained_bytes(kind, train) if is_whole else frozen))
    usable = usable_memory_bytes()
    if needed <= HEADROOM * usable:
        return None
    return Probed(
        fits=False,
        peak_memory_bytes=needed,
        usable_memory_bytes=usable,
        num_parameters=number,
        num_trainable=number if is_whole else 0,
        precision=kind,
    )


def run_probe(
    ctx: Context,
    student: Path,
    teacher: Path | None,
    rows: Sequence[Rendered],
    validation: Sequence[Rendered],
    *,
    num_planned: int,
) -> Probed:
    """Runs `train.probe` in a process of its own, so that its peak memory is its own."""
    from potstill.train.probe import Probed, ProbeSpec

    config = ctx.config
    spec = ProbeSpec(
        student=str(student),
        prune=config.student.prune,
        teacher=None if teacher is None else str(teacher),
        loss=config.loss,
        train=config.train,
        rows=tuple((list(row.ids), list(row.loss_mask)) for row in rows),
        validation_rows=tuple((list(row.ids), list(row.loss_mask)) for row in validation),
        num_steps=NUM_STEPS,
        num_planned=num_planned,
    )
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        asked, answer = Path(folder, "spec"), Path(folder, "probed")
        with whole_file(asked) as file:
            json.dump(spec.model_dump(mode="json", by_alias=True), file)
        command = [sys.executable, "-m", "potstill.train.probe", str(asked), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return Probed.model_validate_json(answer.read_text(encoding="utf-8"))
    if done.returncode < 0:
        why = f"the system ended it with signal {-done.returncode}"
        why += ", as it does when memory runs out" if done.returncode == -9 else ""
    else:
        why = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return Probed(error=why)


def _rows(
    ctx: Context,
    records: RunDir,
    split: str,
    student: Path,
    answer_tokens: float | None,
    notes: list[str],
) -> tuple[list[Rendered], float]:
    """Rows like those that will be trained on, and how many there will be."""
    from potstill.data.render import Rendered, render, render_prompt
    from potstill.models.weights import load_tokenizer

    tokenizer, config = load_tokenizer(student), ctx.config
    own = ctx.run.accepted if split == "train" else ctx.run.accepted_validation
    accepted = JsonLines(own, Record)
    is_known = own.exists() and accepted.num_lines() > 0
    source = accepted if is_known else JsonLines(getattr(records, split), Record)
    num_records = source.num_lines()
    every = max(1, math.ceil(num_records / MOST_ROWS))
    looked = [record for n, record in enumerate(source) if n % every == 0]
    filler, rows, num_filled = tokenizer.eos_token_id or 0, [], 0
    for record in looked:
        for turn in ctx.task.turns(record):
            row: Rendered | None
            if turn.reference is not None:
                row = render(tokenizer, turn.messages, turn.reference)
            else:
                ids = render_prompt(tokenizer, turn.messages)
                num_new = round(answer_tokens or config.generation.max_new_tokens)
                row = Rendered([*ids, *[filler] * num_new], [0] * len(ids) + [1] * num_new)
                num_filled += 1
            if row is not None and len(row.ids) <= config.train.max_tokens:
                rows.append(row)
    if is_known:
        notes.append(f"rows are the {num_records:,} accepted ones of {ctx.run.path}")
        samples = 1
    else:
        samples = config.generation.num_responses
        notes.append("rows are reckoned as if every answer passed the checks")
    if num_filled:
        long = f"{answer_tokens:,.0f}" if answer_tokens else "generation.max_new_tokens"
        notes.append(f"answers that are not known are reckoned as {long} tokens long")
    if config.generation.reasoning == "both":
        samples *= 2
    return rows, len(rows) * every * samples


def _forecast(
    ctx: Context,
    found: Probed,
    num_rows: float,
    watched: tuple[Sequence[Rendered], float],
    notes: list[str],
) -> TrainingForecast:
    train = ctx.config.train
    num_steps = _num_steps(train, num_rows)
    facts = {
        "num_rows": round(num_rows),
        "num_steps": num_steps,
        "peak_memory_bytes": found.peak_memory_bytes,
        "usable_memory_bytes": found.usable_memory_bytes,
        "num_parameters": found.num_parameters,
        "num_trainable": found.num_trainable,
        "precision": found.precision,
        "device": found.device,
    }
    if not found.fits:
        return TrainingForecast(fits=False, proposal=_smaller(found, train), notes=notes, **facts)
    seconds = num_steps * found.seconds_per_step
    looks = num_steps // (train.eval_steps or max(1, num_steps // 10)) if watched[0] else 0
    if looks:
        num_tokens = watched[1] * statistics.fmean(len(row.ids) for row in watched[0])
        seconds += looks * num_tokens * found.look_seconds_per_token
    every = max(CHECKPOINT_EVERY_SECONDS, 20 * found.checkpoint_seconds)
    seconds += int(seconds / every) * found.checkpoint_seconds
    margin = max(MARGIN, 2 * found.spread)
    if found.spread > MARGIN / 2:
        notes.append(f"the probe's own steps differed: {found.spread:.0%} standard error")
    notes.append("memory and time are of training alone, on this machine as busy as it is now")
    if train.processes > 1:
        notes.append(f"of one process that computes alone what {train.processes} will share")
    if train.shard:
        notes.append("with all weights in it, of which each process will hold a part")
    proposal = ""
    if found.is_cut:
        proposal = f"set train.micro_batch_size: {found.micro_batch_size}, which fits"
    return TrainingForecast(
        fits=not proposal,
        micro_batch_size=found.micro_batch_size,
        accumulation=found.parts_per_step,
        seconds=seconds,
        seconds_low=seconds / (1 + margin),
        seconds_most=seconds * (1 + margin),
        joules_per_step=found.joules_per_step,
        energy_source=found.energy_source,
        proposal=proposal,
        notes=tuple(notes),
        **facts,
    )


def _num_steps(train: TrainConfig, num_rows: float) -> int:
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(train.num_epochs * math.ceil(num_rows / train.batch_size) - 1e-9))


def _smaller(found: Probed, train: TrainConfig) -> str:
    """What would fit instead: recomputed activations, an adapter, or a smaller student."""
    kind = found.precision
    usable = 0.9 * found.usable_memory_bytes
    whole = found.num_trainable * trained_bytes(kind, train)
    frozen = (found.num_parameters - found.num_trainable) * STORED_BYTES[kind]
    activations = max(0, found.peak_memory_bytes - whole - frozen)
    ways = []
    if not train.gradient_checkpointing and whole + frozen + activations / 4 < usable:
        ways.append("train.gradient_checkpointing: true, which keeps fewer activations")
    adapted = found.num_parameters * STORED_BYTES[kind] + activations
    # Weights are read as a whole before they are rounded: on the CPU, beside a GPU's memory.
    read = 0 if found.device.startswith("cuda") else found.num_parameters * STORED_BYTES["fp32"]
    rounded = max(read, found.num_parameters * QLORA_BYTES + activations)
    if train.adapter is None and adapted < usable:
        ways.append(f"train.adapter: lora, which takes about {adapted / 1e9:,.1f} GB")
    elif (train.adapter is None or train.adapter.kind == "lora") and rounded < usable:
        ways.append(f"train.adapter: qlora, which takes about {rounded / 1e9:,.1f} GB")
    if not ways:
        most = usable / (found.peak_memory_bytes / found.num_parameters)
        ways.append(f"a student of at most about {most / 1e6:,.0f} million weights")
    return (
        f"a micro-batch of one row needs at least {found.peak_memory_bytes / 1e9:,.1f} GB and "
        f"{found.usable_memory_bytes / 1e9:,.1f} GB are there; take {'; or '.join(ways)}; or "
        f"shorter rows (train.max_tokens)"
    )
