"""A report and an evaluation as a notebook shows them: what is known, at a glance."""

from __future__ import annotations

from potstill.examine.report_markdown import student_of
from potstill.examine.report_tables import (
    about,
    comparisons_table,
    models_table,
    safe,
    table,
    value_cell,
)
from potstill.examine.report_verdict import metric_text
from potstill.types import Evaluation, Report

# Of this one cell alone: a notebook's page has no stylesheet of ours, and its own colours stay.
_STYLE = (
    ".potstill-shown .range, .potstill-shown .about {display: block; font-size: .85em; "
    "font-weight: normal; opacity: .75} .potstill-shown td, .potstill-shown th "
    "{text-align: left; vertical-align: top} .potstill-shown .scroll {overflow-x: auto}"
)


def report_html(report: Report) -> str:
    """Verdict, models and comparisons; the page of the whole is `report.html`."""
    parts = [f"<p><b>{safe(report.run)}</b></p><p>{safe(report.verdict)}</p>"]
    parts.append(models_table(report, student_of(report)))
    if report.comparisons:
        parts.append(comparisons_table(report))
    return _shown("".join(parts))


def evaluation_html(evaluation: Evaluation) -> str:
    """Every metric with its interval and rule."""
    rows = [
        f'<tr><th scope="row">{safe(metric_text(name))}</th>{value_cell(found)}'
        f"<td>{found.n:,}</td><td>{safe(found.signature)}</td></tr>"
        for name, found in evaluation.metrics.items()
    ]
    name = ", ".join(fact for fact in (evaluation.role, about(evaluation)) if fact)
    caption = f"{safe(name)}. Under each value its 95 % interval."
    return _shown(table(["metric", "value", "n", "rule"], rows, caption=caption))


def _shown(markup: str) -> str:
    return f'<div class="potstill-shown"><style>{_STYLE}</style>{markup}</div>'
