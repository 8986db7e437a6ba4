"""Data files to records. All problems of a file are told at once, each with its line."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potstill.data.answers import BadRow
from potstill.data.logs import is_answer_row, joined, read_log
from potstill.data.read import Row, as_json, iter_rows
from potstill.data.select import Selection
from potstill.data.shapes import KNOWN, Shape, read_shape
from potstill.errors import DataError
from potstill.types import Message, Record

Source = Path | str | Sequence[Path | str | Mapping[str, Any] | Record]

MOST_TOLD = 5
"""Problems that a message spells out; the rest is counted."""

MOST_LABELS = 500
"""Above this many different labels they are no label set but free text."""

_CUE = re.compile(
    r"(?:^|\n)[ \t]*[*_]*(?:the )?(?:correct |right |gold |final )?"
    r"(?:answer|label|response|completion|output|solution|summary|translation"
    r"|उत्तर|जवाब|लेबल|ഉത്തരം|答案|回答|答え|ответ|antwort|réponse|respuesta)"
    r"[ \t]*(?:is[ \t]*)?[:：=][*_]*\s*\Z",
    re.IGNORECASE,
)
"""The end of a line that gives the answer away."""


_AROUND = " .。!?\"'`*()[]"


class _Found(NamedTuple):
    where: str
    record: Record | None
    problem: str
    own_id: bool


def load_dataset(
    path: Source,
    *,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    selection: Selection | None = None,
) -> list[Record]:
    """Records of one or more files (or of rows in memory), in their order.

    Rows without an id get a hash of their content, so equal rows have equal ids; `split`
    drops the later ones. Labels of bare rows are gathered into `metadata["labels"]`.

    Args:
        path: A JSONL, JSON, CSV, Parquet or text file; or a list of files, rows or records.
        columns: What a column is called there: `{"prompt": "frage"}`.
        task: Name of the task, for rows that are a bare text.
        selection: Which rows are taken, and as what; it counts those that were not.

    Raises:
        DataError: If anything in it cannot be used. The message names the first five rows
            with their lines and counts the rest. Two rows with one id must be equal.
    """
    selection = selection or Selection()
    problems = _Problems(path, selection)
    records: list[Record] = []
    places: dict[str, tuple[str, Record]] = {}
    for found in _found(path, columns or {}, task, selection):
        if found.record is None:
            problems.add(found.where, found.problem)
            continue
        problems.num_rows += 1
        first_place, first = places.setdefault(found.record.id, (found.where, found.record))
        if found.own_id and not _same_content(first, found.record):
            problems.add(
                found.where,
                f"the id {found.record.id!r} is taken by another row, {first_place}; make ids "
                f"unique, or leave them out to have them made from the content",
                counted=True,
            )
            continue
        records.append(found.record)
    problems.raise_if_any()
    return _with_label_sets(records)


def iter_records(
    path: Source, *, columns: Mapping[str, str] | None = None, task: str | None = None
) -> Iterator[Record]:
    """Records one by one, for files larger than memory.

    After the first problem nothing more is given; the rest is read to count and name the
    others. What needs all rows at once is left out: ids are not compared, and labels are not
    gathered.

    Raises:
        DataError: At the end, if a row cannot be used.
    """
    selection = Selection()
    problems = _Problems(path, selection)
    for found in _found(path, columns or {}, task, selection):
        if found.record is None:
            problems.add(found.where, found.problem)
            continue
        problems.num_rows += 1
        if not problems.total:
            yield found.record
    problems.raise_if_any()


class _Problems:
    """What is wrong with a source, gathered into one message."""

    def __init__(self, source: Source, selection: Selection):
        self.selection = selection
        self.name = str(source) if isinstance(source, str | os.PathLike) else "the data"
        self.told: list[str] = []
        self.total = 0
        self.num_rows = 0

    def add(self, where: str, problem: str, *, counted: bool = False) -> None:
        self.total += 1
        self.num_rows += not counted
        if len(self.told) < MOST_TOLD:
            self.told.append(f"{where}: {problem}")

    def raise_if_any(self) -> None:
        if self.total == 1:
            raise DataError(self.told[0])
        if self.total:
            more = self.total - len(self.told)
            told = "\n".join(f"  {line}" for line in self.told)
            rest = f"\n  and {more:,} more" if more else ""
            raise DataError(
                f"{self.name}: {self.total:,} of {self.num_rows:,} rows cannot be used:\n"
                f"{told}{rest}"
            )
        if not self.num_rows:
            left_out = f", {self.selection} left out" if self.selection.left_out else ""
            raise DataError(f"{self.name}: no rows{left_out}; it needs one row for each prompt")


def _found(
    source: Source, columns: Mapping[str, str], task: str | None, selection: Selection
) -> Iterator[_Found]:
    _check_columns(columns)
    absent = set(columns.values())
    for row in selection.take(_rows(source, selection)):
        if isinstance(row.value, Mapping):
            absent -= row.value.keys()
        if isinstance(row.value, Record):
            yield _Found(row.where, row.value, "", True)
        elif row.problem:
            yield _Found(row.where, None, row.problem, False)
        else:
            found = _read(row, columns, task, selection)
            if found.record is None or selection.wants(found.record):
                yield found
    for key, problem in selection.problems():
        yield _Found(key, None, problem, False)
    if absent and len(absent) < len(set(columns.values())):
        names = ", ".join(sorted(absent))
        yield _Found("data.columns", None, f"no row has a column called {names}", False)


def _rows(source: Source, selection: Selection) -> Iterator[Row]:
    """Rows in order; answers of a batch stand with their prompts, wherever they were."""
    items = [source] if isinstance(source, str | os.PathLike) else list(source)
    is_answers = [
        selection.format in ("auto", "batch") and is_answer_row(next(_rows_of(item, 1), None))
        for item in items
    ]
    numbered = list(zip(items, is_answers, strict=True))

    def rows(answers: bool) -> Iterator[Row]:
        for index, (item, is_answer) in enumerate(numbered, start=1):
            if is_answer == answers:
                yield from _rows_of(item, index)

    yield from joined(rows(False), rows(True)) if any(is_answers) else rows(False)


def _rows_of(item: Any, index: int) -> Iterator[Row]:
    if isinstance(item, str | os.PathLike):
        yield from iter_rows(Path(item).expanduser())
    else:
        yield Row(f"row {index}", as_json(item) if isinstance(item, Mapping) else item)


def _check_columns(columns: Mapping[str, str]) -> None:
    for name in columns:
        close = [] if name in KNOWN else difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.75)
        if close:
            raise DataError(f"data.columns: no field is called {name!r}; did you mean {close[0]}?")


def _read(row: Row, columns: Mapping[str, str], task: str | None, selection: Selection) -> _Found:
    try:
        if not isinstance(row.value, Mapping):
            raise BadRow(f"a row must be an object, got {type(row.value).__name__}")
        renamed, shadowed = _rename(row.value, columns)
        _check_text(renamed)
        shape = read_log(renamed, selection.format) or read_shape(renamed, task)
        _check_prompt(shape)
        record, own_id = _record(renamed, shape, shadowed)
    except BadRow as error:
        return _Found(row.where, None, str(error), False)
    return _Found(row.where, record, "", own_id)


def _rename(
    row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row under our names, and what stood under one of those names before."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    # An answer column may be absent in rows that are only asked.
    if missing and len(missing) == len(columns):
        raise BadRow(
            f"no column {missing[0]!r} as data.columns says; there are: {', '.join(list(row)[:8])}"
        )
    taken = set(columns.values())
    renamed = {key: value for key, value in row.items() if key not in taken}
    shadowed = {ours: renamed.pop(ours) for ours in columns if ours in renamed}
    renamed |= {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return renamed, shadowed


def _check_text(row: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(row, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise BadRow(
            f"half of a surrogate pair (\\u{ord(found):04x}): the text was cut inside a "
            f"character or decoded wrongly; write the row again from its source"
        ) from None
    except (TypeError, ValueError) as error:
        raise BadRow(f"a value that JSON cannot hold: {error}") from None
    if "\\u0000" in text and _has_nul(row):
        raise BadRow("a NUL character in the text; take it out, C programs end their text there")


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_nul(item) for item in value)


def _check_prompt(shape: Shape) -> None:
    """Refuses a prompt that ends with its own answer, as in "Answer: B" with reference B.

    A cue is needed: in extractive questions, summaries and translations the answer may well
    stand in the prompt.
    """
    if shape.reference is None:
        return
    prompt, answer = (
        text.strip().rstrip(_AROUND) for text in (shape.messages[-1][1], shape.reference)
    )
    if not answer or not prompt.casefold().endswith(answer.casefold()):
        return
    if _CUE.search(prompt[: -len(answer)].rstrip(_AROUND)):
        raise BadRow(
            f"the answer {answer[:40]!r} stands at the end of the prompt; cut it off there and "
            f"keep it as the answer only"
        )


def _record(
    row: Mapping[str, Any], shape: Shape, shadowed: Mapping[str, Any]
) -> tuple[Record, bool]:
    metadata = dict(shape.metadata)
    inner = row.get("metadata")
    if isinstance(inner, Mapping):
        metadata = {**inner, **metadata}
    elif inner is not None:
        metadata["metadata"] = inner
    for key, value in (*row.items(), *shadowed.items()):
        if key not in shape.used and key not in ("id", "custom_id", "metadata"):
            metadata.setdefault(key, value)
    messages = tuple(Message(role=role, content=content) for role, content in shape.messages)
    own = row.get("id") if row.get("id") is not None else row.get("custom_id")
    if own is None:
        own_id = content_id(messages, shape.reference)
    elif isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip():
        own_id = str(own)
    else:
        raise BadRow(f"the id must be text or a whole number, got {own!r}")
    record = Record(id=own_id, messages=messages, reference=shape.reference, metadata=metadata)
    return record, own is not None


def content_id(messages: Iterable[Message], reference: str | None) -> str:
    """16 hexadecimal digits of a SHA-256 over turns and reference."""
    content = [[[message.role, message.content] for message in messages], reference]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def _same_content(a: Record, b: Record) -> bool:
    return a.messages == b.messages and a.reference == b.reference


def _with_label_sets(records: list[Record]) -> list[Record]:
    """Notes on each bare row with a text label which labels there are."""
    bare = {"text", "premise"}
    labels = {
        record.metadata["label"]
        for record in records
        if bare & set(record.metadata.get("fields", ())) and "label" in record.metadata
    }
    if not 1 < len(labels) <= MOST_LABELS:
        return records
    ordered = sorted(labels)
    return [
        record.model_copy(update={"metadata": {"labels": ordered, **record.metadata}})
        if bare & set(record.metadata.get("fields", ()))
        else record
        for record in records
    ]
