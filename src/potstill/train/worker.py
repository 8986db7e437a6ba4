"""One of several processes that train together: `python -m potstill.train.worker TASK.json`.

`train.together` starts it. It reports to its parent in lines of JSON on what was standard
output when it began; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from potstill.errors import PotstillError, TrainError
from potstill.models.weights import load_weights
from potstill.train.beside import load_teacher
from potstill.train.loop import fine_tune_student
from potstill.train.ranks import Ranks
from potstill.train.result import Figures, TrainResult
from potstill.train.together import Assignment, open_targets, read_rows


def work(task: Assignment, report: Any) -> TrainResult:
    """Trains as one of `task.size` processes."""
    has_gpus = torch.cuda.is_available()
    if has_gpus and task.size > torch.cuda.device_count():
        raise TrainError(
            f"train.processes: {task.size}, but this machine has {torch.cuda.device_count()} GPUs; "
            f"each process needs its own"
        )
    if has_gpus:
        torch.cuda.set_device(task.rank)
    dist.init_process_group(
        "nccl" if has_gpus else "gloo",
        init_method=f"file://{task.meeting_place}",
        rank=task.rank,
        world_size=task.size,
    )
    try:
        model, tokenizer = load_weights(task.weights)
        rows = read_rows(Path(task.rows))

        def progress(done: int, total: int, figures: Figures) -> None:
            report({"progress": [done, total, figures]})

        return fine_tune_student(
            model,
            tokenizer,
            rows[: task.num_train],
            rows[task.num_train :],
            loss=task.loss,
            train=task.train,
            targets=open_targets(Path(task.targets), tokenizer, task.loss),
            teacher=load_teacher(task.teacher, task.train.precision),
            out=SimpleNamespace(
                checkpoints=Path(task.checkpoints),
                metrics=Path(task.metrics),
                model=Path(task.model),
            ),
            on_progress=progress if task.rank == 0 else None,
            checkpoint_seconds=task.checkpoint_seconds,
            ranks=Ranks(task.rank, task.size),
        )
    finally:
        dist.destroy_process_group()


def main(file: str) -> int:
    """Does the task in a file; returns the exit code."""
    out = _own_output()

    def report(found: dict[str, Any]) -> None:
        out.write(json.dumps(found).encode() + b"\n")
        out.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = Assignment.model_validate_json(Path(file).read_text(encoding="utf-8"))
    try:
        result = work(task, report)
    except Exception as error:  # whatever it is, the parent must know why
        ours = isinstance(error, PotstillError)
        kind = type(error).__name__
        report({"error": {"kind": kind, "message": str(error), "ours": ours}})
        return 1
    if task.rank == 0:
        report({"result": result.model_dump(mode="json")})
    return 0


def _own_output() -> BinaryIO:
    """Standard output for reports alone; what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: then nobody would read the result."""
    # Not sys.stdin: a thread that waits inside its buffer would stop the interpreter's end.
    while os.read(0, 4096):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
