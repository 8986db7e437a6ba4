"""Tables of the HTML report. Every text that a model or a file wrote is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

from potstill.examine.numbers import (
    EN_DASH,
    MINUS,
    interval,
    number,
    p_value,
    parameters,
    percent,
    size,
)
from potstill.examine.report_markdown import metric_names
from potstill.examine.report_speed import speed_sections
from potstill.examine.report_verdict import metric_text
from potstill.types import Estimate, Evaluation, Report

VERDICT_TEXT = {
    "better": "better",
    "worse": "worse",
    "non_inferior": "as good, within margin",
    "inconclusive": "open",
}
MAX_CLASSES = 30
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
LONG_CELL = 40
SHORT_CELL = 26
"""Characters of a value with its interval, which stays on one line."""


def safe(text: object) -> str:
    """Text that a page shows as it is: no markup, no control characters."""
    clean = "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for c in str(text)
    )
    return html.escape(clean)


def table(
    headings: Sequence[str], rows: Sequence[str], *, caption: str, numeric: Sequence[int] = ()
) -> str:
    """A table that scrolls in itself; headings and rows are markup already."""
    cells = "".join(
        f'<th scope="col"{_num(i in numeric)}>{heading}</th>' for i, heading in enumerate(headings)
    )
    label = html.escape(html.unescape(caption))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="small soft">{caption}</p>'
    )


def mark(kind: str, text: str) -> str:
    """A word on a coloured ground; the word says it without the colour."""
    return f'<span class="mark {kind}">{text}</span>'


def _num(is_numeric: bool) -> str:
    return ' class="num"' if is_numeric else ""


def value_cell(found: Estimate | None, *, sign: bool = False) -> str:
    """A value with its interval under it; why there is none on hover."""
    if found is None:
        return '<td class="num"></td>'
    ends = interval(found.low, found.high, found.unit, sign=sign)
    facts = [found.method, found.signature, found.note, f"n = {found.n:,}"]
    facts += [f"{found.n_error:,} failed"] if found.n_error else []
    title = safe("; ".join(fact for fact in facts if fact))
    under = f'<span class="range">{ends}</span>' if ends else ""
    return (
        f'<td class="num" title="{title}">{number(found.value, found.unit, sign=sign)}{under}</td>'
    )


def models_table(report: Report, student: str) -> str:
    """All models with all metrics, the student's row marked."""
    names = metric_names(report)
    has_size = any(found.disk_bytes for found in report.models.values())
    rows = []
    for role, found in report.models.items():
        cells = "".join(value_cell(found.metrics.get(name)) for name in names)
        disk = size(found.disk_bytes) if found.disk_bytes else EN_DASH
        cells += f'<td class="num">{disk}</td>' if has_size else ""
        kind = ' class="student"' if role == student else ""
        rows.append(
            f'<tr{kind}><th scope="row">{safe(role)}'
            f'<span class="about">{safe(about(found))}</span></th>{cells}</tr>'
        )
    n = report.task.get("n")
    caption = (
        (f"{n:,} test records. " if isinstance(n, int) else "")
        + "Under each value its 95 % interval: the range that the true value is likely to lie in. "
        + "Cut and missing answers count as wrong."
    )
    headings = ["model", *(safe(metric_text(name)) for name in names)]
    headings += ["on disk"] if has_size else []
    return table(headings, rows, caption=caption, numeric=range(1, len(headings)))


def about(found: Evaluation) -> str:
    """Name, format and number of weights of a model."""
    name = "" if found.id == found.role else found.id
    weights = parameters(found.num_parameters).replace(" ", NO_BREAK_SPACE)
    return ", ".join(fact for fact in (name, found.format, weights) if fact)


def comparisons_table(report: Report) -> str:
    """Paired differences with verdicts, the primary metric first."""
    ordered = sorted(report.comparisons, key=lambda c: c.metric != report.primary_metric)
    rows = []
    for c in ordered:
        unit = "points" if c.metric in ("bleu", "chrf") else ""
        facts = [c.note]
        if c.verdict == "inconclusive" and c.detectable:
            facts.append(f"can show differences of {number(c.detectable, unit)} or more")
        rows.append(
            f'<tr><th scope="row">{safe(c.a)} {MINUS} {safe(c.b)}</th>'
            f"<td>{safe(metric_text(c.metric))}</td>"
            f'<td class="num" title="{safe(c.method)}">{number(c.difference, unit, sign=True)}'
            f'<span class="range">{interval(c.low, c.high, unit, sign=True)}</span></td>'
            f'<td class="num" title="{safe(c.test)}">{safe(p_value(c.p_holm))}</td>'
            f"<td>{mark(c.verdict, VERDICT_TEXT[c.verdict])}</td>"
            f'<td class="note small soft">{safe("; ".join(f for f in facts if f))}</td></tr>'
        )
    caption = (
        "Both models answered the same records; the difference is taken record by record. p is "
        "corrected for the number of metrics (Holm)."
    )
    headings = ["difference", "metric", "value", "p", "verdict", "note"]
    return table(headings, rows, caption=caption, numeric=(2, 3))


