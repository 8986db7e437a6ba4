"""Which answers to one prompt mean the same."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.protocols import Task
from potstill.tasks.numbers import number
from potstill.tasks.options import comparable
from potstill.types import Record


def same_answer(prompt: Record, text: str, task: Task) -> str:
    """A key that is the same for answers that mean the same: by value for numbers."""
    prediction = task.parse(text, prompt)
    if prediction is None:
        return ""
    value = number(prediction)
    return f"{value[0]}{'%' if value[1] else ''}" if value else comparable(prediction)


def agreeing(prompt: Record, texts: Sequence[str], task: Task) -> list[list[int]]:
    """The numbers of the texts that mean the same, the largest group first.

    Of groups of one size the one with the earliest text comes first. A text that the task cannot
    read agrees with none, and is in no group.
    """
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        if key := same_answer(prompt, text, task):
            groups.setdefault(key, []).append(place)
    return sorted(groups.values(), key=len, reverse=True)
