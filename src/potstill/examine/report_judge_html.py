"""The judge's part of the HTML report."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.examine.report_judge import (
    CAPTION,
    HEADINGS,
    SCORE_HEADINGS,
    judge_lines,
    preferences_of,
    row,
    score_rows,
    signature_of,
)
from potstill.examine.report_tables import safe, table
from potstill.types import Report


def html_section(report: Report) -> str:
    """The judge's part of the page; nothing where none was asked."""
    judge = report.judge
    if not judge:
        return ""
    text = ""
    if judge.get("preferences"):
        rows = [_html_row(row(one)) for one in preferences_of(judge)]
        text += table(HEADINGS, rows, caption=CAPTION, numeric=range(1, len(HEADINGS)))
    if judge.get("scores"):
        rows = [_html_row(cells) for cells in score_rows(judge)]
        text += table(SCORE_HEADINGS, rows, caption="Mean score from 1 to 5.", numeric=(1, 2, 3))
    items = "".join(f"<li>{safe(line)}</li>" for line in judge_lines(judge))
    about = (
        f"{safe(judge.get('name'))}, family {safe(judge.get('family') or 'not known')}. "
        + safe(signature_of(judge))
    )
    return f'{text}<ul class="small">{items}</ul><p class="small soft">Judge: {about}</p>'


def _html_row(cells: Sequence[str]) -> str:
    first, *rest = cells
    told = "".join(f'<td class="num">{safe(cell)}</td>' for cell in rest)
    return f'<tr><th scope="row">{safe(first)}</th>{told}</tr>'
