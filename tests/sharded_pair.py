"""One of two processes that try trainings alone and shared out: sharded_pair.py RANK FOLDER.

FOLDER holds `student` and `teacher`; each case's figures and files go into a folder of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from training import quick, rows, run_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import LossConfig, TrainConfig
from potstill.train.loop import Training, fine_tune_student
from potstill.train.ranks import Ranks
from potstill.train.shard import local

# The last step of an epoch has a single row: one of the two has nothing to do.
PLAIN = {"batch_size": 3, "max_steps": 5, "eval_steps": 2}
BOTH = LossConfig(hidden={"kind": "cosine", "weight": 0.5}, attention={"weight": 0.1})
CASES: dict[str, tuple[dict, LossConfig]] = {
    "plain": (PLAIN, LossConfig()),
    "averaged, parts of one row": (
        {**PLAIN, "ema": 0.5, "micro_batch_size": 1, "packing": False},
        LossConfig(),
    ),
    "packed": ({**PLAIN, "packing": True}, LossConfig()),
    "twice": ({**PLAIN, "gradient_checkpointing": True}, LossConfig()),
    "frozen": ({**PLAIN, "freeze_embeddings": True, "freeze_layers": 1}, LossConfig()),
    "adapter": ({**PLAIN, "adapter": {"r": 4, "dropout": 0.0}}, LossConfig()),
    "layers": (PLAIN, BOTH),
    "sgd": ({**PLAIN, "optimizer": "sgd"}, LossConfig()),
    "bf16": ({**PLAIN, "precision": "bf16"}, LossConfig()),
}


class Stopped(Exception):
    """In the middle of a training."""


def train(folder: Path, out: Path, settings: dict, loss: LossConfig, ranks: Ranks, stop: int = 0):
    """Figures of each step, and the step it went on from; ends after `stop` steps where given."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    teacher = None
    if loss.needs_teacher:
        teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    told = []

    def progress(done: int, _total: int, figures: dict) -> None:
        told.append(figures)
        if done == stop:
            raise Stopped

    known = rows(tokenizer)
    config = quick(**settings, processes=ranks.size, shard=ranks.size > 1)
    result = fine_tune_student(
        model,
        tokenizer,
        known,
        known[:3],
        loss=loss,
        train=config,
        targets=None,
        teacher=teacher,
        out=run_dir(out),
        on_progress=progress,
        checkpoint_seconds=0.0 if stop else 60.0,
        ranks=ranks,
    )
    return told, result.resumed_from


def stopped(folder: Path, out: Path, settings: dict, ranks: Ranks) -> None:
    """A training that ends after its fourth step, whose last checkpoint is of the third."""
    try:
        train(folder, out, settings, LossConfig(), ranks, stop=4)
    except Stopped:
        return
    raise AssertionError("it was not stopped")


def numbers_held(folder: Path, ranks: Ranks) -> list[int]:
    """Numbers of the weights, and of what the optimizer keeps: here, and of the whole."""
    model = AutoModelForCausalLM.from_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    config = TrainConfig(**{**PLAIN, "processes": 2, "shard": True, "precision": "fp32"})
    from potstill.train.student import prepare_student

    student = prepare_student(model, config, torch.device("cpu"))
    known = rows(tokenizer)
    training = Training(student, tokenizer, known, [], LossConfig(), config, None, ranks)
    training.step()
    weights = list(model.parameters())
    kept = [
        value
        for state in training.optimizer.state.values()
        for value in state.values()
        if value.ndim
    ]
    return [
        sum(local(p).numel() for p in weights),
        sum(p.numel() for p in weights),
        sum(local(value).numel() for value in kept),
        sum(value.numel() for value in kept),
    ]


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    ranks = Ranks(rank, 2)
    found: dict = {"held": numbers_held(folder, ranks)}
    for name, (settings, loss) in CASES.items():
        both, _ = train(folder, folder / name / "both", settings, loss, ranks)
        if rank == 0:
            one, _ = train(folder, folder / name / "one", settings, loss, Ranks())
            found[name] = {"one": one, "both": both}
    for first, second in (("both", "both"), ("both", "one"), ("one", "both")):
        settings = {**PLAIN, "ema": 0.5, "max_steps": 7}
        out = folder / f"{first}, then {second}"
        if first == "both" or rank == 0:
            stopped(folder, out, settings, ranks if first == "both" else Ranks())
        dist.barrier()
        if second == "both" or rank == 0:
            who = ranks if second == "both" else Ranks()
            found[out.name] = train(folder, out, settings, LossConfig(), who)[1]
        dist.barrier()
    if rank == 0:
        train(folder, folder / "whole", settings, LossConfig(), Ranks())
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a training wrote."""
    return load_file(run_dir(folder).model / "model.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
