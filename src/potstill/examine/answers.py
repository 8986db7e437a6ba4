"""Measures of one answer against one text, for every script."""

from __future__ import annotations

from potstill.tasks.words import normal_answer, words
from potstill.types import Sample

RUN = 4
"""Words in a row that count as copied rather than as shared vocabulary."""


def answer_text(sample: Sample) -> str:
    """What is compared word by word: the answer that was read, else all of the text.

    A cut answer is compared as far as it goes; it is still wrong for `accuracy`.
    """
    return sample.text if sample.prediction is None else sample.prediction


def exactly_equal(answer: str, reference: str) -> bool:
    """Whether both say the same; compared as written where nothing is left to compare."""
    one, other = normal_answer(answer), normal_answer(reference)
    return one == other if one or other else answer.strip() == reference.strip()


def copied_share(answer: str, prompt: str) -> float:
    """Share of the answer's runs of four words that stand in the prompt, in [0, 1]."""
    said, given = words(answer), words(prompt)
    length = min(RUN, len(said))
    if length == 0:
        return 0.0
    there = {tuple(given[i : i + length]) for i in range(len(given) - length + 1)}
    runs = [tuple(said[i : i + length]) for i in range(len(said) - length + 1)]
    return sum(run in there for run in runs) / len(runs)
