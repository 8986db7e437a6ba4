"""Small honest training sets for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.config import TrainConfig
from potstill.data.render import Rendered, render
from potstill.rundir import RunDir
from potstill.types import Message

ANSWERS = {
    "Where is my order?": "It will arrive on Monday.",
    "May I return a gift?": "Yes, thirty days.",
    "How many apples are left?": "9",
    "Which of these is right?": "The answer is that a refund takes ten days.",
}


def rows(tokenizer, answers: dict[str, str] = ANSWERS) -> list[Rendered]:
    return [
        render(tokenizer, (Message(role="user", content=question),), answer)
        for question, answer in answers.items()
    ]


def tiny_student(folder: Path, *, layers: int = 2, hidden: int = 32, seed: int = 0):
    """A random Llama and its tokenizer, on one thread (many are slower at this size)."""
    torch.set_num_threads(1)
    path = tiny_llama(folder, layers=layers, hidden=hidden, seed=seed)
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def quick(**changes) -> TrainConfig:
    """fp32, constant rate, no early stopping: what is under test is said by `changes`."""
    plain = {
        "learning_rate": 3e-3,
        "batch_size": 4,
        "max_steps": 4,
        "precision": "fp32",
        "schedule": "constant",
        "warmup": 0.0,
        "early_stopping": False,
    }
    return TrainConfig(**{**plain, **changes})


def run_dir(path: Path) -> RunDir:
    path.mkdir(parents=True, exist_ok=True)
    return RunDir(path)
