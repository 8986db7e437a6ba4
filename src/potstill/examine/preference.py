"""Which of two models a judge, or people, prefer: ballots in, a win rate with its doubt out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from potstill.errors import DataError
from potstill.examine.ballots import (
    KINDS,
    SETTLED,
    WIN_RATE,
    Ballot,
    Outcome,
    Pair,
    Preference,
    first_place,
    outcomes,
)
from potstill.examine.compare import compare
from potstill.examine.kappa import agreements
from potstill.examine.length_control import length_controlled
from potstill.examine.metrics import MeanMetric, estimate
from potstill.examine.numbers import percent
from potstill.examine.resample import unit_ids, wilson
from potstill.types import Estimate, Sample

MANY_INCONSISTENT = 0.25
MANY_UNREADABLE = 0.02
LARGE_EFFECT_OF_LENGTH = 0.05

Key = tuple[str, int]


def preference(
    a: str,
    b: str,
    pairs: Sequence[Pair],
    ballots: Sequence[Ballot],
    *,
    by: Literal["judge", "people"],
    signature: str,
    seed: int,
    family: str = "",
    warnings: Sequence[str] = (),
) -> Preference:
    """Counts ballots: a judge's in both orders and people's in one, in the same way.

    Args:
        pairs: In the order of `ballots.pairs_of`.
        signature: Who was asked what.
        warnings: What else is to be said about the judge.

    Raises:
        DataError: If no pair was voted on.
    """
    found = outcomes(pairs, ballots)
    scored = _scored(pairs, found)
    if not scored:
        raise DataError(f"nobody voted on any of the {len(pairs)} pairs of {a} and {b}")
    metric = MeanMetric(WIN_RATE, lambda sample: sample.correct, signature)
    ours = [sample for _, sample in scored]
    theirs = [sample.model_copy(update={"correct": 1 - sample.correct}) for sample in ours]
    lengths = np.array([[len(p.a.text), len(p.b.text)] for p, _ in scored], dtype=np.float64)
    # An answer that did not come is lost for what it is, not for being short.
    longer = np.where(lengths.min(axis=1) > 0, lengths[:, 0] - lengths[:, 1], 0.0)
    scores = np.array([sample.correct for sample in ours])
    kinds = Counter(one.kind for of_voter in found.values() for one in of_voter.values())
    first, num_choices = first_place(ballots)
    result = Preference(
        a=a,
        b=b,
        by=by,
        voters=tuple(found),
        family=family,
        win_rate=_never_too_sure(estimate(metric, ours, seed=seed), ours),
        lc_win_rate=length_controlled(scores, longer, unit_ids(ours), seed=seed),
        comparison=compare(a, b, metric, ours, theirs, margin=None, seed=seed),
        counts={kind: kinds[kind] for kind in KINDS},
        first_place=_share(first, num_choices, "choices of the answer shown first"),
        characters={"a": float(lengths[:, 0].mean()), "b": float(lengths[:, 1].mean())},
        agreement=_agreement(pairs, found, seed=seed),
    )
    return result.model_copy(update={"warnings": (*warnings, *_warnings(result))})


def _scored(
    pairs: Sequence[Pair], found: Mapping[str, Mapping[Key, Outcome]]
) -> list[tuple[Pair, Sample]]:
    """Each pair that somebody voted on, with the mean of the voters' scores as `correct`."""
    scored = []
    for pair in pairs:
        given = [of_voter[pair.key] for of_voter in found.values() if pair.key in of_voter]
        if not given:
            continue
        is_read = any(one.kind != "unreadable" for one in given)
        sample = Sample(
            record_id=pair.a.record_id,
            turn=pair.a.turn,
            group=pair.a.group,
            text="",
            prediction="",
            correct=sum(one.score for one in given) / len(given),
            error="" if is_read else "no verdict",
        )
        scored.append((pair, sample))
    return scored


def _never_too_sure(found: Estimate, samples: Sequence[Sample]) -> Estimate:
    """Resamples of ties alone are all the same; an interval of no width would be a lie."""
    if len({sample.correct for sample in samples}) > 1 or found.method.startswith("wilson"):
        return found
    num_units = int(unit_ids(samples).max()) + 1
    low, high = wilson(samples[0].correct * num_units, num_units)
    return found.model_copy(update={"low": low, "high": high, "method": "wilson, equal scores"})


def _share(count: int, n: int, what: str) -> Estimate:
    if n == 0:
        return Estimate(value=None, n=0, method="none", note=f"there are no {what}")
    low, high = wilson(count, n)
    return Estimate(value=count / n, low=low, high=high, n=n, method="wilson")


def choice_of(score: float) -> str:
    """What a score says: a, b, or a tie."""
    return "a" if score > 0.5 else "b" if score < 0.5 else "tie"


