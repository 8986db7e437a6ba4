"""What a student took over from its teacher, in sentences for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from potstill.examine.inherited import is_carried, was_there
from potstill.examine.numbers import EN_DASH, number, percent
from potstill.examine.report_verdict import role_text
from potstill.types import Estimate, Report

TITLE = "What the student took over from the teacher"
MOST_LINES = 8
"""Labels and groups that are named; all of them are in the JSON."""


def inherited_lines(report: Report, student: str = "distilled") -> list[str]:
    """One plain sentence for each finding; empty where nothing could be measured."""
    found = report.inherited
    lines = []
    if "labels" in found:
        lines += _skews(found["labels"], student, _label_line, "label")
    if "groups" in found:
        lines += _skews(found["groups"], student, _group_line, "group")
    for row in found.get("mistakes", {}).values():
        lines.append(f"Same wrong answer where the teacher is wrong: {_shares(row)}.")
    for row in found.get("refusals", {}).values():
        lines.append(f"Refused though the right answer is no refusal: {_shares(row)}.")
    for row in found.get("language", {}).values():
        lines.append(f"In another script or language than the right answer: {_shares(row)}.")
    return lines


def _skews(
    rows: Mapping[str, Mapping[str, Estimate]],
    student: str,
    line: Callable[[str, Mapping[str, Estimate], str], str],
    what: str,
) -> list[str]:
    carried = [
        (name, row)
        for name, row in rows.items()
        if is_carried(row, student) and not _is_said_already(name, row, rows, what, student)
    ]
    carried.sort(key=lambda pair: -abs(pair[1][student].value or 0.0))
    if not carried:
        return [f"No skew by {what} is shown to be carried over ({len(rows):,} looked at)."]
    lines = [line(name, row, student) for name, row in carried[:MOST_LINES]]
    if len(carried) > MOST_LINES:
        lines.append(f"{len(carried) - MOST_LINES:,} more skews by {what} are in report.json.")
    return lines


def _is_said_already(
    name: str,
    row: Mapping[str, Estimate],
    rows: Mapping[str, Mapping[str, Estimate]],
    what: str,
    student: str,
) -> bool:
    """A group that does better is another that does worse; a label's skew in a group is often
    its skew in all."""
    is_more = (row["teacher"].value or 0.0) > 0
    if what == "group":
        return is_more
    whole = rows.get(name.partition(" in ")[0], row)
    return (
        whole is not row
        and is_carried(whole, student)
        and ((whole["teacher"].value or 0.0) > 0) == is_more
    )


def _label_line(name: str, row: Mapping[str, Estimate], student: str) -> str:
    more = "more" if (row["teacher"].value or 0.0) > 0 else "less"
    return (
        f"Says {name} {more} often than is right, like its teacher: "
        f"{_differences(row)}.{_before(row, student)}"
    )


def _group_line(name: str, row: Mapping[str, Estimate], student: str) -> str:
    return (
        f"Right less often on {name} than on the rest, like its teacher: "
        f"{_differences(row)}.{_before(row, student)}"
    )


def _before(row: Mapping[str, Estimate], student: str) -> str:
    if "untouched" not in row:
        return ""
    return " The untouched student did so already." if was_there(row, student) else ""


def _differences(row: Mapping[str, Estimate]) -> str:
    return "; ".join(f"{role_text(role)} {_points(e)}" for role, e in row.items())


def _points(found: Estimate) -> str:
    """A difference of shares: +20.5 (+15.4 to +25.4) points in a hundred."""
    if found.value is None:
        return EN_DASH
    value, *ends = (
        None if end is None else number(100 * end, "points", sign=True)
        for end in (found.value, found.low, found.high)
    )
    doubt = f" ({ends[0]} to {ends[1]})" if None not in ends else ""
    return f"{value}{doubt} points"


def _shares(row: Mapping[str, Estimate]) -> str:
    parts = []
    for role, e in row.items():
        if e.value is None:
            continue
        ends = ""
        if e.low is not None and e.high is not None:
            ends = f" ({percent(e.low)} to {percent(e.high)})"
        parts.append(f"{role_text(role)} {percent(e.value)}{ends} of {e.n:,}")
    return "; ".join(parts)
