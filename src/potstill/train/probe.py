"""A short training in a process of its own, to see what a long one takes.

    python -m potstill.train.probe SPEC OUT

Reads a `ProbeSpec`, trains on its rows with the real loop's steps, and writes `Probed`; what it
trained is thrown away. It feels its way: a step on a quarter of the longest row, on the whole
row, on two; the next larger one only when it fits, as the ones before tell.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from potstill.config import LossConfig, PruneConfig, TargetsConfig, TrainConfig
from potstill.data.render import Rendered
from potstill.errors import PotstillError
from potstill.models.energy import EnergyMeter
from potstill.models.weights import load_weights
from potstill.rundir import RunDir, write_text
from potstill.targets.store import content_key
from potstill.train.beside import build_matching, load_teacher
from potstill.train.checkpoint import save_checkpoint
from potstill.train.loop import Training
from potstill.train.memory import Memory, resident_bytes, usable_memory_bytes
from potstill.train.packing import Parts
from potstill.train.plan import num_loss_tokens
from potstill.train.prune import choose_layers, cut_layers
from potstill.train.student import Student, decoder_layers, prepare_student
from potstill.train.width import Importance, choose_width, cut_width
from potstill.types import Noun

HEADROOM = 0.9
"""Share of the free memory that training may take."""

WARM_STEPS = 2
MOST_PLANNED = 10_000
"""Steps whose tokens are counted; later ones are like them."""


class ProbeSpec(Noun):
    """What is to be trained for a moment."""

    student: str
    """Folder of the student, or of what it is cut out of."""

    prune: PruneConfig | None = None
    teacher: str | None = None
    """Folder of the teacher, where it runs beside the student."""

    loss: LossConfig
    train: TrainConfig
    rows: tuple[tuple[list[int], list[int]], ...]
    """Token ids and loss mask of each row."""

    validation_rows: tuple[tuple[list[int], list[int]], ...] = ()
    num_steps: int = 20
    """Steps that are timed."""

    num_planned: int = 1
    """Steps of the whole training."""

    num_threads: int | None = None
    memory_bytes: int | None = None
    """What the process may hold; what is there by default."""


class Probed(Noun):
    """What it took."""

    error: str = ""
    """Why there is nothing else, in one sentence."""

    fits: bool = True
    """Whether a micro-batch of one longest row fits the memory; if not, only memory is known."""

    micro_batch_size: int = 0
    """Rows in the largest part of a step."""

    parts_per_step: int = 0
    is_cut: bool = False
    """Whether the parts are smaller than the config's, which do not fit."""

    peak_memory_bytes: int = 0
    """Of this whole process: measured, or what the next larger step would have taken."""

    usable_memory_bytes: int = 0
    """What the process could have held when it began."""

    seconds_per_step: float = 0.0
    """Mean over the planned steps, from what the timed ones took and how many tokens each has."""

    spread: float = 0.0
    """How far timed steps lie from that rule: standard error of their mean, as a share of it."""

    look_seconds_per_token: float = 0.0
    checkpoint_seconds: float = 0.0
    joules_per_step: float | None = None
    energy_source: str = "not measured"
    num_parameters: int = 0
    num_trainable: int = 0
    """Weights of the student that learn; projections between the layers not counted."""

    precision: str = ""
    device: str = ""


