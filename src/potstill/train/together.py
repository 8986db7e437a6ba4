"""Starts processes that train one student together, and waits for them.

The parent writes the rows to a file, starts `python -m potstill.train.worker` once a process,
and reads their reports: lines of JSON on standard output. When one of them fails or dies,
the others are ended and its reason is raised here. When the parent dies, their standard
input ends, and so do they.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill import errors
from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered, template_fingerprint, vocab_fingerprint
from potstill.errors import TrainError
from potstill.targets.store import TargetStore
from potstill.train.result import OnProgress, TrainPaths, TrainResult
from potstill.types import Noun

SECONDS_FOR_REASONS = 2.0
"""After the first failure: the reason of one process may arrive after another's complaint that
it is gone."""

MAPPED_BYTES = 2**20
"""With weights shared out: memory of this size goes back to the system at once. Layers come and go
with every part of a step, and glibc's heap would keep what they leave (docs/results/shard.md)."""


class Assignment(Noun):
    """What one of the processes is told."""

    rank: int
    size: int
    meeting_place: str
    """A file by which the processes find each other."""

    weights: str
    rows: str
    num_train: int
    """The first so many rows are trained on, the rest validate."""

    targets: str
    teacher: str | None = None
    """Folder of the teacher, where it runs beside the student."""

    loss: LossConfig
    train: TrainConfig
    checkpoints: str
    metrics: str
    model: str
    checkpoint_seconds: float


def fine_tune_together(
    weights: Path,
    train_rows: Sequence[Rendered],
    validation_rows: Sequence[Rendered],
    *,
    loss: LossConfig,
    train: TrainConfig,
    targets: Path,
    out: TrainPaths,
    teacher: Path | None = None,
    on_progress: OnProgress | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainResult:
    """Trains the student in `weights` in `train.processes` processes; see `fine_tune_student`.

    Args:
        targets: Folder of the teacher's probabilities; not read for `sft`.
        teacher: Folder of its weights, for `loss.hidden` and `loss.attention`; every process
            holds them.

    Raises:
        DataError, TrainError: What a process raised.
        TrainError: If a process ended in another way.
    """
    size = train.processes
    with tempfile.TemporaryDirectory(prefix="potstill-train-") as folder:
        rows = Path(folder) / "rows.npz"
        write_rows(rows, [*train_rows, *validation_rows])
        tasks = [
            Assignment(
                rank=rank,
                size=size,
                meeting_place=str(Path(folder) / "meeting"),
                weights=str(weights),
                rows=str(rows),
                num_train=len(train_rows),
                targets=str(targets),
                teacher=None if teacher is None else str(teacher),
                loss=loss,
                train=train,
                checkpoints=str(out.checkpoints),
                metrics=str(out.metrics),
                model=str(out.model),
                checkpoint_seconds=checkpoint_seconds,
            )
            for rank in range(size)
        ]
        with _started(tasks, Path(folder)) as workers:
            return _result(workers, on_progress)


def open_targets(folder: Path, tokenizer: Any, loss: LossConfig) -> TargetStore | None:
    """The teacher's probabilities as a student with this tokenizer learns them.

    None for a loss on text alone.
    """
    if loss.kind == "sft":
        return None
    return TargetStore(
        folder,
        vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        temperature=loss.temperature,
    )


def write_rows(path: Path, rows: Sequence[Rendered]) -> None:
    """Keeps rows as flat arrays."""
    np.savez(
        path,
        ids=np.concatenate([np.asarray(row.ids, dtype=np.int64) for row in rows]),
        mask=np.concatenate([np.asarray(row.loss_mask, dtype=np.int8) for row in rows]),
        lengths=np.asarray([len(row.ids) for row in rows]),
    )


def read_rows(path: Path) -> list[Rendered]:
    """The rows that `write_rows` kept."""
    with np.load(path, allow_pickle=False) as arrays:
        borders = np.cumsum(arrays["lengths"])[:-1]
        ids, masks = np.split(arrays["ids"], borders), np.split(arrays["mask"], borders)
    return [Rendered(i.tolist(), m.tolist()) for i, m in zip(ids, masks, strict=True)]


class _Workers:
    """The processes, and what they report."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]):
        self.processes = processes
        self.reports: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        for rank, process in enumerate(processes):
            threading.Thread(target=self._listen, args=(rank, process), daemon=True).start()

    def _listen(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            self.reports.put((rank, json.loads(line)))
        self.reports.put((rank, {"ended": process.wait()}))


@contextlib.contextmanager
def _started(tasks: Sequence[Assignment], folder: Path) -> Iterator[_Workers]:
    """Runs a process for each task; none of them is left behind."""
    processes: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _LO)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // len(tasks))))
    if any(task.train.shard for task in tasks):
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(MAPPED_BYTES))
    try:
        for task in tasks:
            file = folder / f"task-{task.rank}.json"
            file.write_text(task.model_dump_json(), encoding="utf-8")
            command = [sys.executable, "-m", "potstill.train.worker", str(file)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            # Ctrl-C is for the parent; a process ends when its standard input does.
            processes.append(
                subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
            )
        yield _Workers(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _result(workers: _Workers, on_progress: OnProgress | None) -> TrainResult:
    """Passes progress on until the first process has its result and all have ended."""
    result: TrainResult | None = None
    running = len(workers.processes)
    while running:
        rank, report = workers.reports.get()
        if "progress" in report and on_progress is not None:
            on_progress(*report["progress"])
        elif "result" in report:
            result = TrainResult.model_validate(report["result"])
        elif report.get("ended") == 0:
            running -= 1
        elif "error" in report or "ended" in report:
            raise _reason(workers, rank, report)
    if result is None:
        raise TrainError("the first of the training processes ended without a result")
    return result


def _reason(workers: _Workers, rank: int, report: dict[str, Any]) -> errors.PotstillError:
    """Why training ended, from all that is reported in the next moment."""
    found = [(rank, report)]
    end = time.monotonic() + SECONDS_FOR_REASONS
    with contextlib.suppress(queue.Empty):
        while (left := end - time.monotonic()) > 0:
            found.append(workers.reports.get(timeout=left))
    told = {rank for rank, report in found if "error" in report}
    for _, report in found:
        if (error := report.get("error")) and error["ours"]:
            return getattr(errors, error["kind"], TrainError)(error["message"])
    size = len(workers.processes)
    for rank, report in found:
        if report.get("ended", 0) != 0 and rank not in told:
            how = _how(report["ended"])
            return TrainError(f"training process {rank + 1} of {size} {how}; the others were ended")
    errors_told = [(rank, report["error"]) for rank, report in found if "error" in report]
    rank, error = errors_told[0]
    return TrainError(
        f"training process {rank + 1} of {size} failed: {error['kind']}: {error['message']}"
    )


def _how(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_LO = "lo0" if sys.platform == "darwin" else "lo"
