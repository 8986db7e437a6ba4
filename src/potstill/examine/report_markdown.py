"""The report as Markdown, for a pull request or a model card."""

from __future__ import annotations

from potstill.data.privacy import describe
from potstill.examine.markdown import safe as _safe
from potstill.examine.markdown import table as _table
from potstill.examine.markdown import titled as _list
from potstill.examine.numbers import estimate, interval, number, p_value, parameters, size
from potstill.examine.report_inherited import TITLE, inherited_lines
from potstill.examine.report_judge import markdown_section
from potstill.examine.report_speed import DETAILS, speed_sections
from potstill.examine.report_verdict import metric_text, role_text
from potstill.types import Evaluation, Report

ANSWER_CHARACTERS = 300
NUM_LABELS = 10
"""Answers of a small set that are listed with their counts."""


def render_markdown(report: Report) -> str:
    """The whole report but for its plots; reads the report alone."""
    parts = [
        f"# {_safe(report.run)}\n\n{_safe(report.verdict)}",
        _models(report),
        _retention(report),
        _speed(report),
        _comparisons(report),
        markdown_section(report),
        _gates(report),
        _data(report),
        _classes(report),
        _list(TITLE, [_safe(line) for line in inherited_lines(report)]),
        _regressions(report),
        _list("What this does not show", [_safe(limit) for limit in report.limits]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def student_of(report: Report) -> str:
    """The row that a report is about: the distilled student, or of two models the first."""
    return "distilled" if "distilled" in report.models else next(iter(report.models))


def metric_names(report: Report) -> list[str]:
    """All metrics of a report in the order of its table: primary first, speed last."""
    names = dict.fromkeys([report.primary_metric])
    for evaluation in report.models.values():
        names.update(dict.fromkeys(evaluation.metrics))
    late = (
        "truncation_rate",
        "latency",
        "latency_ratio",
        "latency.p95",
        "latency.p99",
        "tokens_per_second",
    )
    last = [name for name in (*late, "memory") if name in names]
    return [name for name in (*(n for n in names if n not in last), *last) if name not in DETAILS]


def _models(report: Report) -> str:
    names = metric_names(report)
    rows = [
        [_safe(role), _about(found)]
        + [estimate(found.metrics[name]) if name in found.metrics else "" for name in names]
        for role, found in report.models.items()
    ]
    n = report.task.get("n")
    caption = f"{n:,} test records. " if isinstance(n, int) else ""
    return (
        "## Models\n\n"
        + _table(["row", "model", *(_safe(metric_text(name)) for name in names)], rows)
        + f"\n\n{caption}Values with 95 % intervals."
    )


def _about(found: Evaluation) -> str:
    name = "" if found.id == found.role else found.id
    facts = [name, found.format, parameters(found.num_parameters)]
    facts.append(size(found.disk_bytes) if found.disk_bytes else "")
    return _safe(", ".join(fact for fact in facts if fact))


def _retention(report: Report) -> str:
    titles = {"of_teacher": "student / teacher", "gap_recovered": "gap closed"}
    lines = [
        f"{titles.get(name, name)}: {estimate(found)}"
        + (f" ({_safe(found.note)})" if found.note else "")
        for name, found in report.retention.items()
    ]
    return _list("What the student keeps of the teacher", lines)


def _speed(report: Report) -> str:
    parts = []
    for title, tables in speed_sections(report):
        parts.append(f"## {title}")
        for found in tables:
            parts += [f"### {_safe(found.title)}"] if found.title else []
            cells = [[_safe(cell) for cell in row] for row in found.rows]
            parts.append(_table([_safe(heading) for heading in found.headings], cells))
            notes = [found.caption, *found.notes]
            parts.append("\n".join(f"- {_safe(note)}" for note in notes if note))
    return "\n\n".join(parts)


def _comparisons(report: Report) -> str:
    if not report.comparisons:
        return ""
    rows = []
    for c in report.comparisons:
        unit = "points" if c.metric in ("bleu", "chrf") else ""
        rows.append(
            [
                f"{_safe(c.a)} {chr(0x2212)} {_safe(c.b)}",
                _safe(metric_text(c.metric)),
                f"{number(c.difference, unit, sign=True)} "
                f"{interval(c.low, c.high, unit, sign=True)}",
                p_value(c.p_holm),
                c.verdict.replace("_", "-"),
                _safe(c.note),
            ]
        )
    headings = ["difference of", "metric", "difference", "p (Holm)", "verdict", "note"]
    return "## Comparisons\n\n" + _table(headings, rows)


def _gates(report: Report) -> str:
    return _list(
        "Gates",
        [
            f"{'passed' if gate['passed'] else 'FAILED'}: {_safe(gate['rule'])} "
            f"({_safe(gate['found'])})"
            for gate in report.gates
        ],
    )


def _data(report: Report) -> str:
    lines = [
        f"{name}: {report.data[name]:,}"
        for name in ("requested", "answered", "accepted")
        if isinstance(report.data.get(name), int)
    ]
    rejected = report.data.get("rejected")
    if isinstance(rejected, dict):
        lines += [f"rejected, {_safe(reason)}: {count:,}" for reason, count in rejected.items()]
    lines += [_safe(line) for line in quality_lines(report)]
    return _list("Training data", lines)


def quality_lines(report: Report) -> list[str]:
    """What the accepted rows are like, in sentences; nothing where it was not counted."""
    found = report.data.get("quality") or {}
    hidden = report.data.get("hidden") or {}
    lines = [f"hidden from the teacher: {describe(hidden)}"] if hidden else []
    lines += _asked_lines(report)
    lines += (report.data.get("spending") or {}).get("lines", [])
    lines += [report.data["trial"]["text"]] if report.data.get("trial") else []
    lines += [report.data["student"]] if report.data.get("student") else []
    labels = found.get("labels") or {}
    if labels:
        most = ", ".join(f"{name} {count:,}" for name, count in list(labels.items())[:NUM_LABELS])
        more = f" and {len(labels) - NUM_LABELS:,} more" if len(labels) > NUM_LABELS else ""
        lines.append(
            f"answers: {most}{more}; as balanced as {found['effective_labels']:.1f} equally "
            f"frequent ones (entropy {found['label_entropy_bits']:.2f} bits)"
        )
    if found.get("distinct_2") is not None:
        lines.append(
            f"variety: {found['distinct_2']:.2f} of the word pairs in {found['num_sampled']:,} "
            f"answers are different ones"
        )
    compared = found.get("contamination") or {}
    if compared.get("num_test_rows"):
        lines.append(
            f"test sets: {compared['num_indexed_rows']:,} of {compared['num_test_rows']:,} rows "
            f"are long enough to look for runs of {compared['n']} words of theirs"
        )
    return lines


def _asked_lines(report: Report) -> list[str]:
    """How many rows were wanted, and how many prompts a person wrote."""
    found = report.data.get("quality") or {}
    lines: list[str] = []
    for label, said in (report.data.get("teachers") or {}).items():
        cost = f", cost {said['cost']:.4f}" if said["cost"] else ""
        lines.append(
            f"{label}: {said['answers']:,} answers, {said['failed']:,} failures, "
            f"{said['accepted']:,} accepted rows{cost}"
        )
    rounds = report.data.get("rounds") or []
    if rounds:
        num_asked = sum(one["asked"] for one in rounds)
        num_rows = sum(one["accepted"] for one in rounds)
        lines.append(
            f"training rows: {num_rows:,} of {report.data['wanted']:,} wanted, after "
            f"{num_asked:,} answers; rounds of asking: {len(rounds):,}"
        )
    new = report.data.get("new_prompts") or {}
    if new:
        lines.append(
            f"prompts: {new['num_real']:,} real ones and {new['num_new']:,} that the teacher "
            f"wrote; of the accepted training rows {found.get('share_real', 1.0):.0%} answer a "
            f"real one"
        )
    return lines


def _classes(report: Report) -> str:
    found = report.models.get("distilled")
    if found is None or not found.by_class:
        return ""
    rows = [
        [
            _safe(name),
            *(estimate(values[key]) for key in ("precision", "recall", "f1")),
            str(values["recall"].n),
        ]
        for name, values in found.by_class.items()
    ]
    headings = ["answer", "precision", "recall", "F1", "n"]
    return "## Classes of the distilled student\n\n" + _table(headings, rows)


def _regressions(report: Report) -> str:
    lines = []
    for row in report.regressions[:10]:
        answers = "; ".join(
            f"{_safe(role_text(role))}: {_cut(text)}" for role, text in row["answers"].items()
        )
        lines.append(f"{_safe(row['record_id'])}, right is {_cut(row['reference'])}; {answers}")
    student = role_text(student_of(report))
    title = f"Where {_safe(student)} is wrong and another is right ({report.num_regressions:,})"
    return _list(title, lines)


def _cut(text: str) -> str:
    short = text if len(text) <= ANSWER_CHARACTERS else text[:ANSWER_CHARACTERS] + "..."
    return _safe(short) or "(nothing)"