class DrawnTargets:
    """Teacher probabilities drawn by chance, of the shape that stored ones have."""

    class _Settings(NamedTuple):
        kind: str
        vocab_size: int

    manifest = "drawn"

    def __init__(self, rows: Sequence[Rendered], kept: TargetsConfig, vocab_size: int):
        self.settings = self._Settings(kept.kind, vocab_size)
        self._k = min(kept.k if kept.kind == "topk" else kept.num_draws, vocab_size)
        self._counts: dict[bytes, int] = {}
        self.add(rows)

    def add(self, rows: Sequence[Rendered]) -> None:
        """Has probabilities for these rows as well."""
        for row in rows:
            self._counts[content_key(row.ids, row.loss_mask)] = num_loss_tokens(row)

    def __contains__(self, key: bytes) -> bool:
        return key in self._counts

    def batch(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids [N, K] and log-probabilities, or weights, [N, K], as `TargetStore.batch`."""
        shape = (sum(self._counts[key] for key in keys), self._k)
        ids_K = np.linspace(0, self.settings.vocab_size - 1, self._k).astype(np.int64)
        value = np.log(0.95 / self._k) if self.settings.kind == "topk" else 1 / self._k
        return np.broadcast_to(ids_K, shape).copy(), np.full(shape, value, dtype=np.float32)


def probe(spec: ProbeSpec) -> Probed:
    """Trains for some steps; see `Probed`.

    Raises:
        PotstillError: As training does.
    """
    torch.set_num_threads(spec.num_threads or torch.get_num_threads())
    torch.manual_seed(spec.train.seed)
    memory, usable = Memory(), spec.memory_bytes or usable_memory_bytes()
    rows = [Rendered(*row) for row in spec.rows]
    training, student = _begin(spec, rows)
    facts: dict[str, Any] = {
        "usable_memory_bytes": usable,
        "num_parameters": student.num_weights,
        "num_trainable": sum(p.numel() for p in student.trainable().values()),
        "precision": student.precision,
        "device": student.device.type,
    }
    size, needed = _parts_that_fit(training, memory, HEADROOM * usable)
    if size == 0:
        return Probed(fits=False, peak_memory_bytes=needed, **facts)
    timed = _timed(training, spec, size)
    look = _look_seconds_per_token(training, size)
    saving = _end(training)
    return Probed(
        is_cut=size is not None,
        peak_memory_bytes=memory.most,
        look_seconds_per_token=look,
        checkpoint_seconds=saving,
        **timed._asdict(),
        **facts,
    )


def _begin(spec: ProbeSpec, rows: list[Rendered]) -> tuple[Training, Student]:
    model, tokenizer = load_weights(spec.student)
    if spec.prune is not None:
        model = _cut_alike(model, spec.prune)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = prepare_student(model, spec.train, device)
    teacher = load_teacher(spec.teacher, spec.train.precision)
    validation = [Rendered(*row) for row in spec.validation_rows]
    targets: Any = None
    if spec.loss.kind != "sft":
        targets = DrawnTargets([*rows, *validation], spec.loss.targets, len(tokenizer))
    matching = build_matching(student.model, teacher, spec.loss, rows)
    # One row alone may well have another loss than whole steps.
    train = spec.train.model_copy(update={"max_loss_jump": None, "shard": False})
    training = Training(
        student, tokenizer, rows, validation, spec.loss, train, targets, matching=matching
    )
    return training, student


def _cut_alike(model: nn.Module, cut: PruneConfig) -> nn.Module:
    """A student of the size that `cut` gives; which parts it has does not change what it takes."""
    if cut.layers is not None:
        keep = cut.layers
        if isinstance(keep, int):
            keep = choose_layers(model, None, [], keep, by="even")[0]
        model = cut_layers(model, keep)
    if cut.ffn or cut.heads or cut.kv_heads:
        config, num_layers = model.config.get_text_config(), len(decoder_layers(model))
        alike = Importance(
            [torch.ones(config.intermediate_size)] * num_layers,
            [torch.ones(config.num_attention_heads)] * num_layers,
        )
        width = choose_width(
            alike, config.num_key_value_heads, ffn=cut.ffn, heads=cut.heads, kv_heads=cut.kv_heads
        )
        model = cut_width(model, width)
    return model


class _Timed(NamedTuple):
    """What some steps took."""

    seconds_per_step: float
    spread: float
    joules_per_step: float | None
    energy_source: str
    parts_per_step: int
    micro_batch_size: int


class _Given:
    """A plan of one step, whose parts are given."""

    def __init__(self, micro_batches: list[list[int]]):
        self._micro_batches = micro_batches

    def rows(self, _step: int) -> list[int]:
        return [row for part in self._micro_batches for row in part]

    def micro_batches(self, _step: int) -> list[list[int]]:
        return self._micro_batches

    def learning_rate(self, _step: int) -> float:
        return 0.0


def _step(training: Training, micro_batches: list[list[int]]) -> float:
    """Does a step on these rows, at a learning rate of 0; returns its seconds."""
    plan = training.plan
    training.plan = _Given(micro_batches)  # type: ignore[assignment]
    started = time.monotonic()
    try:
        training.step()
    finally:
        training.plan = plan
    return time.monotonic() - started


def _parts_that_fit(training: Training, memory: Memory, allowed: float) -> tuple[int | None, int]:
    """How many rows at once fit (None: the plan's own parts do; 0: not even one row), and bytes."""
    rows, plan = training.train_rows, training.plan
    longest = max(range(len(rows)), key=lambda row: len(rows[row].ids))
    ids, mask = rows[longest]
    quarter = max(2, len(ids) // 4)
    short = Rendered(ids[-quarter:], mask[-quarter:])
    training.train_rows = [*rows, short]
    if isinstance(training.passes.targets, DrawnTargets):
        training.passes.targets.add([short])
    memory.peak()
    _step(training, [[len(rows)]])  # makes the optimizer's state
    memory.peak()
    _step(training, [[len(rows)]])
    small = memory.peak()
    # What a step takes for a while grows with the row; what stays is there before and after.
    expected = small + 3 * max(0, small - resident_bytes())
    if expected > allowed:
        return 0, expected
    _step(training, [[longest]])
    one = memory.peak()
    training.train_rows = rows
    if one > allowed:
        return 0, one
    by_token = max(one - small, 0) / max(1, len(ids) - quarter)
    parts = [part for n in range(plan.steps_per_epoch) for part in plan.micro_batches(n)]
    worst = max(parts, key=lambda part: _tokens(training, part))
    size = None
    if one + (_tokens(training, worst) - len(ids)) * by_token > allowed:
        size = max(map(len, parts))
        while size > 1 and one + (size - 1) * len(ids) * by_token > allowed:
            size = -(-size // 2)
        worst = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))[-size:]
    _step(training, [worst])
    return size, memory.peak()


def _tokens(training: Training, part: Sequence[int]) -> int:
    """Tokens that are computed at once, padding included."""
    lengths = [len(training.train_rows[row].ids) for row in part]
    return sum(lengths) if training.parts.packed else len(part) * max(lengths)


def _cut(training: Training, step: int, size: int | None) -> list[list[int]]:
    """The parts of a step: the plan's own, or those of `train.micro_batch_size: size`."""
    return _parts(training, size).cut(training.plan.rows(step), training.plan.lengths)


def _parts(training: Training, size: int | None) -> Parts:
    tokens = training.train.micro_batch_tokens
    known = training.parts
    return known if size is None else replace(known, max_rows=size, max_tokens=tokens)


def _spread_out(training: Training, number: int) -> list[int]:
    """Steps of the first pass, from the one with the fewest tokens to the one with the most."""
    plan = training.plan
    steps = sorted(range(plan.steps_per_epoch), key=lambda step: _size(training, step)[1])
    places = np.linspace(0, len(steps) - 1, number).round().astype(int)
    chosen = [steps[place] for place in places]
    np.random.default_rng(0).shuffle(chosen)  # so that a slow minute is not taken for long rows
    return chosen


def _size(training: Training, step: int) -> tuple[float, float, float]:
    """What a step's time grows with: 1, its tokens, and those that are learnt."""
    rows = [training.train_rows[row] for row in training.plan.rows(step)]
    return 1.0, float(sum(len(row.ids) for row in rows)), float(sum(map(num_loss_tokens, rows)))


def _timed(training: Training, spec: ProbeSpec, size: int | None) -> _Timed:
    """Does steps, after two that are not timed, and reckons what the planned ones take."""
    chosen = _spread_out(training, WARM_STEPS + spec.num_steps)
    for step in chosen[:WARM_STEPS]:
        _step(training, _cut(training, step, size))
    meter = EnergyMeter()
    seconds = np.array([_step(training, _cut(training, n, size)) for n in chosen[WARM_STEPS:]])
    joules = meter.joules()
    sizes = np.array([_size(training, step) for step in chosen[WARM_STEPS:]])
    # No time grows with fewer tokens: without that, the rule could follow chance.
    rule, _ = nnls(sizes, seconds)
    off = seconds - sizes @ rule
    spread = float(np.sqrt((off**2).sum() / max(1, len(off) - 3) / len(off)) / seconds.mean())
    planned = [_size(training, step) for step in range(min(spec.num_planned, MOST_PLANNED))]
    return _Timed(
        seconds_per_step=float((np.array(planned) @ rule).mean()),
        spread=spread,
        joules_per_step=None if joules is None else joules / len(seconds),
        energy_source=meter.source,
        parts_per_step=max(len(_cut(training, step, size)) for step in chosen),
        micro_batch_size=max(len(part) for n in chosen for part in _cut(training, n, size)),
    )


def _look_seconds_per_token(training: Training, size: int | None) -> float:
    if not training.validation_rows:
        return 0.0
    training.parts = _parts(training, size)
    started = time.monotonic()
    training.look()
    seconds = time.monotonic() - started
    # A later look that is better holds the weights of the best one before beside its own.
    training.state = training.state.model_copy(update={"best_loss": None})
    training.look()
    return seconds / sum(len(row.ids) for row in training.validation_rows)


def _end(training: Training) -> float:
    """Seconds of writing a checkpoint; writes the finished model as well, for its memory."""
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        out = RunDir(folder)
        started = time.monotonic()
        save_checkpoint(
            out.checkpoints,
            training.state,
            training.parameters,
            training.optimizer,
            training.best,
            None if training.average is None else training.average.values,
        )
        seconds = time.monotonic() - started
        training.finish(out, 0)
    return seconds


def main(spec: Path, out: Path) -> None:
    """Probes, and writes what was found, or why nothing was."""
    try:
        found = probe(ProbeSpec.model_validate_json(spec.read_text(encoding="utf-8")))
    except (PotstillError, torch.OutOfMemoryError, MemoryError) as error:
        found = Probed(error=str(error) or type(error).__name__)
    write_text(out, found.model_dump_json() + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
