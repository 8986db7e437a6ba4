"""Labels: natural language inference and classification."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from potstill.data.words import fold
from potstill.errors import DataError
from potstill.tasks.asking import ask, fields_of
from potstill.tasks.options import comparable, labels_of, read_label
from potstill.tasks.reading import bare, spans
from potstill.types import Record

NLI_LABELS = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A task whose answer is one label of a set."""

    name: str
    default_metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    closed: bool = True
    labels: tuple[str, ...] = ()
    """The set where neither the record's metadata nor its prompt gives one."""

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The record, with the question and the labels where it is bare fields.

        Raises:
            DataError: If the fields are bare and no labels are known.
        """
        fields = fields_of(record)
        if "premise" in fields:
            return (
                ask(
                    record,
                    after=f"How does the hypothesis relate to the premise? {self._one_of(record)}",
                ),
            )
        if "text" in fields:
            return (
                ask(
                    record, before=f"Which label fits the text? {self._one_of(record)}", name="Text"
                ),
            )
        return (record,)

    def _one_of(self, record: Record) -> str:
        labels = self.label_set(record)
        if not labels:
            raise DataError(
                f"record {record.id}: no labels are known to choose from; give metadata.labels, "
                f"or labels in the rows of the file"
            )
        return f"Answer with one of: {', '.join(labels)}."

    def label_set(self, record: Record) -> tuple[str, ...]:
        """The labels a record allows; empty where nobody says."""
        return labels_of(record) or self.labels

    def parse(self, text: str, record: Record) -> str | None:
        """The one label that the text says; None for none and for two.

        Without a known label set it is the most explicit short piece of the text.
        """
        labels = self.label_set(record)
        if labels:
            return read_label(text, labels)
        short = (bare(span.text) for span in spans(text) if len(span.text.split()) <= 8)
        return next((piece for piece in short if piece), None)

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 where the label is the reference's."""
        label = record.metadata.get("label", record.reference)
        if label is None:
            return None
        if prediction is None:
            return 0.0
        gold = str(label)
        same = comparable(prediction) == comparable(gold) or fold(prediction) == fold(gold)
        return float(same)


nli = Choice("nli", labels=NLI_LABELS)
classification = Choice("classification")


def with_labels(task: Choice, labels: Sequence[str]) -> Choice:
    """The task with a label set for records that bring none."""
    return dataclasses.replace(task, labels=tuple(labels))


def label_records(records: Iterable[Record], labels: Sequence[str] | None = None) -> list[Record]:
    """Records that all name the same label set in `metadata["labels"]`.

    Call it on training and test records together, so that both are asked with one prompt.

    Args:
        labels: The set; by default all labels that the records have, sorted.
    """
    records = list(records)
    if labels is None:
        found = {str(r.metadata.get("label", r.reference)) for r in records if _labelled(r)}
        labels = sorted(found)
    return [
        record.model_copy(update={"metadata": {**record.metadata, "labels": list(labels)}})
        for record in records
    ]


def _labelled(record: Record) -> bool:
    return record.metadata.get("label", record.reference) is not None
