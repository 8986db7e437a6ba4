"""What is asked, how an answer is read, and when it is right."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.protocols import Task, resolve
from potstill.tasks.options import answer_set
from potstill.types import Record

__all__ = ["default_metrics", "get_task", "is_closed", "references_of", "target_of"]


def get_task(name: str) -> Task:
    """The task of that name, or your own as "module:attribute".

    Raises:
        ConfigError: If there is none; the message names the nearest.
    """
    return resolve("task", name)


def is_closed(records: Sequence[Record], task: Task | None = None) -> bool:
    """Whether every answer comes from a small set that is known before: labels or options."""
    if task is not None and task.closed:
        return True
    return bool(records) and all(answer_set(record) for record in records)


def default_metrics(task: Task, records: Sequence[Record]) -> tuple[str, ...]:
    """The task's default metrics for these records; the first is the one verdicts are on."""
    if task.name == "qa" and is_closed(records):
        return ("accuracy", "macro_f1")
    return task.default_metrics


def references_of(record: Record) -> tuple[str, ...]:
    """All accepted answers, the record's own reference first; empty where none is known."""
    own = [record.reference] if record.reference is not None else []
    for key in ("answers", "references"):
        listed = record.metadata.get(key)
        if isinstance(listed, list | tuple):
            own += [item for item in listed if isinstance(item, str) and item.strip()]
    return tuple(dict.fromkeys(own))


def target_of(task: Task, record: Record) -> str | None:
    """What the task reads out of the record's own reference; None where there is none."""
    return None if record.reference is None else task.parse(record.reference, record)
