"""Faults that a student can take over from its teacher, measured where the data allows.

A skew of labels or between groups counts as carried over where teacher and student both have
it, beyond chance and in the same direction; the untouched student says whether it was there
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.examine.compare import Paired, compare_paired, holm, join
from potstill.examine.metrics import MeanMetric, classes_of, estimate
from potstill.examine.parts import MAX_SLICES, slices
from potstill.examine.rates import undue_refusal, wrong_language_rate
from potstill.examine.resample import unit_ids
from potstill.types import Comparison, Estimate, Sample

NUM_RESAMPLES = 2_000
MOST_LABELS = 12
MIN_IN_GROUP = 20

Samples = Sequence[Sample]
Found = dict[str, dict[str, dict[str, Estimate]]]
"""Fault -> where -> role -> how much."""


def inherited_faults(
    samples: Mapping[str, Samples],
    *,
    student: str,
    closed: bool,
    fields: Sequence[str] = (),
    seed: int = 0,
) -> Found:
    """What teacher, student and untouched student have in common that is wrong.

    `labels`: how much more often a label is said than it is right, in all and in each group;
    p-values are Holm-corrected over the labels and groups of one model. `groups`: accuracy in a
    group minus accuracy elsewhere. `mistakes`: share of the teacher's wrong answers that a model
    gives too. `refusals`, `language`: shares of answers that refuse where the right answer does
    not, or are in another script or language than it.

    Args:
        samples: Role -> answers. Without a teacher or known answers nothing is found.
        fields: Metadata fields that make groups.

    Returns:
        Only what could be measured.
    """
    roles = [role for role in ("teacher", student, "untouched") if samples.get(role)]
    if roles[:2] != ["teacher", student]:
        return {}
    joined = dict(zip(roles, join(*(samples[role] for role in roles)), strict=True))
    groups = [field for field in fields if field != "label"]
    found: Found = {
        "labels": _labels(joined, groups, seed) if closed else {},
        "groups": _groups(joined, groups, seed),
        "mistakes": _mistakes(joined, seed),
        "refusals": _rates(undue_refusal, joined, seed),
        "language": _rates(wrong_language_rate, joined, seed),
    }
    return {fault: rows for fault, rows in found.items() if rows}


def is_carried(row: Mapping[str, Estimate], student: str) -> bool:
    """Whether teacher and student are both off, surely and in the same direction."""
    teacher, ours = (_direction(row.get(role)) for role in ("teacher", student))
    return teacher != 0 and teacher == ours


def was_there(row: Mapping[str, Estimate], student: str) -> bool:
    """Whether the untouched student was off in the student's direction already."""
    ours = _direction(row.get(student))
    return ours != 0 and ours == _direction(row.get("untouched"))


def _direction(found: Estimate | None) -> int:
    if found is None or found.low is None or found.high is None or found.note == CHANCE:
        return 0
    return int(found.low > 0) - int(found.high < 0)


CHANCE = "no more than chance, given how many labels and groups were looked at"


def _labels(joined: Mapping[str, Samples], fields: Sequence[str], seed: int) -> dict:
    """Where -> role -> share of answers that say a label minus share that should."""
    known = {role: [s for s in rows if s.target is not None] for role, rows in joined.items()}
    teacher = known["teacher"]
    names = classes_of(teacher)
    if len(names) < 2:
        return {}
    counts = {name: sum(s.target == name for s in teacher) for name in names}
    names = sorted(sorted(names, key=lambda name: -counts[name])[:MOST_LABELS])
    place = {(s.record_id, s.turn): i for i, s in enumerate(teacher)}
    parts = {"": np.arange(len(teacher))}
    for part, members in _groups_of(teacher, fields).items():
        parts[part] = np.array([place[(s.record_id, s.turn)] for s in members])
    units = unit_ids(teacher)
    table: dict[str, dict[str, Estimate]] = {}
    for role, rows in known.items():
        family, metrics = [], {}
        for name in names:
            ours, right = (
                np.array([[float(label == name), 1.0] for label in labels])
                for labels in ([s.prediction for s in rows], [s.target for s in rows])
            )
            for part, members in parts.items():
                where = f"{name} in {part}" if part else name
                metric = metrics[where] = MeanMetric(where, lambda s: None, "share that says it")
                own = np.unique(units[members], return_inverse=True)[1]
                paired = Paired(ours[members], right[members], own, 0, is_share=True)
                family.append(
                    compare_paired(role, "gold", metric, paired, margin=None, seed=seed,
                                   num_resamples=NUM_RESAMPLES)
                )  # fmt: skip
        for one in holm(family, metrics):
            table.setdefault(one.metric, {})[role] = _as_estimate(one)
    return table


