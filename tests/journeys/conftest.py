"""A teacher that knows the answers of a page, and a student that does not: both tiny."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def teach_tiny(tmp_path_factory):
    """Makes a tiny teacher that has learnt the known answers of a data file by heart."""
    from tiny import tiny_llama

    from potstill.config import LossConfig, TrainConfig
    from potstill.data.load import load_dataset
    from potstill.data.render import render
    from potstill.models.weights import load_weights
    from potstill.rundir import RunDir
    from potstill.tasks import get_task
    from potstill.train.loop import fine_tune_student

    def teach(data: Path, task_name: str, steps: int = 150) -> Path:
        folder = tmp_path_factory.mktemp("teacher")
        model, tokenizer = load_weights(tiny_llama(folder / "random", hidden=64))
        task = get_task(task_name)
        rows = [
            render(tokenizer, turn.messages, turn.reference)
            for record in load_dataset(data, task=task_name)
            for turn in task.turns(record)
        ]
        settings = TrainConfig(
            learning_rate=1e-2,
            max_steps=steps,
            batch_size=len(rows),
            precision="fp32",
            early_stopping=False,
        )
        fine_tune_student(
            model,
            tokenizer,
            rows,
            [],
            loss=LossConfig(kind="sft"),
            train=settings,
            targets=None,
            out=RunDir(folder),
        )
        return folder / "model"

    return teach
