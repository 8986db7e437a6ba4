"""What head and loss cost without logits for all positions: python benchmarks/head.py

One synthetic shape, random numbers. Every measurement is a process of its own: it makes the
inputs, tries the loss on a sixteenth of the positions, and then measures value and gradients
of the whole, once. The ways to compute them take turns, so that all see the same machine.

    plain          all logits, torch's own functions and autograd
    checkpointed   slices of 512 positions, logits computed again in the backward pass
    ours           potstill.train.fused
    trl            trl.kernels.chunked_divergence, the loss of TRL's distillation trainer
    torchtune      ForwardKLWithChunkedOutputLoss on logits in 8 parts

The last two need their packages: --peers names an interpreter that has them. Each teacher is
in the form that the way takes: `dense` is hidden states and a head, `topk` 64 stored tokens,
`none` labels alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARMS = {
    "dense": ("plain", "checkpointed", "ours", "trl", "torchtune"),
    "topk": ("plain", "checkpointed", "ours"),
    "none": ("plain", "checkpointed", "ours"),
}
K = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[4096, 49152, 576], metavar="N V H")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--teachers", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--ways", nargs="+", help="only these ways")
    parser.add_argument("--peers", help="interpreter with trl and torchtune")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options)))
        return
    found: dict[tuple[str, str], list[dict]] = {}
    for _ in range(options.rounds):
        for teacher in options.teachers:
            for way in options.ways or ARMS[teacher]:
                if way in ARMS[teacher] and (options.peers or way not in ("trl", "torchtune")):
                    found.setdefault((teacher, way), []).append(apart(teacher, way, options))
    print(table(found, options))


def apart(teacher: str, way: str, options: argparse.Namespace) -> dict:
    """One measurement in a process of its own."""
    python = options.peers if way in ("trl", "torchtune") else sys.executable
    # -P: `datasets.py` beside this file would hide the package of that name from trl.
    command = [python, "-P", __file__, "--measure", teacher, way, "--dtype", options.dtype]
    command += ["--threads", str(options.threads), "--shape", *map(str, options.shape)]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{teacher} {way} failed:\n{done.stderr[-2000:]}")
    line = json.loads(done.stdout.splitlines()[-1])
    print(teacher, way, line, file=sys.stderr, flush=True)
    return line


def measure(teacher: str, way: str, options: argparse.Namespace) -> dict:
    """Seconds and extra peak memory of value and gradients."""
    import torch

    torch.set_num_threads(options.threads)
    N, V, H = options.shape
    inputs = make_inputs(teacher, N, V, H, getattr(torch, options.dtype))
    run = WAYS[way](teacher)
    small = {k: v[: N // 16] if len(v) == N else v for k, v in inputs.items()}
    gradients_of(run, small)
    before = resident_bytes()
    start = time.perf_counter()
    loss, hidden_gradient, head_gradient = gradients_of(run, inputs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(seconds, 3),
        "extra_peak_mib": round((peak - before) / 2**20, 1),
        "loss_nats": round(loss, 6),
        "hidden_gradient_norm": round(hidden_gradient, 6),
        "head_gradient_norm": round(head_gradient, 6),
    }


def gradients_of(run, inputs) -> tuple[float, float, float]:
    """Mean loss, and the norms of both gradients."""
    leaves = [inputs[name].detach().requires_grad_() for name in ("hidden", "weight")]
    loss = run(*leaves, inputs) / len(leaves[0])
    loss.backward()
    return loss.item(), *(leaf.grad.float().norm().item() for leaf in leaves)


def make_inputs(teacher: str, N: int, V: int, H: int, dtype):
    """Hidden states of norm one, heads whose logits have a standard deviation near 3."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, scale: float):
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    inputs = {
        "hidden": numbers(N, H, scale=1.0),
        "weight": numbers(V, H, scale=3 * H**-0.5),
        "labels": torch.randint(V, (N,), generator=generator),
    }
    if teacher == "dense":
        inputs |= {
            "told_hidden": numbers(N, H, scale=1.0),
            "told_weight": numbers(V, H, scale=3 * H**-0.5),
        }
    if teacher == "topk":
        first = torch.randint(V, (N, 1), generator=generator)
        ids = (first + V // K * torch.arange(K)) % V  # distinct along K
        scores = torch.randn(N, K, generator=generator) * 2
        inputs |= {"ids": ids, "logprobs": scores.log_softmax(-1) - 0.05}
    return inputs


def plain(teacher: str):
    return lambda hidden, weight, inputs: written_out(hidden, weight, inputs, teacher)


def checkpointed(teacher: str):
    from torch.utils.checkpoint import checkpoint

    def run(hidden, weight, inputs):
        total = 0.0
        for start in range(0, len(hidden), 512):
            rows = slice(start, start + 512)
            part = {k: v[rows] if len(v) == len(hidden) else v for k, v in inputs.items()}
            total = total + checkpoint(
                written_out, hidden[rows], weight, part, teacher, use_reentrant=False
            )
        return total

    return run


def written_out(hidden, weight, inputs, teacher: str):
    """Forward KL, or cross entropy, by torch's own functions on all logits."""
    import torch
    import torch.nn.functional as F

    logits = F.linear(hidden, weight).float()
    if teacher == "none":
        return F.cross_entropy(logits, inputs["labels"], reduction="sum")
    log_q = logits.log_softmax(-1)
    if teacher == "dense":
        told = F.linear(inputs["told_hidden"], inputs["told_weight"]).float()
        return F.kl_div(log_q, told.log_softmax(-1), reduction="sum", log_target=True)
    kept, p = log_q.gather(-1, inputs["ids"]), inputs["logprobs"].exp()
    rest, left = 1 - p.sum(-1), 1 - kept.exp().sum(-1)
    return (p * (inputs["logprobs"] - kept)).sum() + (
        torch.xlogy(rest, rest) - rest * left.clamp_min(1e-9).log()
    ).sum()


def ours(teacher: str):
    from potstill.config import LossConfig
    from potstill.train.fused import head_loss
    from potstill.train.head import Head
    from potstill.train.targets import TeacherHidden, TopK

    loss = LossConfig(kind="sft" if teacher == "none" else "forward_kl", sft_weight=0)

    def run(hidden, weight, inputs):
        target = None
        if teacher == "dense":
            target = TeacherHidden(inputs["told_hidden"], Head(inputs["told_weight"]))
        if teacher == "topk":
            target = TopK(inputs["ids"], inputs["logprobs"])
        return head_loss(hidden, Head(weight), inputs["labels"], loss, target).total

    return run


def trl(teacher: str):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def run(hidden, weight, inputs):
        told = (inputs["told_hidden"], inputs["told_weight"], None)
        return ChunkedDivergenceFunction.apply(hidden, weight, None, *told, 0.0)[0].sum()

    return run


def torchtune(teacher: str):
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    function = ForwardKLWithChunkedOutputLoss(num_output_chunks=8)

    def run(hidden, weight, inputs):
        own = [part @ weight.T for part in hidden[None].chunk(8, dim=1)]
        told = [part @ inputs["told_weight"].T for part in inputs["told_hidden"][None].chunk(8, 1)]
        return function(own, told, inputs["labels"][None]) * len(hidden)

    return run


WAYS = {
    "plain": plain,
    "checkpointed": checkpointed,
    "ours": ours,
    "trl": trl,
    "torchtune": torchtune,
}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def table(found: dict[tuple[str, str], list[dict]], options: argparse.Namespace) -> str:
    """Medians as Markdown, with the ratio to plain in the same run."""
    N, V, H = options.shape
    lines = [
        f"N = {N:,}, V = {V:,}, H = {H:,}, {options.dtype}, {options.threads} threads, "
        f"medians of {options.rounds} (range)",
        "",
        "| teacher | way | seconds | / plain | extra peak, MiB | loss, nats |",
        "|---|---|---|---|---|---|",
    ]
    for (teacher, way), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        middle = statistics.median(seconds)
        plain_runs = found.get((teacher, "plain"))
        ratio = "–"
        if plain_runs:
            ratio = f"{middle / statistics.median(run['seconds'] for run in plain_runs):.2f}"
        memory = statistics.median(run["extra_peak_mib"] for run in runs)
        lines.append(
            f"| {teacher} | {way} | {middle:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | {ratio} "
            f"| {memory:,.0f} | {runs[0]['loss_nats']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