def _agreement(
    pairs: Sequence[Pair], found: Mapping[str, Mapping[Key, Outcome]], *, seed: int
) -> dict[str, dict[str, Estimate]]:
    """With the known answers, and between every two voters; only pairs that were looked at."""
    result = {}
    opinions = {key: choice_of(score) for key, score in mean_scores(found).items()}
    result["known answers"] = compared(pairs, opinions, right_ones(pairs), seed=seed)
    each = {
        voter: {k: choice_of(one.score) for k, one in of_voter.items() if one.kind not in SETTLED}
        for voter, of_voter in found.items()
    }
    for one, other in itertools.combinations(each, 2):
        result[f"{one} and {other}"] = compared(pairs, each[one], each[other], seed=seed)
    return {name: values for name, values in result.items() if values}


def right_ones(pairs: Sequence[Pair]) -> dict[Key, str]:
    """Whose answer is right, of the pairs in which exactly one is: a or b."""
    return {
        pair.key: "a" if pair.a.correct >= 0.5 else "b"
        for pair in pairs
        if pair.a.correct is not None
        and pair.b.correct is not None
        and (pair.a.correct >= 0.5) != (pair.b.correct >= 0.5)
    }


def scores_agreement(
    pairs: Sequence[Pair],
    scores_a: Mapping[Key, float | None],
    scores_b: Mapping[Key, float | None],
    *,
    seed: int,
) -> dict[str, Estimate]:
    """Whether the right one of two answers has the higher score; {} where no pair tells.

    What a judge that scores answers one by one is worth, on the scale of one that compares them.
    """
    opinions = {}
    for pair in pairs:
        one, two = scores_a.get(pair.key), scores_b.get(pair.key)
        if one is not None and two is not None:
            opinions[pair.key] = "a" if one > two else "b" if one < two else "tie"
    return compared(pairs, opinions, right_ones(pairs), seed=seed)


def mean_scores(found: Mapping[str, Mapping[Key, Outcome]]) -> dict[Key, float]:
    """Mean score of the voters on each pair that was looked at."""
    scores: dict[Key, list[float]] = {}
    for of_voter in found.values():
        for key, one in of_voter.items():
            if one.kind not in SETTLED:
                scores.setdefault(key, []).append(one.score)
    return {key: sum(values) / len(values) for key, values in scores.items()}


def compared(
    pairs: Sequence[Pair], ours: Mapping[Key, str], theirs: Mapping[Key, str], *, seed: int
) -> dict[str, Estimate]:
    """Agreement and kappa of two sets of opinions on the pairs that both have."""
    samples = [
        Sample(
            record_id=pair.a.record_id,
            turn=pair.a.turn,
            group=pair.a.group,
            text="",
            prediction=ours[pair.key],
            target=theirs[pair.key],
        )
        for pair in pairs
        if pair.key in ours and pair.key in theirs
    ]
    return agreements(samples, seed=seed)


def with_people(
    judged: Preference, pairs: Sequence[Pair], ballots: Sequence[Ballot], votes: Sequence[Ballot],
    *, seed: int,
) -> Preference:  # fmt: skip
    """The judge's preference with its agreement with people's votes on the same pairs."""
    sides = [
        {key: choice_of(s) for key, s in mean_scores(outcomes(pairs, given)).items()}
        for given in (ballots, votes)
    ]
    found = compared(pairs, *sides, seed=seed)
    if not found:
        return judged
    return judged.model_copy(update={"agreement": {**judged.agreement, "people": found}})


def _warnings(found: Preference) -> list[str]:
    """What a reader must know before believing the win rate."""
    num_asked = sum(n for kind, n in found.counts.items() if kind not in SETTLED)
    warnings = []
    for kind, limit, text in (
        ("inconsistent", MANY_INCONSISTENT,
         "the judge's choice depends on which answer stands first; these count as ties"),
        ("unreadable", MANY_UNREADABLE, "no verdict could be read; these count as ties"),
    ):  # fmt: skip
        count = found.counts[kind]
        if num_asked and count / num_asked > limit:
            share = percent(count / num_asked, digits=0)
            warnings.append(f"in {count:,} of {num_asked:,} pairs ({share}) {text}")
    place = found.first_place
    if place.value is not None and not place.low <= 0.5 <= place.high:
        which = "first" if place.value > 0.5 else "second"
        share = percent(max(place.value, 1 - place.value), digits=0)
        warnings.append(f"{share} of the choices fell on the answer that stood {which}")
    lc, raw = found.lc_win_rate, found.win_rate
    if lc.value is None:
        warnings.append(f"the win rate is not controlled for length: {lc.note}")
    elif raw.value is not None and abs(lc.value - raw.value) > LARGE_EFFECT_OF_LENGTH:
        warnings.append(
            f"length weighs in: {percent(raw.value)} of the pairs are won, "
            f"{percent(lc.value)} at equal lengths"
        )
    kappa = found.agreement.get("known answers", {}).get("kappa")
    if kappa is not None and kappa.low is not None and kappa.low <= 0:
        warnings.append(
            f"on {kappa.n:,} pairs in which exactly one answer is right, the choices are not shown "
            f"to agree with the known answers better than chance"
        )
    return warnings
