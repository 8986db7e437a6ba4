"""A student that computes with what a 4-bit file will hold of its weights, and learns so.

In the forward pass a matrix is rounded exactly as the GGUF exporter writes it and engines read
it back; in the backward pass the rounding counts as if it were not there (a straight-through
estimator), so that the gradient reaches the weight that was rounded.

Shape letters of this file:
    B  blocks of a matrix, each 32 neighbouring weights of a row     W  32

Source: Bengio, Leonard and Courville (2013), "Estimating or Propagating Gradients Through
    Stochastic Neurons", section 4 (straight-through). arXiv:1308.3432. Liu et al. (2023),
    "LLM-QAT", for distilling from the model itself. arXiv:2305.17888. The block formats are
    those of ggml, as the `gguf` package quantises them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered
from potstill.errors import TrainError
from potstill.models.packed import attend_as_before
from potstill.targets.store import TargetStore, content_key
from potstill.train.checkpoint import TrainState, put_weights
from potstill.train.loop import Training
from potstill.train.objective import Objective, TeacherTargets, check_head
from potstill.train.plan import check_inputs, num_loss_tokens
from potstill.train.ranks import ALONE
from potstill.train.result import OnProgress, TrainPaths
from potstill.train.student import prepare_student
from potstill.train.targets import TopK

QUANTS = ("q4_0", "q4_1")
"""Number formats that are known here bit for bit and lose enough to be worth learning with."""

BLOCK = 32
CHECKPOINT_SECONDS = 60.0


def stored(values: Tensor, kind: str) -> Tensor:
    """What a GGUF file gives back of a float32 matrix, in its shape.

    Args:
        kind: q4_0, q4_1, q8_0, or f16 for rows that blocks do not fill.
    """
    if kind == "f16":
        return values.half().float()
    return _ROUNDED[kind](values.reshape(-1, BLOCK)).reshape(values.shape)


def stored_kinds(model: Any, quant: str) -> dict[str, str]:
    """Name of each matrix -> what a file of that number format holds it in; tied ones once.

    As the GGUF exporter decides: the output matrix keeps 8 bits, vectors stay as they are.
    """
    head = model.get_output_embeddings().weight
    wanted = {
        name: "q8_0" if weight is head else quant
        for name, weight in model.named_parameters()
        if weight.ndim > 1
    }
    rows = {name: weight.shape[-1] for name, weight in model.named_parameters()}
    return {name: "f16" if rows[name] % BLOCK else kind for name, kind in wanted.items()}


@torch.no_grad()
def store_weights(model: nn.Module, quant: str) -> None:
    """Puts what a file would give back into the weights, in place."""
    kinds = stored_kinds(model, quant)
    for name, weight in model.named_parameters():
        if name in kinds:
            weight.copy_(stored(weight.float(), kinds[name]))


@torch.no_grad()
def step_size(model: Any, quant: str) -> float:
    """Mean distance of two neighbouring values in a block, over all blocks of the format."""
    total, number = 0.0, 0
    kinds = stored_kinds(model, quant)
    for name, weight in model.named_parameters():
        if kinds.get(name) == quant:
            amount_B = weight.reshape(-1, BLOCK).abs().amax(-1)
            total, number = total + float(amount_B.sum()) / 8, number + len(amount_B)
    return total / max(1, number)


@contextlib.contextmanager
def computing_as_stored(model: nn.Module, quant: str) -> Iterator[None]:
    """Inside, the model computes as its file will; names and values of what learns stay.

    Matrices that learn are rounded whenever they are used. Those that do not are rounded once,
    and get their values back in the end.

    Raises:
        TrainError: If a matrix that learns belongs to something else than a linear layer.
    """
    kinds = stored_kinds(model, quant)
    by_weight = {weight: kinds.get(name) for name, weight in model.named_parameters()}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    rounded = {module.weight for module in linear}
    held = {}
    for name, weight in model.named_parameters():
        if name in kinds and weight.requires_grad and weight not in rounded:
            raise TrainError(f"{name} belongs to no linear layer; healing cannot round it")
        if name in kinds and not weight.requires_grad:
            held[weight] = weight.detach().clone()
    try:
        for module in linear:
            # torch's own parametrisations would rename the weight, and saved files with it.
            module.forward = partial(_linear, module, by_weight[module.weight])
        with torch.no_grad():
            for weight in held:
                weight.copy_(stored(weight.float(), str(by_weight[weight])))
        yield
    finally:
        for module in linear:
            vars(module).pop("forward", None)
        with torch.no_grad():
            for weight, before in held.items():
                weight.copy_(before)


def learn_as_stored(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Rendered],
    watched: Sequence[Rendered],
    *,
    quant: str,
    loss: LossConfig,
    train: TrainConfig,
    targets: TargetStore,
    out: TrainPaths,
    on_progress: OnProgress | None = None,
) -> TrainState:
    """Trains a student so that what its file will hold comes near to what it was.

    The model is trained in place, in float32, and ends with the weights of the best look at
    `watched`. Word vectors and output matrix stay as they are. Called again, it goes on from
    the last checkpoint in `out`; nothing else is written but metrics.

    Args:
        targets: The student's own probabilities, before any of this, for all rows.

    Raises:
        As `train.loop.fine_tune_student`.
    """
    known = check_inputs(model, rows, watched, loss, train, targets)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(train.seed)
        frozen = train.model_copy(update={"adapter": None, "freeze_embeddings": True})
        student = prepare_student(model, frozen, ALONE.device)
        student.model.get_output_embeddings().requires_grad_(False)
        with computing_as_stored(student.model, quant):
            check_head(student.model, list(rows[0].ids))
            training = Training(student, tokenizer, rows, watched, loss, frozen, known)
            training.resume(out)
            training.run(out, on_progress, CHECKPOINT_SECONDS)
    if training.best is not None:
        with torch.no_grad():
            put_weights(training.parameters, training.best)
    attend_as_before(student.model)
    student.model.eval()
    return training.state


@torch.no_grad()
def distance(
    model: Any, rows: Sequence[Rendered], loss: LossConfig, targets: TargetStore
) -> tuple[float, int]:
    """The divergence from kept probabilities, nats summed over all loss positions, and their
    number."""
    objective, total, number = Objective(model, loss), 0.0, 0
    for row in rows:
        arrays = targets.batch([content_key(row.ids, row.loss_mask)])
        kept = TopK(*(torch.from_numpy(array).to(model.device) for array in arrays))
        ids_BT, mask_BT = (torch.tensor([part], device=model.device) for part in row)
        known = TeacherTargets(kept, targets.settings.vocab_size)
        found = objective(ids_BT, mask_BT, None, known).divergence
        assert found is not None, "targets are given"
        total += found.item()
        number += num_loss_tokens(row)
    return total, number


class _Stored(torch.autograd.Function):
    """Rounds forwards, and lets the gradient through as it is."""

    @staticmethod
    def forward(_ctx: Any, weight: Tensor, kind: str) -> Tensor:
        return stored(weight, kind)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _linear(module: nn.Linear, kind: str, inputs: Tensor) -> Tensor:
    return F.linear(inputs, _Stored.apply(module.weight, kind), module.bias)


def _inverse(scale_B1: Tensor) -> Tensor:
    return torch.where(scale_B1 == 0, 0.0, 1 / scale_B1)


def _share(span_B1: Tensor, parts: int) -> Tensor:
    """span / parts, correctly rounded; by a plain number a GPU multiplies with the inverse."""
    return span_B1 / torch.full_like(span_B1, parts)


def _q4_0(values_BW: Tensor) -> Tensor:
    """16 steps of one size around 0; the value that is largest by amount is the lowest step."""
    low_B1, high_B1 = torch.aminmax(values_BW, dim=-1, keepdim=True)
    most_B1 = torch.where(high_B1 > -low_B1, high_B1, low_B1)
    if (is_tied_B := (high_B1 == -low_B1)[:, 0]).any():  # then the first of both counts
        tied_BW = values_BW[is_tied_B]
        most_B1[is_tied_B] = tied_BW.gather(-1, tied_BW.abs().argmax(-1, keepdim=True))
    scale_B1 = _share(most_B1, -8)
    steps_BW = (values_BW * _inverse(scale_B1)).add_(8.5).floor_().clamp_(0, 15).sub_(8)
    return steps_BW.mul_(scale_B1.half().float())


def _q4_1(values_BW: Tensor) -> Tensor:
    """16 steps of one size from the least value on."""
    low_B1, high_B1 = torch.aminmax(values_BW, dim=-1, keepdim=True)
    scale_B1 = _share(high_B1 - low_B1, 15)
    steps_BW = (values_BW - low_B1).mul_(_inverse(scale_B1)).add_(0.5).floor_().clamp_(0, 15)
    return steps_BW.mul_(scale_B1.half().float()).add_(low_B1.half().float())


def _q8_0(values_BW: Tensor) -> Tensor:
    """255 steps of one size around 0; halves go away from 0."""
    scale_B1 = _share(values_BW.abs().amax(-1, keepdim=True), 127)
    wanted_BW = values_BW * _inverse(scale_B1)
    amount_BW = wanted_BW.abs()
    floor_BW = amount_BW.floor()
    steps_BW = wanted_BW.sign() * (floor_BW + (2 * (amount_BW - floor_BW)).floor())
    return steps_BW * scale_B1.half().float()


_ROUNDED = {"q4_0": _q4_0, "q4_1": _q4_1, "q8_0": _q8_0}
