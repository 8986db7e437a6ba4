"""How much memory the head takes, counted byte by byte: no page of the system blurs it."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from potstill.config import LossConfig
from potstill.train.fused import head_loss
from potstill.train.head import Head
from potstill.train.targets import Sampled, TeacherHidden, TeacherLogits, TopK

V, H = 2003, 24
SLICE = 64 * V * 4
"""Bytes for the logits of a slice."""


class Counted(TorchDispatchMode):
    """Bytes of all tensors made inside, while they live, and the largest of them."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tensors(made)):
            place, num_bytes = storage.data_ptr(), storage.nbytes()
            if num_bytes and place not in given and place not in self.known:
                self.known.add(place)
                self.live += num_bytes
                self.peak = max(self.peak, self.live)
                self.largest = max(self.largest, num_bytes)
                weakref.finalize(storage, self.gone, place, num_bytes)
        return made

    def gone(self, place, num_bytes):
        self.known.discard(place)
        self.live -= num_bytes


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def target(kind, num):
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(8).expand(num, -1).contiguous()
    return {
        "none": None,
        "topk": TopK(ids, torch.full((num, 8), -3.0)),
        "sampled": Sampled(ids, torch.full((num, 8), 1 / 8)),
        "hidden": TeacherHidden(
            torch.randn(num, 20, generator=generator), Head(torch.randn(V, 20, generator=generator))
        ),
    }[kind]


def counted(kind, num, loss, told=None):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num, H, generator=generator).requires_grad_()
    head = Head(torch.randn(V, H, generator=generator).requires_grad_())
    labels, told = torch.zeros(num, dtype=torch.int64), told or target(kind, num)
    with Counted() as found:
        head_loss(hidden, head, labels, loss, told, slice_bytes=SLICE).total.backward()
    assert hidden.grad is not None and head.weight_VH.grad is not None
    return found


@pytest.mark.parametrize("num", [100, 600, 2500])
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("none", "sft"),
        ("topk", "reverse_kl"),
        ("sampled", "forward_kl"),
        *(("hidden", kind) for kind in ("forward_kl", "jsd", "adaptive_kl", "total_variation")),
    ],
)
def test_memory_is_that_of_both_gradients_and_two_slices_however_many_positions(kind, loss, num):
    found = counted(kind, num, LossConfig(kind=loss, temperature=2.0))
    gradients = 4 * H * (num + V)
    of_positions = 64 * num  # losses and labels: a few numbers each, no vocabulary
    assert found.peak <= gradients + 2 * SLICE + of_positions
    assert found.largest <= max(4 * H * max(num, V), SLICE)


def test_the_count_sees_logits_that_are_made_as_a_whole():
    """The measure itself: plain torch takes several times positions x vocabulary."""
    with Counted() as found:
        logits = torch.randn(500, V, requires_grad=True)
        (logits.log_softmax(-1)[:, 0]).sum().backward()
    assert found.largest >= 500 * V * 4
    assert found.peak >= 2 * 500 * V * 4
    assert found.live < found.peak


def test_logits_of_a_teacher_are_read_in_slices_too():
    generator = torch.Generator().manual_seed(2)
    told = TeacherLogits(torch.randn(1000, V, generator=generator))
    found = counted("logits", 1000, LossConfig(kind="forward_kl"), told)
    assert found.peak <= 4 * H * (1000 + V) + 2 * SLICE + 64 * 1000
