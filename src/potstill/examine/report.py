"""Puts all evaluations of a run together: comparisons, retention, gates, verdict.

The report is JSON; `report_markdown` and `report_html` draw it again at any time without a
model. Its `data` may hold `requested`, `answered`, `accepted` (counts), `rejected` (reason to
count) and `quality` (figures of the accepted set).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import DataError
from potstill.examine.compare import (
    compare_all,
    confusion,
    regressions_and_wins,
)
from potstill.examine.fidelity import agreement, likeness, retention
from potstill.examine.gates import check_gates
from potstill.examine.inherited import inherited_faults
from potstill.examine.metrics import get_metric
from potstill.examine.parts import SLICE_FIELDS
from potstill.examine.report_verdict import is_export, verdict_sentence
from potstill.examine.resample import FEW_RECORDS
from potstill.protocols import BUILTIN, Metric
from potstill.types import Comparison, Estimate, Evaluation, Report, Sample

ROW_ORDER = (
    "teacher",
    "distilled",
    "text",
    "gold_all",
    "gold_few",
    "untouched",
    "tfidf_teacher",
    "tfidf_gold",
    "majority",
)
NOT_COMPARED = (
    "length_ratio",
    "copy_rate",
    "truncation_rate",
    "refusal_rate",
    "undue_refusal",
    "perplexity",
)
"""Descriptions of answers rather than their quality; no verdict is given on them."""


def build_report(
    *,
    run: str,
    task: dict[str, Any],
    evaluations: Mapping[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    primary_metric: str,
    margin: float,
    seed: int,
    metric_names: Sequence[str] = (),
    closed: bool = False,
    slices: Sequence[str] = SLICE_FIELDS,
    student: str = "distilled",
    gates: Sequence[str] = (),
    data: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    limits: Sequence[str] = (),
) -> Report:
    """Compares all rows with the student and writes the verdict.

    Args:
        evaluations: Role -> evaluation; `samples` has the answers each was made of.
        primary_metric: The metric that verdicts are on.
        margin: How far below the teacher still counts as not inferior, as a share of the
            metric's scale.
        metric_names: All that were asked for; your own are compared only where named.
        closed: Whether answers come from a small set: adds confusions.
        slices: Metadata fields that make groups.
        limits: What else this report does not show.

    Raises:
        DataError: If the student was not evaluated or an evaluation has no samples.
        ConfigError: If a gate cannot be read.
    """
    models = _with_fidelity(_checked(evaluations, samples, student), samples, seed, closed=closed)
    metrics = _compared(models, student, [primary_metric, *metric_names])
    pairs = [(student, role) for role in models if role != student and not is_export(role)]
    pairs += [(role, student) for role in models if is_export(role) and role != student]
    comparisons = _comparisons(pairs, metrics, models, samples, margin, seed)
    primary, kept = metrics[0].name, _retention(metrics[0], models, samples, student, seed)
    checked = check_gates(gates, models, student=student)
    facts = {"data": data or {}, "training": training or {}, "environment": environment or {}}
    return Report(
        run=run,
        task=task,
        models=models,
        comparisons=comparisons,
        retention=kept,
        primary_metric=primary,
        verdict=verdict_sentence(
            models, comparisons, primary=primary, student=student, gates=checked, kept=kept
        ),
        **_cases(models, samples, student),
        **_faults(models, samples, student, closed, slices, seed),
        gates=tuple(checked),
        **facts,
        limits=(*limits, *_limits(models, student, primary)),
    )


def _checked(
    evaluations: Mapping[str, Evaluation], samples: Mapping[str, Sequence[Sample]], student: str
) -> dict[str, Evaluation]:
    if student not in evaluations:
        raise DataError(
            f"a report is about {student!r}, which was not evaluated; there are: "
            f"{', '.join(evaluations) or 'no models'}"
        )
    missing = [role for role in evaluations if role not in samples]
    if missing:
        raise DataError(f"no answers are kept of: {', '.join(missing)}; evaluate them again")
    return _ordered(evaluations)


def _comparisons(
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[Metric],
    models: Mapping[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    margin: float,
    seed: int,
) -> tuple[Comparison, ...]:
    """Every pair on the metrics that both have a value of."""

    def has(role: str, metric: Metric) -> bool:
        found = models[role].metrics.get(metric.name)
        return found is not None and found.value is not None

    found: list[Comparison] = []
    for a, b in pairs:
        shared = [metric for metric in metrics if has(a, metric) and has(b, metric)]
        found += compare_all([(a, b)], shared, samples, margin=margin, seed=seed)
    return tuple(found)


def _retention(
    primary: Metric,
    models: Mapping[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    student: str,
    seed: int,
) -> dict[str, Estimate]:
    if "teacher" not in models or not primary.higher_is_better:
        return {}
    baseline = samples["untouched"] if "untouched" in models else None
    return retention(primary, samples[student], samples["teacher"], baseline, seed=seed)


def _cases(
    models: Mapping[str, Evaluation], samples: Mapping[str, Sequence[Sample]], student: str
) -> dict[str, Any]:
    others = [role for role in ("teacher", "untouched") if role in models]
    lost, won, num_lost, num_won = regressions_and_wins(samples, student=student, others=others)
    return {
        "regressions": tuple(lost),
        "wins": tuple(won),
        "num_regressions": num_lost,
        "num_wins": num_won,
    }


def _faults(
    models: Mapping[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    student: str,
    closed: bool,
    slices: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    return {
        "confusion": {role: confusion(samples[role]) for role in models} if closed else {},
        "inherited": inherited_faults(
            {role: samples[role] for role in models},
            student=student,
            closed=closed,
            fields=slices,
            seed=seed,
        ),
    }


def _ordered(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Teacher first, then the student and its exports, then the simpler ways."""

    def place(role: str) -> float:
        if role in ROW_ORDER:
            return ROW_ORDER.index(role)
        return 1.5 if is_export(role) else len(ROW_ORDER)

    return {role: evaluations[role] for role in sorted(evaluations, key=place)}


