"""The report as one HTML file: no network, no script, prints to PDF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from potstill.examine.numbers import duration, number, size
from potstill.examine.report_charts import Line, Point, forest, pareto
from potstill.examine.report_charts import curves as draw_curves
from potstill.examine.report_inherited import TITLE, inherited_lines
from potstill.examine.report_judge_html import html_section
from potstill.examine.report_markdown import quality_lines
from potstill.examine.report_tables import (
    classes_table,
    comparisons_table,
    confusion_table,
    mark,
    models_table,
    retention_list,
    safe,
    slices_table,
    speed_html,
    table,
)
from potstill.examine.report_verdict import metric_text, role_text
from potstill.rundir import read_jsonl
from potstill.types import Report, Sample

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MAX_ROWS = 1_000
ANSWER_CHARACTERS = 2_000
ROW_CHARACTERS = 240
MAX_CURVE_POINTS = 400

GLOSSARY = {
    "teacher": "The large model whose answers the student learnt from.",
    "student": "The small model. Untouched: as it was before; distilled: after training on the "
    "teacher's answers or probabilities.",
    "95 % interval": "The test set is a sample. If it were drawn many times, intervals made this "
    "way would hold the true value 95 times in 100. Wide intervals mean: test more.",
    "as good, within margin": "The student may be a little worse than the other, but by no more "
    "than the margin that was set before the test.",
    "open": "The test cannot tell. That is not the same as equal.",
    "p": "How often chance alone would show a difference this large if there were none.",
    "accuracy": "Share of answers that are right by the task's rule.",
    "macro F1": "Balance of finding a topic and not naming it wrongly, averaged over topics; "
    "rare topics count as much as common ones.",
    "BLEU, chrF, ROUGE": "Overlap of words or letters with a reference text. Useful to compare "
    "models on one test set, not as marks in themselves.",
    "agreement": "Share of answers that are the teacher's, right or wrong.",
    "judge": "A model that reads two answers in both orders and says which is better.",
    "latency": "Time from the question to the end of the answer, one request at a time; half of "
    "the answers are faster.",
    "gguf, q8_0": "A file format for running a model on a laptop or phone; q8_0 keeps each "
    "weight in about 8 bits.",
}


def render_html(
    report: Report,
    *,
    samples_dir: Path | None = None,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    student: str = "distilled",
) -> str:
    """One self-contained page.

    Args:
        samples_dir: Folder of the answer files; where given, all answers are in the page too.
        curves: Role -> rows that its training logged, with `step` and losses such as
            `train/loss_nats`.
        student: The role that the report is about.
    """
    name = safe(role_text(student))
    sections = [
        ("Models", models_table(report, student)),
        ("What the student keeps of the teacher", _retention(report)),
        ("Quality against time and size", _plots(report, student)),
        *speed_html(report),
        ("Is it better?", comparisons_table(report) if report.comparisons else ""),
        ("What the judge prefers", html_section(report)),
        ("Gates", _gates(report)),
        (f"Where {name} is wrong and another is right", _cases(report, report.regressions)),
        (f"Where only {name} is right", _wins(report)),
        ("By answer", _classes(report, student)),
        ("By part of the test set", _slices(report, student)),
        (TITLE, _list([safe(line) for line in inherited_lines(report, student)])),
        ("Training data", _funnel(report)),
        ("Training", _training(report, curves or {}, student)),
        ("All answers", _all_answers(report, samples_dir, student) if samples_dir else ""),
        ("What this does not show", _list([safe(limit) for limit in report.limits])),
        ("Where the numbers come from", _provenance(report)),
        ("Words", _glossary()),
    ]
    css = resources.files("potstill.examine").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{safe(report.run)}: report</title><style>{css}</style></head><body><main>"
        f"<header><p class=run>Potstill report, {safe(report.task.get('name', ''))}</p>"
        f"<h1>{safe(report.run)}</h1>{_verdict(report)}</header>{body}</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    sentences = re.split(r"(?<=\.) (?=[A-Z0-9])", report.verdict)
    return f'<div class="verdict">{"".join(f"<p>{safe(s)}</p>" for s in sentences)}</div>'


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _retention(report: Report) -> str:
    if not report.retention:
        return ""
    note = (
        f'<p class="small soft">On {safe(metric_text(report.primary_metric))}, with 95 % '
        "intervals. Above 100 % the student is ahead of its teacher.</p>"
    )
    return retention_list(report) + note


def _plots(report: Report, student: str) -> str:
    primary = report.primary_metric
    quality = metric_text(primary)
    found = {r: e for r, e in report.models.items() if e.metrics[primary].value is not None}

    def y_text(value: float) -> str:
        return f"{value:.0f}" if report.models[student].metrics[primary].unit else f"{value:.2f}"

    def points(of: Mapping[str, float]) -> list[Point]:
        return [
            Point(r, of[r], e.metrics[primary].value, e.metrics[primary].low,
                  e.metrics[primary].high, r == student)
            for r, e in found.items()
            if of.get(r)
        ]  # fmt: skip

    levels = [
        Point(r, e.metrics[primary].value, 0, e.metrics[primary].low, e.metrics[primary].high,
              r == student)
        for r, e in found.items()
    ]  # fmt: skip
    figures = [
        _figure(
            forest(levels, title=f"{quality} of each model", x_text=y_text, zero=None),
            f"{quality} with 95 % intervals.",
        )
    ]
    seconds = {r: e.metrics["latency"].value for r, e in found.items() if "latency" in e.metrics}
    disk = {r: float(e.disk_bytes) for r, e in found.items() if e.disk_bytes}
    for of, what, x_text in (
        (seconds, "time for an answer", lambda v: number(v, "seconds")),
        (disk, "size on disk", size),
    ):
        drawn = points(of)
        if len(drawn) > 1:
            missing = [role for role in found if not of.get(role)]
            left_out = f" Not known for: {', '.join(missing)}." if missing else ""
            figures.append(
                _figure(
                    pareto(drawn, title=f"{quality} against {what}", x_text=x_text, y_text=y_text),
                    f"{quality} (up) against {what} (right, logarithmic). Dashed: no other "
                    f"model is both better and cheaper.{left_out}",
                )
            )
    return f'<div class="plots">{"".join(figures)}</div>'


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{safe(caption)}</figcaption></figure>"


def _gates(report: Report) -> str:
    return _list(
        [
            mark("passed", "passed") + f" {safe(g['rule'])} ({safe(g['found'])})"
            if g["passed"]
            else mark("failed", "failed") + f" {safe(g['rule'])} ({safe(g['found'])})"
            for g in report.gates
        ]
    )


def _cases(report: Report, cases: Sequence[Mapping[str, Any]]) -> str:
    if not report.num_regressions:
        return "<p>Nowhere in this test set.</p>"
    shown = len(cases)
    count = f"{report.num_regressions:,} answers" + (
        f"; the first {shown} are here" if shown < report.num_regressions else ""
    )
    return f'<p class="small soft">{count}.</p>' + "".join(_case(case) for case in cases)


def _wins(report: Report) -> str:
    if not report.num_wins:
        return ""
    cases = "".join(_case(case) for case in report.wins)
    return f"<details><summary>{report.num_wins:,} answers</summary>{cases}</details>"


def _case(case: Mapping[str, Any]) -> str:
    answers = "".join(
        f"<div><h4>{safe(role_text(role))} "
        f"{mark('right', 'right') if role in case['right'] else mark('wrong', 'wrong')}"
        f"{' cut' if role in case['cut'] else ''}</h4>{_pre(text)}</div>"
        for role, text in case["answers"].items()
    )
    prompt = "".join(
        f'<div class="small soft">{safe(m["role"])}</div>{_pre(m["content"])}'
        for m in case["prompt"]
    )
    where = safe(case["record_id"]) + (f", turn {case['turn'] + 1}" if case["turn"] else "")
    question = next((m["content"] for m in reversed(case["prompt"]) if m["role"] == "user"), "")
    return (
        f'<article class="case"><p><bdi>{safe(_cut(question, 160))}</bdi></p>'
        f'<p class="small"><span class="soft">right answer:</span> '
        f"<bdi>{safe(_cut(case['reference'], 300))}</bdi></p>"
        f'<div class="answers">{answers}</div>'
        f"<details><summary>whole prompt ({where})</summary>{prompt}</details></article>"
    )


def _pre(text: str) -> str:
    return f'<pre dir="auto">{safe(_cut(text, ANSWER_CHARACTERS)) or "<i>nothing</i>"}</pre>'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length].rstrip() + " \N{HORIZONTAL ELLIPSIS}"


def _classes(report: Report, student: str) -> str:
    if not report.models[student].by_class:
        return ""
    text = classes_table(report, student)
    if report.confusion.get(student):
        text += f"<h3>What was taken for what</h3>{confusion_table(report, student)}"
    return text


def _slices(report: Report, student: str) -> str:
    return slices_table(report, student) if report.models[student].by_slice else ""


def _funnel(report: Report) -> str:
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
    return f'<ul class="funnel">{rows}</ul>{_list([safe(line) for line in quality_lines(report)])}'


def _training(
    report: Report, logged: Mapping[str, Sequence[Mapping[str, Any]]], student: str
) -> str:
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
        text = _figure(
            draw_curves(lines, title="Loss by training step"),
            "Loss in nats per token by step. Lines with dots: validation records, which choose "
            f"the checkpoint. Thin line: training records of {student}. Losses of models that "
            "learn from different things (text, probabilities) are not to be compared.",
        )
    facts = {k: v for k, v in report.training.items() if not isinstance(v, Mapping)}
    parts = {k: v for k, v in report.training.items() if isinstance(v, Mapping)}
    return (
        text
        + _facts(facts)
        + "".join(f"<h3>{safe(role)}</h3>{_facts(found)}" for role, found in parts.items())
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{safe(k)}</dt><dd>{safe(_fact(k, v))}</dd>" for k, v in facts.items())
    return f'<dl class="facts small">{rows}</dl>' if rows else ""


def _fact(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_fact(k, v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if key.endswith("seconds"):
        return duration(value)
    if key.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _provenance(report: Report) -> str:
    models = "".join(
        f"<h3>{safe(role)}</h3>"
        + _facts(
            {
                "model": found.id,
                "fingerprint": found.fingerprint or "not known",
                "decoding": found.decoding,
                "measured with": found.setting,
                "answers": found.samples or "not kept",
            }
        )
        for role, found in report.models.items()
    )
    rules = _facts(
        {
            metric_text(name): f"{found.signature}; interval: {found.method}"
            for name, found in next(iter(report.models.values())).metrics.items()
            if found.signature
        }
    )
    return (
        f"<h3>Test set</h3>{_facts(report.task)}<h3>Rules of the metrics</h3>{rules}"
        f"<h3>Environment</h3>{_facts(report.environment)}"
        f"<details><summary>Models and decoding</summary>{models}</details>"
    )


def _all_answers(report: Report, samples_dir: Path, student: str) -> str:
    roles = [r for r in ("teacher", student, "untouched") if r in report.models]
    by_role = {
        role: {
            (s.record_id, s.turn): s
            for s in read_jsonl(samples_dir / Path(report.models[role].samples).name, Sample)
        }
        for role in roles
        if report.models[role].samples
    }
    if not by_role.get(student):
        return ""
    rows = []
    for key, ours in list(by_role[student].items())[:MAX_ROWS]:
        cells = "".join(_answer_cell(by_role[role].get(key)) for role in by_role)
        question = ours.prompt[-1].content if ours.prompt else ""
        reference = ours.references[0] if ours.references else ""
        rows.append(
            f"<tr><td><bdi>{safe(_cut(question, ROW_CHARACTERS))}</bdi></td>"
            f"<td><bdi>{safe(_cut(reference, ROW_CHARACTERS))}</bdi></td>{cells}</tr>"
        )
    headings = ["question", "right answer", *(safe(role) for role in by_role)]
    left_out = len(by_role[student]) - len(rows)
    caption = (
        f"Long texts are cut. {f'{left_out:,} more rows are in the files.' if left_out else ''}"
    )
    content = table(headings, rows, caption=caption)
    return f"<details><summary>{len(rows):,} rows</summary>{content}</details>"


def _answer_cell(sample: Sample | None) -> str:
    if sample is None:
        return "<td></td>"
    verdict = ""
    if sample.correct is not None:
        verdict = mark("right", "right") if sample.correct >= 0.5 else mark("wrong", "wrong")
    text = sample.text or sample.error
    return f"<td>{verdict} <bdi>{safe(_cut(text, ROW_CHARACTERS))}</bdi></td>"


def _glossary() -> str:
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in GLOSSARY.items())}</dl>"
