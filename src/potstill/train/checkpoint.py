"""Checkpoints: everything a killed training run needs to go on as if nothing had happened.

    checkpoints/000200/
      weights.safetensors      what learns (frozen weights come from the student's own folder)
      optimizer.safetensors    the optimizer's moments and step counts
      average.safetensors      the moving average of the weights, with train.ema
      best.safetensors         the weights with the lowest validation loss, when others
      checksums.json           of the files above
      state.json               step, best, and the fingerprint of what was being trained

A folder is moved to its name when it is whole. Only the latest one is kept. Random numbers
follow from the seed and the step, so no generator's state is in it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.config import TrainConfig
from potstill.errors import DataError
from potstill.rundir import crc32_of, whole_folder
from potstill.train.optimizers import NUM_KEPT
from potstill.train.shard import collected, local, part_of, shared_out
from potstill.types import Noun

log = logging.getLogger(__name__)


class TrainState(Noun):
    """How far training has come."""

    fingerprint: str
    """Hash of config, rows and student: another one means another training."""

    step: int = 0
    """Optimizer steps done."""

    best_step: int = 0
    best_loss: float | None = None
    """Lowest validation loss so far, nats a token; None before the first look."""

    last_loss: float | None = None
    """Validation loss of the last look."""

    looks_without_best: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    """Tokens trained on so far, padding not counted."""

    losses: tuple[float, ...] = ()
    """Of the last steps, nats a token: what a jump is told from."""


def save_checkpoint(
    folder: Path,
    state: TrainState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None,
    average: Mapping[str, Tensor] | None = None,
    *,
    write: bool = True,
) -> Path:
    """Writes `folder`/STEP, then removes older ones.

    Args:
        write: Whether this process does; where weights are shared out, all must call it.
    """
    path = folder / f"{state.step:06d}"
    tensors = {
        "weights": collected(parameters, {}, keep=write),
        "optimizer": collected(_optimizer_tensors(optimizer, parameters), {}, keep=write),
    }
    if average is not None:
        tensors["average"] = collected(average, parameters, keep=write)
    # With an average the best weights are never those of the step.
    if best is not None and (state.best_step != state.step or average is not None):
        tensors["best"] = collected(best, parameters, keep=write)
    if not write:
        return path
    with whole_folder(path) as part:
        for name, values in tensors.items():
            save_file(values, part / f"{name}.safetensors")
        sums = {file.name: crc32_of(file) for file in part.iterdir()}
        (part / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
        (part / "state.json").write_text(state.model_dump_json(indent=1), encoding="utf-8")
    for older in _complete(folder):
        if older != path:
            shutil.rmtree(older)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from; None when there is none."""
    return max(_complete(folder), default=None)


def load_checkpoint(
    path: Path,
    fingerprint: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> tuple[TrainState, dict[str, Tensor] | None]:
    """Puts weights and optimizer back; returns the state and the best weights.

    Args:
        average: The moving average; its values are put back too.

    Raises:
        DataError: If the checkpoint belongs to another training, or cannot be read.
    """
    way_out = f"delete {path.parent} to start over"
    try:
        state = TrainState.model_validate_json((path / "state.json").read_text(encoding="utf-8"))
        if state.fingerprint != fingerprint:
            raise DataError(
                f"{path} was written by another training (other config, records, student or "
                f"targets) and cannot be continued with these; {way_out}"
            )
        _check_sums(path, way_out)
        weights = load_file(path / "weights.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        best_file = path / "best.safetensors"
        best = load_file(best_file) if best_file.exists() else None
        smooth = None if average is None else load_file(path / "average.safetensors")
    except DataError:
        raise
    except Exception as error:  # safetensors has an error class of its own
        raise DataError(f"{path} cannot be read: {error}; {way_out}") from error
    check_names(parameters, weights)
    parts = {name: part_of(value, parameters[name]) for name, value in weights.items()}
    put_weights(parameters, parts)
    _put_optimizer(optimizer, parameters, moments)
    if average is not None and smooth is not None:
        for name, value in average.items():
            value.copy_(part_of(smooth[name], parameters[name]))
    elif state.best_step == state.step and state.best_loss is not None:
        best = weights
    if best is not None:
        best = {name: part_of(value, parameters[name]).cpu() for name, value in best.items()}
    return state, best


def checkpoint_bytes(
    parameters: Mapping[str, nn.Parameter], train: TrainConfig, *, has_best: bool
) -> int:
    """What a checkpoint takes on disk."""
    copies = 1 + NUM_KEPT[train.optimizer] + has_best
    num_bytes = sum(copies * p.nbytes for p in parameters.values())
    averaged = 0 if train.ema is None else 4 * sum(p.numel() for p in parameters.values())
    return num_bytes + averaged


def check_room(folder: Path, one: int, model: int, *, free: int | None = None) -> None:
    """Refuses a training whose files the disk has no room for, before its first step.

    Args:
        folder: Of the checkpoints. One that is there already has its room.
        one: Bytes of a checkpoint. A new one is written before the old one goes.
        model: Bytes of the finished model, written beside the last checkpoint.
        free: Bytes that are free; asked of the disk by default.

    Raises:
        DataError: If there is less.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free if free is None else free
    needed = one + max(one, model) - (one if latest_checkpoint(folder) else 0)
    if needed > free:
        raise DataError(
            f"training writes up to {needed / 1e9:,.1f} GB to {folder.parent} (checkpoints of "
            f"{one / 1e9:,.1f} GB and a model of {model / 1e9:,.1f} GB) and {free / 1e9:,.1f} GB "
            f"are free; free some, choose another folder (--runs), or train less at once "
            f"(train.adapter: lora)"
        )


def remove_checkpoints(folder: Path) -> None:
    """Removes them all: what they were kept for is done."""
    for path in _complete(folder):
        shutil.rmtree(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the values on the CPU; of this process's part where they are shared out."""
    return {name: local(p.detach()).to("cpu", copy=True) for name, p in parameters.items()}


@torch.no_grad()
def put_weights(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Writes what `copy_weights` gave into parameters of the same names and shapes."""
    check_names(parameters, values)
    for name, parameter in parameters.items():
        local(parameter).copy_(values[name])


def check_names(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Raises DataError where weights are not this student's."""
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())
        raise DataError(f"a checkpoint holds other weights than this student: {odd[:5]}")


def _check_sums(path: Path, way_out: str) -> None:
    """Raises DataError where a file is not what was written."""
    for name, wanted in json.loads((path / "checksums.json").read_text(encoding="utf-8")).items():
        if crc32_of(path / name) != wanted:
            raise DataError(f"{path / name} is damaged (its checksum differs); {way_out}")


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if (p / "state.json").exists())


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _put_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    names = {id(parameter): name for name, parameter in parameters.items()}
    kept: dict[str, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        key, _, name = place.partition("/")
        like = parameters[name]
        if tensor.shape == like.shape:  # a number beside each weight, and no count of steps
            tensor = shared_out(part_of(tensor, like), like)
        kept.setdefault(name, {})[key] = tensor
    tree = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    # Optimizers keep other things for vectors than for matrices, or nothing before a step.
    tree["state"] = {
        index: kept[names[id(parameter)]]
        for index, parameter in enumerate(order)
        if names[id(parameter)] in kept
    }
    optimizer.load_state_dict(tree)
