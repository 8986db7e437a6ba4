"""Several runs that differ in their seed: what training again would change.

The interval of one run is about its test answers. How far another training run lies from it
is a second doubt, which only several runs show: the mean over them, with Student's t interval.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from potstill.errors import DataError
from potstill.examine.report_verdict import metric_text
from potstill.types import Estimate, Noun, Report

SAME = ("name", "dataset_hash", "prompt_hash", "decoding")
"""What the test sets of runs must have in common, so that only training differs."""


class SeedSummary(Noun):
    """Several runs of one distillation as one."""

    runs: tuple[str, ...]
    task: str
    primary_metric: str
    models: dict[str, dict[str, Estimate]]
    """Role -> metric -> mean over the runs, `n` of them."""

    differences: dict[str, dict[str, Estimate]]
    """"a - b" -> metric -> mean difference over the runs."""

    verdicts: dict[str, dict[str, int]]
    """"a - b" -> verdict on the primary metric -> how many runs."""

    retention: dict[str, Estimate]
    values: dict[str, tuple[float | None, ...]]
    """Role -> the primary metric's value in each run."""


def over_seeds(reports: Sequence[Report]) -> SeedSummary:
    """The mean of each number over runs, with its interval over runs.

    Raises:
        DataError: If there is one run alone, a run stands there twice, or the runs were asked
            different questions.
    """
    _refuse_unlike(reports)
    first = reports[0]
    roles = [role for role in first.models if all(role in r.models for r in reports)]
    models: dict[str, dict[str, Estimate]] = {}
    for role in roles:
        found = [r.models[role].metrics for r in reports]
        shared = [name for name in found[0] if all(name in metrics for metrics in found)]
        models[role] = {name: mean_over_runs([m[name] for m in found]) for name in shared}
    differences: dict[str, dict[str, Estimate]] = {}
    verdicts: dict[str, dict[str, int]] = {}
    by_key = [{(c.a, c.b, c.metric): c for c in r.comparisons} for r in reports]
    for a, b, metric in by_key[0]:
        if not all((a, b, metric) in found for found in by_key):
            continue
        same = [found[(a, b, metric)] for found in by_key]
        unit = first.models[a].metrics[metric].unit
        estimates = [Estimate(value=c.difference, n=c.n, unit=unit) for c in same]
        differences.setdefault(f"{a} - {b}", {})[metric] = mean_over_runs(estimates)
        if metric == first.primary_metric:
            verdicts[f"{a} - {b}"] = dict(Counter(c.verdict for c in same))
    primary = first.primary_metric
    return SeedSummary(
        runs=tuple(r.run for r in reports),
        task=str(first.task.get("name", "")),
        primary_metric=primary,
        models=models,
        differences=differences,
        verdicts=verdicts,
        retention={
            name: mean_over_runs([r.retention[name] for r in reports])
            for name in first.retention
            if all(name in r.retention for r in reports)
        },
        values={
            role: tuple(r.models[role].metrics[primary].value for r in reports) for role in roles
        },
    )


def mean_over_runs(found: Sequence[Estimate]) -> Estimate:
    """Mean of one number over runs, with Student's t interval at 95 %.

    A run that has no value leaves the mean without one.
    """
    first = found[0]
    about = {
        "n": len(found),
        "unit": first.unit,
        "signature": first.signature,
        "higher_is_better": first.higher_is_better,
    }
    values = [one.value for one in found if one.value is not None]
    if len(values) < len(found):
        note = f"{len(found) - len(values)} of {len(found)} runs have no value"
        return Estimate(value=None, method="none", note=note, **about)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if spread == 0:
        note = "the same in every run"
        return Estimate(value=mean, method="none", note=note, **about)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
    note = f"standard deviation over runs {spread:.4g}"
    method = f"t interval over {len(values)} runs"
    return Estimate(
        value=mean, low=mean - half, high=mean + half, method=method, note=note, **about
    )


def _refuse_unlike(reports: Sequence[Report]) -> None:
    if len(reports) < 2:
        raise DataError("an interval over runs needs at least two runs")
    for i, one in enumerate(reports):
        if one in reports[:i]:
            raise DataError(f"the report of {one.run} is there twice; give each run once")
    first = reports[0]
    for other in reports[1:]:
        unlike = [key for key in SAME if other.task.get(key) != first.task.get(key)]
        if other.primary_metric != first.primary_metric:
            unlike.append(f"primary metric ({metric_text(other.primary_metric)})")
        if unlike:
            raise DataError(
                f"{first.run} and {other.run} differ in {', '.join(unlike)}; a mean over runs is "
                f"of runs that differ in their seed alone"
            )
