"""The demo: a real teacher teaches a real student on this machine, in minutes.

A customer-support message goes in, a structured ticket comes out. The teacher is
SmolLM2-135M-Instruct, tuned here and now on a few hundred rows; it then answers a pool of
messages that it has not seen, and a student with fewer of its layers learns from that. From
there on everything is the ordinary pipeline, with a config file that can be read and changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.config import LossConfig, TrainConfig, load_config
from potstill.data.load import load_dataset
from potstill.data.render import Rendered, render
from potstill.demo.grading import EXPLAINED
from potstill.demo.recipe import FAST, FULL, Recipe, config_tree, teacher_training
from potstill.demo.tickets import tickets
from potstill.models.catalog import find_model
from potstill.pipeline import Event, distill
from potstill.rundir import RunDir, content_hash, write_text
from potstill.tasks import get_task
from potstill.types import Report

SPLITS = ("gold", "pool", "validation", "test")


def demo(
    folder: Path,
    *,
    fast: bool = False,
    gold_all: bool = False,
    seed: int = 0,
    teacher: dict[str, Any] | None = None,
    student: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Report:
    """Makes the data, the teacher and the config, and distils.

    Called again after an interruption it goes on where it was.

    Args:
        folder: Run folder; data and teacher are made inside it.
        fast: Fewer rows and steps; shows that everything works, not what it can do.
        gold_all: Also train a student on all known answers.
        seed: Decides data, order and resampling.
        teacher: A teacher of the user's own, as in a config; none is tuned then.
        student: Weights that the student is cut out of, instead of SmolLM2's.

    Raises:
        MissingExtra: If the package with SmolLM2's weights is not installed.
        PotstillError: As `distill`.
    """
    recipe = FAST if fast else FULL
    tell = on_event or (lambda event: None)
    inputs = RunDir(folder / "inputs")
    _write_data(inputs, recipe, seed, plain_teacher=teacher is None, tell=tell)
    own = teacher
    if own is None:
        train = teacher_training(recipe, seed)
        own = {"source": str(tune_teacher(inputs, student or recipe.base, train, tell=tell))}
    tree = config_tree(recipe, seed=seed, teacher=own, student=student, gold_all=gold_all)
    path = folder / "distill.yaml"
    text = _yaml(tree)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    report = distill(load_config(path), RunDir(folder), on_event=on_event)
    assert report is not None, "the demo has a test set, so it ends with a report"
    return report


def _yaml(tree: dict[str, Any]) -> str:
    import yaml

    head = "# The demo's distillation; change it and run:  potstill run THIS_FILE\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _write_data(
    inputs: RunDir, recipe: Recipe, seed: int, *, plain_teacher: bool, tell: Callable[[Event], None]
) -> None:
    key = content_hash(recipe.sizes, seed, plain_teacher)
    if inputs.is_done("tickets", key):
        return
    rows = tickets(seed, **recipe.sizes)
    for split in SPLITS:
        keep = [_without_answer(row) if split == "pool" else row for row in rows[split]]
        if split != "pool":
            keep = [_with_facts(row) for row in keep]
        if not plain_teacher:
            keep = [_explained(row) for row in keep]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in keep]
        write_text(inputs.path / f"{split}.jsonl", "".join(lines))
    counts = ", ".join(f"{len(rows[split]):,} {split}" for split in SPLITS)
    inputs.mark_done("tickets", key, text=counts)
    tell(Event(stage="tickets", kind="done", text=f"messages written: {counts}"))


def _without_answer(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the pool as the teacher gets it: the message alone."""
    return {key: row[key] for key in ("id", "messages")}


def _with_facts(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose answer is right, by the task's own rule, when it conveys all four fields."""
    fields = row["metadata"]
    facts = [fields["intent"], fields["item"], fields["time"], fields["urgency"]]
    return {**row, "metadata": {**fields, "facts": facts}}


def _explained(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a teacher that was not tuned here: the system message says what a ticket is."""
    message = [turn for turn in row["messages"] if turn["role"] != "system"]
    return {**row, "messages": [{"role": "system", "content": EXPLAINED}, *message]}


def tune_teacher(
    inputs: RunDir,
    base: str,
    train: TrainConfig,
    *,
    task: str = "conversation",
    tell: Callable[[Event], None],
) -> Path:
    """Tunes a model on `gold.jsonl` beside `validation.jsonl`; returns its folder, `model/`.

    Done once for the same data and settings; an interrupted tuning goes on.
    """
    ref = find_model(base)
    gold, validation = inputs.path / "gold.jsonl", inputs.path / "validation.jsonl"
    key = content_hash(train, ref.source, gold, validation)
    if inputs.is_done("teacher", key):
        text = inputs.facts("teacher").get("text", "")
        tell(Event(stage="teacher", kind="skipped", text=text))
        return inputs.model
    from potstill.models.weights import load_weights
    from potstill.train.checkpoint import remove_checkpoints
    from potstill.train.loop import fine_tune_student

    started = time.monotonic()
    tell(Event(stage="teacher", kind="start"))
    tell(Event(stage="teacher", kind="progress", done=0, text=f"reading {ref.name}"))
    model, tokenizer = load_weights(ref)
    rows, held_out = (_rendered(file, task, tokenizer, train) for file in (gold, validation))

    def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
        loss = figures.get("train/loss_nats")
        text = "" if loss is None else f"loss {loss:.3f}"
        tell(Event(stage="teacher", kind="progress", done=done, total=total, text=text))

    result = fine_tune_student(
        model,
        tokenizer,
        rows,
        held_out,
        loss=LossConfig(kind="sft"),
        train=train,
        targets=None,
        out=inputs,
        on_progress=progress,
    )
    text = f"{ref.name} tuned here on {len(rows):,} gold rows in {result.steps:,} steps"
    inputs.mark_done("teacher", key, **{**result.model_dump(), "text": text})
    remove_checkpoints(inputs.checkpoints)
    seconds = time.monotonic() - started
    tell(Event(stage="teacher", kind="done", text=text, seconds=seconds))
    return inputs.model


def _rendered(file: Path, task_name: str, tokenizer: Any, train: TrainConfig) -> list[Rendered]:
    task = get_task(task_name)
    rows = [
        render(tokenizer, turn.messages, turn.reference, max_tokens=train.max_tokens)
        for record in load_dataset(file, task=task_name)
        for turn in task.turns(record)
        if turn.reference is not None
    ]
    return [row for row in rows if row is not None]