def classes_table(report: Report, student: str) -> str:
    """Precision, recall and F1 of each answer, the student's beside the teacher's F1."""
    ours = report.models[student].by_class
    theirs = report.models["teacher"].by_class if "teacher" in report.models else {}
    rows = []
    for name, found in sorted(ours.items(), key=lambda pair: -pair[1]["recall"].n)[:MAX_CLASSES]:
        cells = "".join(value_cell(found[key]) for key in ("precision", "recall", "f1"))
        if theirs:
            cells += value_cell(theirs.get(name, {}).get("f1"))
        rows.append(
            f'<tr><th scope="row">{safe(name)}</th><td class="num">{found["recall"].n:,}</td>'
            f"{cells}</tr>"
        )
    headings = ["answer", "n", "precision", "recall", "F1"] + (
        ["teacher&#39;s F1"] if theirs else []
    )
    left_out = len(ours) - len(rows)
    caption = f"{safe(student)}, for each right answer." + (
        f" {left_out:,} rarer answers are left out." if left_out > 0 else ""
    )
    return table(headings, rows, caption=caption, numeric=range(1, len(headings)))


def slices_table(report: Report, student: str) -> str:
    """The primary metric on parts of the test set, for every model."""
    ours = report.models[student].by_slice
    roles = list(report.models)
    rows = []
    for name, found in ours.items():
        metric = next(iter(found))
        cells = "".join(
            value_cell(report.models[role].by_slice.get(name, {}).get(metric)) for role in roles
        )
        rows.append(
            f'<tr><th scope="row">{safe(name)}</th><td class="num">{found[metric].n:,}</td>'
            f"{cells}</tr>"
        )
    headings = ["part of the test set", "n", *(safe(role) for role in roles)]
    caption = f"{safe(metric_text(report.primary_metric))} on parts of the test set."
    return table(headings, rows, caption=caption, numeric=range(1, len(headings)))


def confusion_table(report: Report, student: str) -> str:
    """What the student answers for each right answer, and how that differs from the untouched."""
    ours = report.confusion[student]
    before = report.confusion.get("untouched", {})
    names = sorted(ours, key=lambda name: -sum(ours[name].values()))[:12]
    said = {name for row in ours.values() for name in row} - set(names) - {""}
    columns = [*names, *(["other"] if said else []), ""]

    def cell(row: dict[str, int], column: str) -> int:
        if column == "other":
            return sum(count for name, count in row.items() if name and name not in names)
        return row.get(column, 0)

    rows = []
    for name in names:
        cells = []
        for column in columns:
            count = cell(ours[name], column)
            change = count - cell(before.get(name, {}), column) if before else 0
            is_right = column == name
            kind = "diagonal" if is_right else "miss" if count else ""
            worse = (change > 0) != is_right
            arrow = (
                f'<span class="range {"up" if worse else "down"}">'
                f"{'+' if change > 0 else MINUS}{abs(change)}</span>"
                if change
                else ""
            )
            cells.append(f'<td class="num {kind}">{count or ""}{arrow}</td>')
        rows.append(f'<tr><th scope="row">{safe(name)}</th>{"".join(cells)}</tr>')
    headings = ["right answer", *(_breakable(c) or "<i>unreadable</i>" for c in columns)]
    caption = f"What {safe(student)} answered." + (
        " Small: the change against the untouched student." if before else ""
    )
    return table(headings, rows, caption=caption, numeric=range(1, len(headings)))


def _breakable(name: str) -> str:
    """A name that may go on in the next line after an underscore."""
    return safe(name).replace("_", "_<wbr>")


def retention_list(report: Report) -> str:
    """How much of the teacher is kept, in words."""
    titles = {
        "of_teacher": "Student over teacher",
        "gap_recovered": "Share of the way from the untouched student to the teacher",
    }
    items = []
    for name, found in report.retention.items():
        if found.value is None:
            text = f"not given: {safe(found.note)}"
        else:
            text = f"<b>{percent(found.value)}</b>"
            if found.low is not None and found.high is not None:
                text += f" ({percent(found.low)} to {percent(found.high)})"
        items.append(f"<li>{titles.get(name, safe(name))}: {text}</li>")
    return f"<ul>{''.join(items)}</ul>"


def speed_html(report: Report) -> list[tuple[str, str]]:
    """Sections on the five claims, speed and memory, load and cost, each (title, markup)."""
    sections = []
    for title, tables in speed_sections(report):
        text = ""
        for found in tables:
            text += f"<h3>{safe(found.title)}</h3>" if found.title else ""
            rows = [
                f'<tr><th scope="row">{safe(row[0])}</th>'
                + "".join(_text_cell(cell) for cell in row[1:])
                + "</tr>"
                for row in found.rows
            ]
            headings = [safe(heading) for heading in found.headings]
            text += table(headings, rows, caption=safe(found.caption))
            if found.notes:
                notes = "".join(f"<li>{safe(note)}</li>" for note in found.notes)
                text += (
                    f'<details class="small"><summary>Definitions and remarks</summary>'
                    f"<ul>{notes}</ul></details>"
                )
        sections.append((title, text))
    return sections


def _text_cell(text: str) -> str:
    """A cell that is wide enough for what it says."""
    kind = "note" if len(text) > LONG_CELL else "short" if len(text) <= SHORT_CELL else ""
    return f"<td{f' class={kind}' if kind else ''}>{safe(text)}</td>"
