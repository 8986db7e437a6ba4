"""Which rows of the data are taken: rules on their fields, feedback, and logged answers."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from potstill.config import FieldTest, Where
from potstill.data.answers import BadRow, brief, is_map
from potstill.data.logs import Format
from potstill.data.privacy import LOG_KEY
from potstill.data.read import Row
from potstill.types import Record

_MOST_LOOKED_AT = 100
"""Rows whose fields are remembered for the message about a field that no row has."""


class Selection:
    """Which rows of the data are taken, and how many were left out for which reason.

    Args:
        where: A row is taken where this holds.
        feedback: A row's logged answer is good where this holds; other rows are left out.
        needs_answer: Leaves out rows without a whole answer.
    """

    def __init__(
        self,
        *,
        format: Format = "auto",
        where: Where | None = None,
        feedback: FieldTest | None = None,
        needs_answer: bool = False,
    ):
        self.format: Format = format
        self.needs_answer = needs_answer
        self.left_out: Counter[str] = Counter()
        self._rules = {"where": where, "feedback": feedback}
        self._wanted = {f: k for k, rule in self._rules.items() if rule for f in _fields(rule)}
        self._fields: dict[str, None] = {}
        self._num_rows = 0

    def __str__(self) -> str:
        """What was left out, for a person."""
        words = {"where": "by data.where", "feedback": "by data.feedback"}
        words |= {"no_answer": "without a logged answer", "cut": "with a cut answer"}
        return ", ".join(f"{n:,} {words[reason]}" for reason, n in self.left_out.items())

    def take(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that are wanted; a row that a rule cannot judge comes with its problem."""
        for row in rows:
            if row.problem or not is_map(row.value) or not any(self._rules.values()):
                yield row
                continue
            self._look_at(row.value)
            try:
                reason = next(
                    (k for k, rule in self._rules.items() if rule and not holds(rule, row.value)),
                    None,
                )
            except BadRow as error:
                yield Row(row.where, None, str(error))
                continue
            if reason is None:
                yield row
            else:
                self.left_out[reason] += 1

    def wants(self, record: Record) -> bool:
        """Whether the record has the answer that is needed of it."""
        if not self.needs_answer:
            return True
        finish = (record.metadata.get(LOG_KEY) or {}).get("finish_reason")
        if record.reference is None or finish == "content_filter":
            self.left_out["no_answer"] += 1
        elif finish == "length":
            self.left_out["cut"] += 1
        else:
            return True
        return False

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, problem) for each field of a rule that no row has; ask after the last row."""
        for wanted, key in self._wanted.items() if self._num_rows else ():
            close = difflib.get_close_matches(wanted, self._fields, n=1)
            fields = ", ".join(list(self._fields)[:12])
            hint = f"did you mean {close[0]}?" if close else f"there are: {fields}"
            yield f"data.{key}", f"no row has the field {wanted}; {hint}"

    def _look_at(self, row: Mapping[str, Any]) -> None:
        self._num_rows += 1
        for wanted in [field for field in self._wanted if _lookup(row, field) is not None]:
            del self._wanted[wanted]
        if self._num_rows <= _MOST_LOOKED_AT:
            self._fields |= dict.fromkeys(_paths(row))


def holds(rule: FieldTest, row: Mapping[str, Any]) -> bool:
    """Whether a rule holds for a row.

    Raises:
        BadRow: If a value that is to be compared with a number is none.
    """
    if isinstance(rule, Where):
        if rule.all is not None:
            return all(holds(inner, row) for inner in rule.all)
        if rule.any is not None:
            return any(holds(inner, row) for inner in rule.any)
        if rule.not_ is not None:
            return not holds(rule.not_, row)
    field = rule.field or ""
    value = _lookup(row, field)
    if rule.exists is not None and (value is not None) != rule.exists:
        return False
    if rule.tests == ["exists"]:
        return True
    if value is None:
        return False
    one_of = rule.one_of if rule.equals is None else (*(rule.one_of or ()), rule.equals)
    if one_of is not None and _text(value) not in {_text(item) for item in one_of}:
        return False
    if rule.contains is not None and rule.contains not in (
        value if isinstance(value, list) else _text(value)
    ):
        return False
    if rule.at_least is None and rule.at_most is None:
        return True
    number = _number(value, field)
    low = float("-inf") if rule.at_least is None else rule.at_least
    high = float("inf") if rule.at_most is None else rule.at_most
    return low <= number <= high


def _number(value: Any, field: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRow(
            f"{field} is {brief(value)}, which is no number; use equals, one_of or exists"
        ) from None


def _text(value: Any) -> str:
    """A value as it is compared: stored completions keep all metadata as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _lookup(value: Any, path: str) -> Any:
    """The value at a dotted path, through objects and lists; None where there is none."""
    if is_map(value):
        if path in value:
            return value[path]
        head, _, rest = path.partition(".")
        return _lookup(value[head], rest) if rest and head in value else None
    if isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            return _lookup(value[int(head)], rest) if rest else value[int(head)]
    return None


def _fields(rule: FieldTest) -> Iterator[str]:
    """Fields that a rule compares; one that it asks the existence of may be absent in all rows."""
    if isinstance(rule, Where):
        inner = (*(rule.all or ()), *(rule.any or ()), *([rule.not_] if rule.not_ else ()))
        for part in inner:
            yield from _fields(part)
    if rule.field is not None and rule.exists is None:
        yield rule.field


def _paths(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        if is_map(value):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