def _with_fidelity(
    models: dict[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    seed: int,
    *,
    closed: bool,
) -> dict[str, Evaluation]:
    """Adds how far each model's answers are its teacher's: the same ones, or like words."""
    if "teacher" not in models:
        return models
    found = {}
    for role, evaluation in models.items():
        if role != "teacher":
            same = {"agreement": agreement(samples[role], samples["teacher"], seed=seed)}
            if not closed:
                same["likeness"] = likeness(samples[role], samples["teacher"], seed=seed)
            metrics = {**evaluation.metrics, **same}
            evaluation = evaluation.model_copy(update={"metrics": metrics})
        found[role] = evaluation
    return found


def _compared(models: Mapping[str, Evaluation], student: str, named: Sequence[str]) -> list[Metric]:
    """The metrics with a verdict, the primary one first."""
    own = [get_metric(name) for name in named if ":" in name]
    known = {metric.name: metric for metric in own}
    primary = own[0].name if named[0].count(":") else get_metric(named[0]).name
    shared = [
        name
        for name in models[student].metrics
        if (name in BUILTIN["metric"] or name in known) and name not in NOT_COMPARED
    ]
    names = dict.fromkeys([primary, *shared])
    return [known.get(name) or get_metric(name) for name in names]


def _limits(models: Mapping[str, Evaluation], student: str, primary: str) -> list[str]:
    found = models[student].metrics[primary]
    limits = [
        "One training run with one seed: another seed gives a somewhat different student. The "
        "intervals are about the test answers, not about training again (potstill seeds puts "
        "several runs together).",
        "The test set is one collection of questions: other users, topics or times may be harder.",
    ]
    if found.n < FEW_RECORDS:
        limits.append(
            f"{found.n} test answers are too few: below {FEW_RECORDS} no interval is to be trusted."
        )
    if any("latency" in evaluation.metrics for evaluation in models.values()):
        limits.append(
            "Speed is of this machine with one request at a time; other hardware and many "
            "requests at once give other numbers."
        )
    if "teacher" not in models:
        limits.append("The teacher did not answer the test set, so nothing is compared with it.")
    if "untouched" not in models:
        limits.append("The untouched student was not asked, so it is open whether training helped.")
    if not any(role.startswith(("tfidf", "gold", "majority")) for role in models):
        limits.append("No simpler way (a plain classifier, training on known answers) was tried.")
    return limits
