"""The same benchmark questions before and after training: what changed, question by question."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from potstill.examine.compare import Paired, compare_paired, holm
from potstill.examine.general import PREFIX, is_number, results_files
from potstill.examine.metrics import MeanMetric
from potstill.protocols import Metric
from potstill.types import Comparison, Estimate, Report

Marks = dict[str, float]
"""Question -> what its answer got."""


def marks_of(out: Path) -> dict[str, Marks]:
    """The marks of single questions in what lm-eval wrote last into a folder.

    Returns:
        general.TASK.METRIC -> marks, of the figures that are the mean of all questions' marks;
        a perplexity is none, and groups of tasks have no questions of their own.
    """
    files = sorted(results_files(out))
    if not files:
        return {}
    results = files[-1][1]
    tree = json.loads(results.read_text(encoding="utf-8"))
    stamp = results.stem.removeprefix("results_")
    found = {}
    for task, figures in tree.get("results", {}).items():
        rows = _rows(results.with_name(f"samples_{task}_{stamp}.jsonl"))
        for key, value in figures.items():
            name, _, how = key.partition(",")
            said = [row for row in rows if row.get("filter", "none") == how]
            if not said or not is_number(value) or not all(_has_mark(row, name) for row in said):
                continue
            marks = {_question(row): float(row[name]) for row in said}
            mean = math.fsum(marks.values()) / len(marks)
            if len(marks) == len(said) and math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
                found[f"{PREFIX}.{task}.{name}"] = marks
    return found


def _rows(samples: Path) -> list[dict[str, Any]]:
    if not samples.exists():
        return []
    with samples.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _question(row: Mapping[str, Any]) -> str:
    return f"{row.get('doc_id')} {row.get('doc_hash', '')}"


def _has_mark(row: Mapping[str, Any], name: str) -> bool:
    return is_number(row.get(name)) or isinstance(row.get(name), bool)


def drifts(
    after: Mapping[str, Marks],
    before: Mapping[str, Marks],
    figures: Mapping[str, Estimate],
    *,
    margin: float,
    seed: int,
) -> list[Comparison]:
    """The distilled student minus the untouched one, in pairs, Holm-corrected together.

    Args:
        figures: The student's, which say whether more is better; others are not compared.
        margin: Loss that still counts as none, where marks lie between 0 and 1.
    """
    metrics: dict[str, Metric] = {}
    found = []
    for name, ours in after.items():
        theirs = before.get(name, {})
        shared = [question for question in ours if question in theirs]
        if not shared or name not in figures:
            continue
        up = figures[name].higher_is_better
        metrics[name] = MeanMetric(name, lambda sample: None, "marks", higher_is_better=up)
        a, b = (np.array([[marks[q], 1.0] for q in shared]) for marks in (ours, theirs))
        both = np.concatenate([a[:, 0], b[:, 0]])
        paired = Paired(
            a,
            b,
            units=np.arange(len(shared)),
            num_unpaired=max(len(ours), len(theirs)) - len(shared),
            is_share=bool(np.isin(both, (0.0, 1.0)).all()),
        )
        within = margin if 0 <= both.min() and both.max() <= 1 else None
        found.append(
            compare_paired(
                "distilled", "untouched", metrics[name], paired, margin=within, seed=seed
            )
        )
    return holm(found, metrics)


def with_drifts(report: Report, folders: Mapping[str, Path], *, margin: float, seed: int) -> Report:
    """The report with what the student lost or won of its general ability, compared in pairs.

    Args:
        folders: Where lm-eval wrote about `untouched` and `distilled`. Figures whose single marks
            are not there stay as they are: told beside each other, unpaired.
    """
    student, before = report.models["distilled"], report.models.get("untouched")
    if before is None:
        return report
    marks = {role: marks_of(folders[role]) for role in ("distilled", "untouched")}
    found = drifts(
        marks["distilled"], marks["untouched"], student.metrics, margin=margin, seed=seed
    )
    metrics = dict(student.metrics)
    for one in found:
        note = f"untouched {before.metrics[one.metric].value:.3f}; {one.difference:+.3f}"
        if one.low is not None and one.high is not None:
            note += f" [{one.low:+.3f}, {one.high:+.3f}]"
        metrics[one.metric] = metrics[one.metric].model_copy(update={"note": f"{note}, paired"})
    models = {**report.models, "distilled": student.model_copy(update={"metrics": metrics})}
    comparisons = (*report.comparisons, *found)
    return report.model_copy(update={"models": models, "comparisons": comparisons})
