"""What runs an artefact so that it can be compared: the shape of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from potstill.types import Message


class Step(NamedTuple):
    """One generated token."""

    token: int
    top: dict[int, float]
    """Log-probabilities of the most probable tokens, nats, without any sampling applied.
    Empty where the engine does not tell them."""


class Continuation(NamedTuple):
    """What an engine made of one prompt."""

    prompt_ids: tuple[int, ...]
    """The prompt's text cut up by the artefact's own tokenizer."""

    steps: tuple[Step, ...]


Engine = Callable[[Path, Sequence[tuple[str, Sequence[int]]], int, int], list[Continuation]]
"""(artefact, [(text, ids) of each prompt], tokens, top tokens) -> a continuation for each."""

OwnTurns = Callable[[Path, Sequence[Sequence[Message]]], tuple[tuple[int, ...], list[list[int]]]]
"""(artefact, conversations) -> its end tokens, and the ids of each conversation as a prompt."""
