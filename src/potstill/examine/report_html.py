"""The report as one HTML file: no network, no script, prints to PDF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from potstill.examine.numbers import number, size
from potstill.examine.report_answers import all_answers_html, regressions_html, wins_html
from potstill.examine.report_charts import Point, forest, pareto
from potstill.examine.report_inherited import TITLE, inherited_lines
from potstill.examine.report_judge_html import html_section
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
)
from potstill.examine.report_training import (
    bullets,
    facts_html,
    figure,
    funnel_html,
    training_html,
)
from potstill.examine.report_verdict import metric_text, role_text
from potstill.types import Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

GLOSSARY = {
    "teacher": "The large model whose answers the student learnt from.",
    "student": "The small model. Untouched: as it was before; distilled: after training on the "
    "teacher's answers or probabilities.",
    "text, gold_few, gold_all": "The same student, trained on the teacher's text alone, on some "
    "known answers, or on all of them.",
    "majority, tfidf": "Ways without a language model: always the commonest answer, and a "
    "classifier that counts words, trained on known answers (gold) or on the teacher's.",
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
    "cut off": "Share of answers that reached the allowed length before their end; they count as "
    "wrong.",
    "agrees with teacher": "Share of answers that are the teacher's, right or wrong.",
    "judge": "A model that reads two answers in both orders and says which is better.",
    "tokens/s": "How fast an answer is written; a token is a short piece of a word.",
    "memory": "Most that a process of its own took to answer, above an empty one.",
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
        (_plots_title(report), _plots(report, student)),
        *speed_html(report),
        ("Is it better?", comparisons_table(report) if report.comparisons else ""),
        ("What the judge prefers", html_section(report)),
        ("Gates", _gates(report)),
        (f"Where {name} is wrong and another is right", regressions_html(report)),
        (f"Where only {name} is right", wins_html(report)),
        ("By answer", _classes(report, student)),
        ("By part of the test set", _slices(report, student)),
        (TITLE, bullets([safe(line) for line in inherited_lines(report, student)])),
        ("Training data", funnel_html(report)),
        ("Training", training_html(report, curves or {}, student)),
        ("All answers", all_answers_html(report, samples_dir, student) if samples_dir else ""),
        ("What this does not show", bullets([safe(limit) for limit in report.limits])),
        ("Where the numbers come from", _provenance(report)),
        ("Words", _glossary()),
    ]
    css = resources.files("potstill.examine").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(_section(title, text) for title, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{safe(report.run)}: report</title><style>{css}</style></head><body><main>"
        f"<header><p class=run>Potstill report, {safe(report.task.get('name', ''))}</p>"
        f"<h1>{safe(report.run)}</h1>{_verdict(report)}</header>{body}</main></body></html>\n"
    )


def _section(title: str, text: str) -> str:
    """A part of the page; one that is folded up as a whole is printed only where it is open."""
    kind = " class=folded" if text.startswith("<details") else ""
    return f"<section{kind}><h2>{title}</h2>{text}</section>"


def _verdict(report: Report) -> str:
    sentences = re.split(r"(?<=\.) (?=[A-Z0-9])", report.verdict)
    lines = "".join(f"<p>{_kept_together(safe(s))}</p>" for s in sentences)
    return f'<div class="verdict">{lines}</div>'


def _kept_together(text: str) -> str:
    """Text whose numbers and units stay on one line."""
    return re.sub(r"(?<=\d) (?=(%|s|ms|min|h|points|[kMGT]?B)\b|%)", "&nbsp;", text)


def _retention(report: Report) -> str:
    if not report.retention:
        return ""
    note = (
        f'<p class="small soft">On {safe(metric_text(report.primary_metric))}, with 95 % '
        "intervals. Above 100 % the student is ahead of its teacher.</p>"
    )
    return retention_list(report) + note


def _plots_title(report: Report) -> str:
    """What the plots show: two models that were only asked have neither time nor size."""
    found = report.models.values()
    is_timed = any("latency" in one.metrics or one.disk_bytes for one in found)
    return "Quality against time and size" if is_timed else "Quality"


def _plots(report: Report, student: str) -> str:
    primary = report.primary_metric
    quality = metric_text(primary)
    found = {r: e for r, e in report.models.items() if e.metrics[primary].value is not None}

    ends = [v for e in found.values() for v in (e.metrics[primary].low, e.metrics[primary].high)]
    span = max((v for v in ends if v is not None), default=1.0) - min(
        (v for v in ends if v is not None), default=0.0
    )

    def y_text(value: float) -> str:
        if report.models[student].metrics[primary].unit:
            return f"{value:.0f}"
        return f"{value:.2f}" if span > 0.05 else f"{value:.3f}"

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
        figure(
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
                figure(
                    pareto(drawn, title=f"{quality} against {what}", x_text=x_text, y_text=y_text),
                    f"{quality} (up) against {what} (right, logarithmic). Dashed: no other "
                    f"model is both better and cheaper.{left_out}",
                )
            )
    return f'<div class="plots">{"".join(figures)}</div>'


def _gates(report: Report) -> str:
    return bullets(
        [
            mark("passed", "passed") + f" {safe(g['rule'])} ({safe(g['found'])})"
            if g["passed"]
            else mark("failed", "failed") + f" {safe(g['rule'])} ({safe(g['found'])})"
            for g in report.gates
        ]
    )


def _classes(report: Report, student: str) -> str:
    if not report.models[student].by_class:
        return ""
    text = classes_table(report, student)
    if report.confusion.get(student):
        text += f"<h3>What was taken for what</h3>{confusion_table(report, student)}"
    return text


def _slices(report: Report, student: str) -> str:
    return slices_table(report, student) if report.models[student].by_slice else ""


def _provenance(report: Report) -> str:
    models = "".join(
        f"<h3>{safe(role)}</h3>"
        + facts_html(
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
    rules = facts_html(
        {
            metric_text(name): f"{found.signature}; interval: {found.method}"
            for name, found in next(iter(report.models.values())).metrics.items()
            if found.signature
        }
    )
    return (
        f"<h3>Test set</h3>{facts_html(report.task)}<h3>Rules of the metrics</h3>{rules}"
        f"<h3>Environment</h3>{facts_html(report.environment)}"
        f"<details><summary>Models and decoding</summary>{models}</details>"
    )


def _glossary() -> str:
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in GLOSSARY.items())}</dl>"
