"""Summaries, compared with one or more references."""

from __future__ import annotations

import dataclasses

from potstill.tasks.asking import ask, fields_of
from potstill.tasks.facts import agrees
from potstill.tasks.reading import visible
from potstill.types import Record


@dataclasses.dataclass(frozen=True)
class Summarization:
    """Verdicts are on ROUGE-L; accuracy is the rule of conversations, best over references."""

    name: str = "summarization"
    default_metrics: tuple[str, ...] = (
        "rouge_l",
        "rouge_1",
        "rouge_2",
        "length_ratio",
        "copy_rate",
        "accuracy",
    )
    closed: bool = False

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The record, with an instruction where it is a bare document."""
        if "document" not in fields_of(record):
            return (record,)
        return (ask(record, before="Summarise the text in a few sentences.", name="Text"),)

    def parse(self, text: str, record: Record) -> str | None:
        """The summary, without thoughts in front of it."""
        return visible(text) or None

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 where any reference's hard facts are conveyed, or ROUGE-L F1 is at least 0.5."""
        listed = record.metadata.get("references")
        more = [text for text in listed if text] if isinstance(listed, list | tuple) else []
        references = [*([record.reference] if record.reference else []), *more]
        if not references:
            return None
        if prediction is None:
            return 0.0
        return float(agrees(prediction, references))


summarization = Summarization()