def _as_estimate(found: Comparison) -> Estimate:
    return Estimate(
        value=found.difference,
        low=found.low,
        high=found.high,
        n=found.n,
        method=f"{found.method}; {found.test}, Holm",
        signature="share of answers that say it minus share that should",
        note="" if found.p_holm is not None and found.p_holm < 0.05 else CHANCE,
    )


@dataclass(frozen=True)
class _Gap:
    """Accuracy inside a group minus accuracy outside it."""

    members: frozenset[tuple[str, int]]
    name: str = "group_gap"
    unit: str = ""
    higher_is_better: bool = True
    signature: str = "accuracy in the group minus accuracy of all others"

    def rows(self, samples: Samples) -> np.ndarray:
        """Columns are (right, all) inside and (right, all) outside."""
        rows = np.zeros((len(samples), 4))
        for row, sample in zip(rows, samples, strict=True):
            if sample.correct is not None:
                first = 0 if (sample.record_id, sample.turn) in self.members else 2
                row[first : first + 2] = (sample.correct, 1.0)
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]


def _groups(joined: Mapping[str, Samples], fields: Sequence[str], seed: int) -> dict:
    table = {}
    marked = [s for s in joined["teacher"] if s.correct is not None]
    for part, members in _groups_of(marked, fields).items():
        gap = _Gap(frozenset((s.record_id, s.turn) for s in members))
        table[part] = {
            role: estimate(gap, rows, seed=seed, num_resamples=NUM_RESAMPLES)
            for role, rows in joined.items()
        }
    return table


def _groups_of(samples: Samples, fields: Sequence[str]) -> dict[str, list[Sample]]:
    """Parts by metadata field that are large enough to say something about, and not all."""
    parts = slices(samples, fields, by_length=False)
    large = {
        name: members
        for name, members in parts.items()
        if MIN_IN_GROUP <= len(members) <= len(samples) - MIN_IN_GROUP
    }
    return dict(list(large.items())[:MAX_SLICES])


def _mistakes(joined: Mapping[str, Samples], seed: int) -> dict:
    """Of the teacher's readable wrong answers, the share that a model gives too."""
    wrong = {
        (s.record_id, s.turn): s.prediction
        for s in joined["teacher"]
        if s.prediction is not None and s.correct is not None and s.correct < 0.5
    }
    if not wrong:
        return {}
    same = MeanMetric(
        "copied_mistakes",
        lambda s: float(s.prediction == wrong[(s.record_id, s.turn)]),
        "share of the teacher's wrong answers that are given too",
        higher_is_better=False,
    )
    found = {}
    for role, rows in joined.items():
        if role != "teacher":
            asked = [s for s in rows if (s.record_id, s.turn) in wrong]
            found[role] = estimate(same, asked, seed=seed, num_resamples=NUM_RESAMPLES)
    return {"same wrong answer as the teacher": found}


def _rates(metric: MeanMetric, joined: Mapping[str, Samples], seed: int) -> dict:
    found = {
        role: estimate(metric, rows, seed=seed, num_resamples=NUM_RESAMPLES)
        for role, rows in joined.items()
    }
    return {metric.signature: found} if any(e.n for e in found.values()) else {}
