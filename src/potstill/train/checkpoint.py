"""Checkpoints: everything a killed training run needs to go on as if nothing had happened.

    checkpoints/000200/
      weights.safetensors      what learns (frozen weights come from the student's own folder)
      optimizer.safetensors    AdamW's moments and step counts
      best.safetensors         the weights with the lowest validation loss, when others
      random.safetensors       states of the random number generators
      state.json               step, best, and the fingerprint of what was being trained

A folder is moved to its name when it is whole. Only the latest one is kept.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import DataError
from potstill.rundir import whole_folder
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

    looks_without_best: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    """Tokens trained on so far, padding not counted."""


def save_checkpoint(
    folder: Path,
    state: TrainState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None,
) -> Path:
    """Writes `folder`/STEP, then removes older ones."""
    path = folder / f"{state.step:06d}"
    with whole_folder(path) as part:
        save_file(_plain(parameters), part / "weights.safetensors")
        save_file(_optimizer_tensors(optimizer, parameters), part / "optimizer.safetensors")
        if best is not None and state.best_step != state.step:
            save_file(_plain(best), part / "best.safetensors")
        save_file(_random_states(), part / "random.safetensors")
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
) -> tuple[TrainState, dict[str, Tensor] | None]:
    """Puts weights, optimizer and random numbers back; returns the state and the best weights.

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
        weights = load_file(path / "weights.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        best_file = path / "best.safetensors"
        best = load_file(best_file) if best_file.exists() else None
        random = load_file(path / "random.safetensors")
    except DataError:
        raise
    except Exception as error:  # safetensors has an error class of its own
        raise DataError(f"{path} cannot be read: {error}; {way_out}") from error
    put_weights(parameters, weights)
    _put_optimizer(optimizer, parameters, moments)
    if state.best_step == state.step and state.best_loss is not None:
        best = weights
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state, best


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the values on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}


@torch.no_grad()
def put_weights(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Writes values into parameters of the same names and shapes."""
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())
        raise DataError(f"a checkpoint holds other weights than this student: {odd[:5]}")
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if (p / "state.json").exists())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return _plain(
        {
            f"{key}/{names[id(parameter)]}": value
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
    )


def _put_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    names = {id(parameter): name for name, parameter in parameters.items()}
    keys = {name.partition("/")[0] for name in tensors}
    tree = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    tree["state"] = {
        index: {key: tensors[f"{key}/{names[id(parameter)]}"] for key in keys}
        for index, parameter in enumerate(order)
        if keys
    }
    optimizer.load_state_dict(tree)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
