"""Questions with options and without."""

from __future__ import annotations

import dataclasses

from potstill.tasks.asking import ask, fields_of
from potstill.tasks.options import comparable, labels_of, options_of, read_label, read_option
from potstill.tasks.reading import ANSWER_CUE, bare, spans, visible
from potstill.tasks.words import normal_answer
from potstill.types import Record


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """Closed where a record has options or a label set, else open with short answers.

    Closed answers are right when they choose the right option, open ones when they equal an
    accepted answer after folding case, punctuation and articles away (exact match).
    """

    name: str = "qa"
    default_metrics: tuple[str, ...] = ("accuracy", "exact_match", "f1")
    closed: bool = False

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The record, with an instruction where it is bare fields."""
        fields = fields_of(record)
        if "choices" in fields:
            return (ask(record, after="Answer with the letter of the right option only."),)
        if "context" in fields:
            instruction = "Read the passage and answer the question with a short phrase from it."
            return (ask(record, before=instruction),)
        if "question" in fields:
            instruction = "Answer the question with a short phrase."
            return (ask(record, before=instruction, name="Question"),)
        return (record,)

    def parse(self, text: str, record: Record) -> str | None:
        """An option's letter, a label, or the short answer inside the text."""
        if options := options_of(record):
            return read_option(text, options)
        if labels := labels_of(record):
            return read_label(text, labels)
        return _short_answer(text)

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 for the right option, or for any of the accepted answers."""
        if record.reference is None:
            return None
        if prediction is None:
            return 0.0
        if options_of(record) or labels_of(record):
            gold = self.parse(record.reference, record) or record.reference
            return float(comparable(prediction) == comparable(gold))
        listed = record.metadata.get("answers")
        accepted = [*(listed if isinstance(listed, list | tuple) else ()), record.reference]
        forms = {normal_answer(str(answer)) for answer in accepted}
        return float(normal_answer(prediction) in forms or prediction.strip() in accepted)


def _short_answer(text: str) -> str | None:
    """What a text marks as its answer, else its first line."""
    seen = visible(text)
    explicit = next((bare(span.text) for span in spans(seen, ANSWER_CUE) if span.explicit), "")
    if explicit:
        return explicit
    first = next((line for line in seen.splitlines() if bare(line)), seen)
    return first.strip().strip("*_`\"' \t") or None


qa = QuestionAnswering()
