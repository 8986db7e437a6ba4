"""What a comparison of two models found, and that as a report."""

from __future__ import annotations

from typing import Any

from potstill.examine.resample import FEW_RECORDS
from potstill.types import Comparison, Estimate, Evaluation, Noun, Report


class Versus(Noun):
    """Two models side by side: a minus b."""

    a: str
    b: str
    task: str
    n: int
    """Answers that both gave."""

    models: dict[str, Evaluation] = {}
    """What each of them is, with its metrics."""

    metrics: dict[str, dict[str, Estimate]]
    """Model -> metric."""

    comparisons: tuple[Comparison, ...]
    num_only_a: int = 0
    num_only_b: int = 0
    """Answers that only one of the two has right."""

    only_a: tuple[dict[str, Any], ...] = ()
    only_b: tuple[dict[str, Any], ...] = ()
    """The first 50 of each, side by side."""

    judge: dict[str, Any] = {}
    people: dict[str, Any] = {}
    """What was preferred, as a report's `judge`."""

    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()


def versus_report(found: Versus) -> Report:
    """Two models as a report, with the first one as what it is about."""
    said = [one for one in (found.judge, found.people) if one]
    judge = said[0] if said else {}
    preferences = [one for part in said for one in part.get("preferences", ())]
    limits = ["The test set is one collection of questions: others may be harder for either."]
    if found.n < FEW_RECORDS:
        limits.append(f"Below {FEW_RECORDS} answers, here {found.n}, no interval is to be trusted.")
    return Report(
        run=f"{found.a} against {found.b}",
        task={"name": found.task, "n": found.n},
        models=found.models,
        comparisons=found.comparisons,
        primary_metric=found.comparisons[0].metric if found.comparisons else "",
        verdict=" ".join(found.verdict),
        regressions=found.only_b,
        wins=found.only_a,
        num_regressions=found.num_only_b,
        num_wins=found.num_only_a,
        judge={**judge, "preferences": preferences} if preferences else judge,
        limits=(*found.notes, *limits),
    )
