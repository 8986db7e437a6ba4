"""Weights shared out among processes that train together, by torch's `fully_shard` (FSDP2).

Each process holds a part of every weight, of its gradient and of what the optimizer keeps beside
it. A layer's whole weights are gathered while it is computed, in the forward pass and again in
the backward pass; what lies outside of the layers (word vectors, head) while a batch lasts.

Files hold whole tensors, so a training goes on with another number of processes or without
sharing. Everything here is what it was where a tensor is not shared out.

Source:
    Zhao et al. (2023), "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
    arXiv:2304.11277; the second version shards each weight by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from potstill.errors import TrainError
from potstill.train.ranks import Ranks


def share_out(objective: Any, layers: Iterable[nn.Module], ranks: Ranks) -> None:
    """Leaves each process its part of all weights, in place, on its device.

    Gradients are summed over the processes, as `Ranks.add_gradients` sums them.

    Args:
        objective: The module whose forward makes the loss: head and word vectors are gathered
            for it.
        layers: Modules inside it whose weights are gathered one after the other.

    Raises:
        TrainError: If torch is too old for it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise TrainError(
            f"train.shard needs a newer torch than {torch.__version__}: pip install -U torch (2.13 "
            f"is tried), or set train.shard: false"
        )
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    # Sums in bf16 would lose their last bits.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # Experts, for instance, that no token of this process went to.
    objective.set_reduce_scatter_unused_params(True)


def let_go(objective: Any) -> None:
    """Gives up what a forward pass without a backward pass has gathered."""
    if hasattr(objective, "reshard"):
        objective.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part, the same memory; the tensor itself where it is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """What of a whole value belongs to this process, where `like` is shared out."""
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(
        whole, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


@torch.no_grad()
def collected(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], *, keep: bool = True
) -> dict[str, Tensor]:
    """Whole values on the CPU, one after the other; {} where they are not to be kept.

    Every process must call it, and with the same names in the same order.

    Args:
        tensors: This process's parts, or tensors that are shared out.
        like: Tensors that are shared out as these are, by the same names; others are whole.
    """
    found = {}
    for name, tensor in tensors.items():
        if name in like and not isinstance(tensor, DTensor):
            tensor = shared_out(tensor, like[name])
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if keep:
            found[name] = tensor.detach().cpu().contiguous()
    return found


@torch.no_grad()
def make_whole(model: nn.Module, *, keep: bool = True) -> None:
    """Gives a model its whole weights back, on the CPU; shapes alone where not `keep`.

    Every process must call it. It is not trained afterwards.
    """
    from torch.distributed.fsdp import FSDPModule

    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A class made on the spot, of FSDPModule and the module's own, which looks after parts.
            module.__class__ = type(module).__mro__[2]
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in done:  # tied weights stay tied
                whole = parameter.full_tensor()
                whole = whole.cpu() if keep else torch.empty_like(whole, device="meta")
                done[id(parameter)] = nn.Parameter(whole, parameter.requires_grad)
            module.register_parameter(name, done[id(parameter)])
    if done and keep:
        model.to("cpu")


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scales gradients down where they are longer than `most`; returns their length before."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm.item()


def shared_out(part: Tensor, like: Tensor) -> Tensor:
    """This process's part as a part of the whole, where `like` is shared out."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
