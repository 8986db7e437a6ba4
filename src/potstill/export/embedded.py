"""Folders of embedded engines, run for the parity gate, and what their exporters share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, GenerationConfig

from potstill.data.render import end_token_ids
from potstill.errors import ExportError, MissingExtra, PotstillError
from potstill.export.engine import Continuation, Step
from potstill.models.embedded import PACKAGES, Generated, is_installed, open_embedded
from potstill.models.weights import load_tokenizer
from potstill.types import Message, Sampling


def require(kind: str) -> None:
    """Raises MissingExtra where the engine of this format is not installed."""
    if not is_installed(kind):
        raise MissingExtra(
            f"exporting to {kind} needs {PACKAGES[kind]}, which also proves the artefact: "
            f'pip install "potstill[{kind}]"'
        )


def source_tokenizer(model_dir: Path) -> tuple[Any, list[int], int]:
    """Tokenizer, tokens that end an answer, and longest context of a model folder."""
    tokenizer = load_tokenizer(model_dir)
    config = AutoConfig.from_pretrained(model_dir).get_text_config()
    has_own = (model_dir / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(model_dir) if has_own else None
    return tokenizer, end_token_ids(tokenizer, generation), config.max_position_embeddings


def run_embedded(
    artefact: Path, prompts: Sequence[tuple[str, Sequence[int]]], num_tokens: int, num_top: int
) -> list[Continuation]:
    """Greedy answers of an artefact to rendered prompts: an `Engine` of `parity`.

    Raises:
        ExportError: If its engine cannot load it or ends while answering.
        MissingExtra: If the engine is not installed.
    """
    greedy = Sampling(max_new_tokens=num_tokens)
    try:
        engine = open_embedded(artefact.parent)
        return [
            Continuation(
                tuple(engine.encode(text)),
                _steps(engine.generate(ids, greedy, logits=True), num_top),
            )
            for text, ids in prompts
        ]
    except MissingExtra:
        raise
    except (PotstillError, RuntimeError, ValueError) as error:
        raise ExportError(f"{artefact}: the engine did not answer: {error}") from error


def own_turns(
    artefact: Path, conversations: Sequence[Sequence[Message]]
) -> tuple[tuple[int, ...], list[list[int]]]:
    """Its end tokens, and conversations through its own template and tokenizer."""
    try:
        engine = open_embedded(artefact.parent)
        return engine.end_ids, [engine.rendered(turns) for turns in conversations]
    except (PotstillError, RuntimeError, ValueError) as error:
        raise ExportError(f"{artefact}: its chat template does not work: {error}") from error


def _steps(answer: Generated, num_top: int) -> tuple[Step, ...]:
    assert answer.logits_TV is not None
    # In float64: a sum over a large vocabulary in float32 is off by more than the limits.
    logits_TV = answer.logits_TV.astype(np.float64)
    logits_TV -= logits_TV.max(axis=-1, keepdims=True)
    logits_TV -= np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
    steps = []
    for token, row_V in zip(answer.ids, logits_TV, strict=True):
        top = np.argsort(row_V)[-num_top:][::-1]
        steps.append(Step(token, {int(index): float(row_V[index]) for index in top}))
    return tuple(steps)
