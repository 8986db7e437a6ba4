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
    FEW_RECORDS,
    agreement,
    compare_all,
    confusion,
    regressions_and_wins,
    retention,
)
from potstill.examine.gates import check_gates
from potstill.examine.metrics import get_metric
from potstill.examine.report_verdict import is_export, verdict_sentence
from potstill.protocols import BUILTIN, Metric
from potstill.types import Estimate, Evaluation, Report, Sample

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
NOT_COMPARED = ("length_ratio", "copy_rate", "truncation_rate", "refusal_rate", "agreement")
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
    closed: bool = False,
    student: str = "distilled",
    gates: Sequence[str] = (),
    data: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    limits: Sequence[str] = (),
) -> Report:
    """Compares all rows with the student and writes the verdict.

    Args:
        task: name, split, n, dataset and prompt hashes.
        evaluations: Role -> evaluation; `samples` has the answers each was made of.
        primary_metric: The metric that verdicts are on.
        margin: How far below the teacher still counts as not inferior, as a share of the
            metric's scale.
        closed: Whether answers come from a small set: adds agreement and confusions.
        student: The role that the report is about.
        limits: What else this report does not show.

    Raises:
        DataError: If the student was not evaluated or an evaluation has no samples.
        ConfigError: If a gate cannot be read.
    """
    models = _checked(evaluations, samples, student)
    models = _with_agreement(models, samples, seed) if closed else models
    metrics = [get_metric(name) for name in _compared(models, student, primary_metric)]
    pairs = [(student, role) for role in models if role != student and not is_export(role)]
    pairs += [(role, student) for role in models if is_export(role) and role != student]
    comparisons = compare_all(pairs, metrics, samples, margin=margin, seed=seed)
    primary = metrics[0].name
    kept = _retention(metrics[0], models, samples, student, seed)
    checked = check_gates(gates, models, student=student)
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
        confusion={role: confusion(samples[role]) for role in models} if closed else {},
        gates=tuple(checked),
        data=data or {},
        training=training or {},
        environment=environment or {},
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


def _ordered(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Teacher first, then the student and its exports, then the simpler ways."""

    def place(role: str) -> float:
        if role in ROW_ORDER:
            return ROW_ORDER.index(role)
        return 1.5 if is_export(role) else len(ROW_ORDER)

    return {role: evaluations[role] for role in sorted(evaluations, key=place)}


def _with_agreement(
    models: dict[str, Evaluation], samples: Mapping[str, Sequence[Sample]], seed: int
) -> dict[str, Evaluation]:
    if "teacher" not in models:
        return models
    found = {}
    for role, evaluation in models.items():
        if role != "teacher":
            same = agreement(samples[role], samples["teacher"], seed=seed)
            evaluation = evaluation.model_copy(
                update={"metrics": {**evaluation.metrics, "agreement": same}}
            )
        found[role] = evaluation
    return found


def _compared(models: Mapping[str, Evaluation], student: str, primary: str) -> list[str]:
    """Names of the metrics with a verdict, the primary one first."""
    shared = [
        name
        for name in models[student].metrics
        if name in BUILTIN["metric"]
        and name not in NOT_COMPARED
        and all(name in evaluation.metrics for evaluation in models.values())
    ]
    return list(
        dict.fromkeys([get_metric(primary).name if ":" not in primary else primary, *shared])
    )


def _limits(models: Mapping[str, Evaluation], student: str, primary: str) -> list[str]:
    found = models[student].metrics[primary]
    limits = [
        "One training run with one seed: another seed gives a somewhat different student. The "
        "intervals are about the test answers, not about training again.",
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
