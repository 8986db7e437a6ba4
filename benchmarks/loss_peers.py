"""Do other libraries get the same losses and gradients? python benchmarks/loss_peers.py

Runs in an environment of its own that has TRL and torchtune beside torch (their packages are
used as they are installed; nothing of them is in this project):

    pip install torch==2.13.0 trl==1.16.0 torchtune==0.6.1 torchao==0.10.0
    PYTHONPATH=src python -P benchmarks/loss_peers.py --out docs/results/losses.md

-P, because `datasets.py` beside this file would hide the package of that name from TRL.

Random logits, standard deviation 3, of 64 positions over 5,003 tokens. Values and gradients of
ours, of the peer, and of the definition written out in float64; a difference is the largest
over all positions or coordinates.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.config import LossConfig
from potstill.train.fused import head_loss
from potstill.train.head import Head
from potstill.train.targets import TeacherHidden, TeacherLogits

N, V, H = 64, 5003, 40


class Case(NamedTuple):
    peer: str
    what: str
    loss: LossConfig
    ours: Callable[[Tensor], Tensor]
    """Student logits, or hidden states, to the sum of the loss."""

    theirs: Callable[[Tensor], Tensor]
    leaf: Tensor
    defined: Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        rows = [compare(case) for case in (*trl_logits(), *trl_chunked(), *torchtune_cases())]
    text = page(rows)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def identity(loss: LossConfig, teacher: Tensor) -> Callable[[Tensor], Tensor]:
    """Ours on logits: the head is the unit matrix, so that hidden states are the logits."""
    head, labels = Head(torch.eye(V)), torch.zeros(N, dtype=torch.int64)
    return lambda student: head_loss(student, head, labels, loss, TeacherLogits(teacher)).total


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def written_out(teacher: Tensor, loss: LossConfig) -> Callable[[Tensor], Tensor]:
    """The definition in float64."""
    log_p = (teacher.double() / loss.temperature).log_softmax(-1)

    def run(student: Tensor) -> Tensor:
        log_q = (student / loss.temperature).log_softmax(-1)
        if loss.kind == "forward_kl" or (loss.kind == "jsd" and loss.beta == 0):
            found = kl(log_p, log_q)
        elif loss.kind == "reverse_kl" or loss.beta == 1:
            found = kl(log_q, log_p)
        else:
            log_m = (loss.beta * log_p.exp() + (1 - loss.beta) * log_q.exp()).log()
            found = loss.beta * kl(log_p, log_m) + (1 - loss.beta) * kl(log_q, log_m)
        return loss.temperature**2 * found

    return run


def trl_logits() -> Iterator[Case]:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = 3 * numbers(N, V, seed=1), 3 * numbers(N, V, seed=2)
    for temperature in (1.0, 2.0):
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
            loss = LossConfig(
                kind="jsd", beta=beta, normalized=False, temperature=temperature, sft_weight=0
            )

            def theirs(x: Tensor, beta: float = beta, temperature: float = temperature) -> Tensor:
                found = GKDTrainer.generalized_jsd_loss(
                    x, teacher, beta=beta, temperature=temperature, reduction="sum"
                )
                return temperature**2 * found

            what = f"GKD generalized_jsd_loss × T², beta {beta:g}, T {temperature:g}"
            args = identity(loss, teacher), theirs, student, written_out(teacher, loss)
            yield Case("TRL", what, loss, *args)


def trl_chunked() -> Iterator[Case]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, told = numbers(N, H, seed=3), numbers(N, H + 8, seed=4)
    own, other = numbers(V, H, seed=5) / 2, numbers(V, H + 8, seed=6) / 2
    labels = torch.zeros(N, dtype=torch.int64)
    for cap in (None, 8.0):
        for beta in (0.0, 0.5, 1.0):
            loss = LossConfig(
                kind="jsd", beta=beta, normalized=False, temperature=2.0, sft_weight=0
            )
            target = TeacherHidden(told, Head(other, soft_cap=cap))

            def ours(x: Tensor, loss=loss, target=target, cap=cap) -> Tensor:
                return head_loss(x, Head(own, soft_cap=cap), labels, loss, target).total

            def theirs(x: Tensor, beta: float = beta, cap=cap) -> Tensor:
                heads = (x, own, None, told, other, None)
                found = ChunkedDivergenceFunction.apply(*heads, beta, 2.0, 1.0, cap, 1.0, cap)
                return 4.0 * found[0].sum()

            def defined(x: Tensor, loss=loss, cap=cap) -> Tensor:
                def bend(z: Tensor) -> Tensor:
                    return z if cap is None else cap * torch.tanh(z / cap)

                teacher = bend(F.linear(told.double(), other.double()))
                return written_out(teacher, loss)(bend(F.linear(x, own.double())))

            what = f"chunked_divergence × T², beta {beta:g}, T 2, soft cap {cap or 'none'}"
            yield Case("TRL", what, loss, ours, theirs, hidden, defined)


def torchtune_cases() -> Iterator[Case]:
    from torchtune.modules.loss import ForwardKLLoss, ReverseKLLoss

    student, teacher = 3 * numbers(N, V, seed=7), 3 * numbers(N, V, seed=8)
    labels = torch.zeros(N, dtype=torch.int64)
    told = teacher.log_softmax(-1)
    entropy = -(told.exp() * told).sum()
    for kind, function, known, what in (
        ("forward_kl", ForwardKLLoss(), entropy, "ForwardKLLoss - the teacher's entropy, T 1"),
        ("reverse_kl", ReverseKLLoss(), torch.zeros(()), "ReverseKLLoss, T 1"),
    ):
        loss = LossConfig(kind=kind, sft_weight=0)

        def theirs(x: Tensor, function=function, known=known) -> Tensor:
            return function(x, teacher, labels, normalize=False) - known

        args = identity(loss, teacher), theirs, student, written_out(teacher, loss)
        yield Case("torchtune", what, loss, *args)


def compare(case: Case) -> tuple[str, ...]:
    """A line of the table."""

    def of(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[float, Tensor]:
        leaf = case.leaf.detach().to(dtype, copy=True).requires_grad_()
        total = function(leaf)
        total.backward()
        return total.item() / N, leaf.grad.double()

    exact, gradient = of(case.defined, torch.float64)
    size = gradient.abs().max().item()
    cells = [case.peer, case.what, f"{exact:.5f}"]
    found = [of(function, torch.float32) for function in (case.ours, case.theirs)]
    values = [f"{abs(value - exact):.1e}" for value, _ in found]
    gradients = [f"{(here - gradient).abs().max().item() / size:.1e}" for _, here in found]
    between = (found[0][1] - found[1][1]).abs().max().item() / size
    return (*cells, *values, f"{abs(found[0][0] - found[1][0]):.1e}", *gradients, f"{between:.1e}")


def page(rows: list[tuple[str, ...]]) -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "trl", "torchtune")
    )
    lines = [
        "# Do other libraries get the same losses and gradients?",
        "",
        f"2026-11-22; `PYTHONPATH=src python -P benchmarks/loss_peers.py` in an environment with "
        f"{versions}. {N} positions, {V:,} tokens, float32, CPU. *Exact* is the definition "
        "written out in float64. Values are nats a position; gradient differences are the largest "
        "over all coordinates, in units of the largest coordinate.",
        "",
        "| peer | loss | exact value | ours - exact | theirs - exact | ours - theirs "
        "| gradient: ours - exact | theirs - exact | ours - theirs |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "What differs by definition, and was put right before comparing:",
        "",
        "- TRL's losses soften by the temperature and do not multiply by its square; here value "
        "and gradient are multiplied. Its generalised JSD is our `jsd` with `normalized: false`.",
        "- torchtune's `ForwardKLLoss` is a cross entropy: it lies above KL by the teacher's "
        "entropy. It has no temperature.",
        "",
        "Top-k, sampled, skewed and adaptive losses and total variation have no peer here; the "
        "tests compare them with their definitions in float64 (tests/train).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
