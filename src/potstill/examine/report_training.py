"""How the student came about, in the HTML report: its training data and its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.examine.numbers import EN_DASH, duration, size
from potstill.examine.report_charts import Line
from potstill.examine.report_charts import curves as draw_curves
from potstill.examine.report_markdown import quality_lines
from potstill.examine.report_tables import safe, table
from potstill.types import Report

MAX_CURVE_POINTS = 400

FACTS = {
    "num_rows": "training rows",
    "steps": "steps taken",
    "num_steps": "steps planned",
    "best_step": "step that was kept",
    "best_validation_loss_nats": "its loss on validation records, nats a token",
    "stopped_early": "stopped early",
    "num_trainable": "weights that were trained",
    "precision": "number format",
    "seconds": "time",
    "tokens_per_second": "tokens a second",
}
"""What is known of a training -> its name for a person, in the order of the page."""


def funnel_html(report: Report) -> str:
    """From the answers that were asked for to the rows that were learnt from."""
    counts = [
        (name, report.data[name], "")
        for name in ("requested", "answered", "accepted")
        if isinstance(report.data.get(name), int)
    ]
    leaks = report.data.get("leaks_dropped")
    if leaks:
        counts.append(("dropped: in the test set", leaks, " lost"))
    rejected = report.data.get("rejected")
    if isinstance(rejected, Mapping):
        counts += [
            (f"rejected: {reason}", count, " lost")
            for reason, count in sorted(rejected.items(), key=lambda pair: -pair[1])
        ]
    if not counts:
        return ""
    most = max(count for _, count, _ in counts) or 1
    rows = "".join(
        f'<li><span>{safe(name)}</span><span class="bar{kind}"><i style="width:'
        f'{75 * count / most:.1f}%"></i><span>{count:,}</span></span></li>'
        for name, count, kind in counts
    )
    return (
        f'<ul class="funnel">{rows}</ul>{bullets([safe(line) for line in quality_lines(report)])}'
    )


def training_html(
    report: Report, logged: Mapping[str, Sequence[Mapping[str, Any]]], student: str
) -> str:
    """Curves of the losses, and a table of all trainings."""
    lines = []
    for role, rows in logged.items():
        for key, name in (("train/loss_nats", "train"), ("validation/loss_nats", "check")):
            points = [
                (float(row["step"]), float(row[key]))
                for row in rows
                if "step" in row and isinstance(row.get(key), int | float)
            ]
            is_validation = name == "check"
            if len(points) > 1 and (is_validation or role == student):
                step = max(1, len(points) // MAX_CURVE_POINTS)
                label = f"{role}" if is_validation else "training"
                lines.append(Line(label, points[::step], is_validation, role == student))
    text = ""
    if lines:
        text = figure(
            draw_curves(lines, title="Loss by training step"),
            "Loss in nats per token by step. Lines with dots: validation records, which choose "
            f"the checkpoint. Thin line: training records of {student}. Losses of models that "
            "learn from different things (text, probabilities) are not to be compared.",
        )
    facts = {k: v for k, v in report.training.items() if not isinstance(v, Mapping)}
    parts = {k: v for k, v in report.training.items() if isinstance(v, Mapping)}
    return text + facts_html(facts) + _trainings(parts)


def _trainings(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each fact, a column for each student."""
    known = dict.fromkeys(key for found in parts.values() for key in found)
    rows = []
    for key in [*(k for k in FACTS if k in known), *(k for k in known if k not in FACTS)]:
        cells = "".join(
            f'<td class="num">{safe(fact(key, found[key])) if key in found else EN_DASH}</td>'
            for found in parts.values()
        )
        rows.append(f'<tr><th scope="row">{safe(FACTS.get(key, key))}</th>{cells}</tr>')
    if not rows:
        return ""
    headings = ["training", *map(safe, parts)]
    return table(
        headings,
        rows,
        caption="Each student's training, the best step kept.",
        numeric=range(1, len(headings)),
    )


def figure(drawing: str, caption: str) -> str:
    """A drawing with what it shows."""
    return f"<figure>{drawing}<figcaption>{safe(caption)}</figcaption></figure>"


def bullets(items: Sequence[str]) -> str:
    """A list of markup; empty where there is nothing to list."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, one pair a line."""
    rows = "".join(f"<dt>{safe(k)}</dt><dd>{safe(fact(k, v))}</dd>" for k, v in facts.items())
    return f'<dl class="facts small">{rows}</dl>' if rows else ""


def fact(key: str, value: Any) -> str:
    """A value as a person reads it, in the unit that its name ends with."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{k} {fact(k, v)}" for k, v in value.items() if v not in ("", (), [], None)
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if key.endswith("seconds"):
        return duration(value)
    if key.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
