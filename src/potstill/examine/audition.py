"""Which teacher is any good here: candidates and untouched students on the same rows.

Everything is paired on rows with known answers. A teacher is only called the best when it is
surely better than every other, and only worth learning from when it surely beats the student
as it is. One family of Holm-corrected comparisons holds all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from potstill.examine import numbers
from potstill.examine.compare import compare, holm
from potstill.examine.markdown import safe, table, titled
from potstill.examine.metrics import estimate
from potstill.examine.rates import truncation_rate
from potstill.examine.report_verdict import metric_text
from potstill.examine.resample import FEW_RECORDS, wilson
from potstill.protocols import Metric
from potstill.types import SCHEMA_VERSION, Comparison, Estimate, Noun, Sample

ADVISED_ROWS = 100
"""Rows with known answers below which an audition warns."""

FIGURES = ("accepted", "answers_per_second", "latency", "memory")
"""What a candidate's metrics hold beside those of its answers."""

_HEADING = {"accepted": "accepted", "answers_per_second": "answers/s"}


class Candidate(Noun):
    """One row of an audition: who answered, how well, how fast and for how much."""

    name: str
    role: Literal["teacher", "untouched"]
    """`untouched` is a student as it is, which a teacher has to beat."""

    place: str
    format: str = ""
    """huggingface, gguf, endpoint."""

    licence: str = ""
    terms: str = ""
    """What the licence has against training on its outputs, where something is known."""

    num_answers: int = 0
    """Answers that came; all others count as wrong."""

    num_accepted: int | None = None
    """Teachers only: answers that pass the checks of the config."""

    metrics: dict[str, Estimate] = {}
    """Of the answers, and `accepted` (share), `answers_per_second`, `latency`, `memory`."""

    cost: float | None = None
    """What the answers cost, in the price table's currency; None where no price is known."""

    cost_per_accepted: float | None = None
    error: str = ""
    """Why it could not be asked; it is not compared then."""


class Audition(Noun):
    """Candidates on the same rows, and what may be said about them."""

    schema_version: int = SCHEMA_VERSION
    run: str
    task: str
    primary_metric: str
    num_rows: int
    candidates: tuple[Candidate, ...]
    """Teachers first, then untouched students; the best of each first."""

    comparisons: tuple[Comparison, ...] = ()
    """Each teacher minus every worse one and every untouched student; Holm over all."""

    verdict: tuple[str, ...] = ()
    """Which is best, which are not told apart, and whether each beats the untouched student."""

    warnings: tuple[str, ...] = ()


def build_audition(
    *,
    run: str,
    task: str,
    candidates: Sequence[Candidate],
    samples: Mapping[str, Sequence[Sample]],
    metrics: Sequence[Metric],
    num_rows: int,
    seed: int,
    warnings: Sequence[str] = (),
) -> Audition:
    """Scores the candidates, compares them in pairs, and says what follows.

    Args:
        candidates: Those with an error are listed and not compared.
        samples: Name -> answers to the same rows.
        metrics: The first is the one that verdicts are on.

    Raises:
        DataError: If no row has what the first metric needs, such as a reference.
    """
    primary = metrics[0]
    scored = [_scored(c, samples[c.name], metrics, seed) if not c.error else c for c in candidates]
    ordered = sorted(scored, key=lambda c: _rank(c, primary))
    teachers = [c for c in ordered if c.role == "teacher" and not c.error]
    students = [c for c in ordered if c.role == "untouched" and not c.error]
    pairs = [(a, b) for i, a in enumerate(teachers) for b in (*teachers[i + 1 :], *students)]
    found = [
        compare(a.name, b.name, primary, samples[a.name], samples[b.name], margin=None, seed=seed)
        for a, b in pairs
    ]
    comparisons = tuple(holm(found, {primary.name: primary}))
    verdict = _Verdict(primary, comparisons)
    return Audition(
        run=run,
        task=task,
        primary_metric=primary.name,
        num_rows=num_rows,
        candidates=tuple(ordered),
        comparisons=comparisons,
        verdict=tuple([*verdict.among(teachers), *verdict.worth(teachers, students)]),
        warnings=(
            *_few(num_rows),
            *warnings,
            *verdict.worthless(teachers, students),
            *(f"{c.name} could not be asked: {c.error}" for c in ordered if c.error),
        ),
    )


def share_accepted(num_accepted: int, num_rows: int) -> Estimate:
    """Share of the rows with an answer that passes the checks."""
    low, high = wilson(num_accepted, num_rows)
    value = num_accepted / num_rows
    return Estimate(value=value, low=low, high=high, n=num_rows, method="wilson")


def _scored(
    candidate: Candidate, samples: Sequence[Sample], metrics: Sequence[Metric], seed: int
) -> Candidate:
    found = {m.name: estimate(m, samples, seed=seed) for m in (*metrics, truncation_rate)}
    return candidate.model_copy(update={"metrics": {**found, **candidate.metrics}})


def _rank(candidate: Candidate, primary: Metric) -> tuple[bool, bool, float]:
    found = candidate.metrics.get(primary.name)
    value = found.value if found is not None and found.value is not None else float("-inf")
    better = value if primary.higher_is_better else -value
    return candidate.role == "untouched", bool(candidate.error), -better


def _few(num_rows: int) -> list[str]:
    if num_rows >= ADVISED_ROWS:
        return []
    text = f"only {num_rows:,} rows have a known answer; {ADVISED_ROWS} or more are advised"
    if num_rows < FEW_RECORDS:
        text += f", and below {FEW_RECORDS} no interval is to be trusted"
    return [text]


class _Verdict:
    """Sentences that claim only what the comparisons allow."""

    def __init__(self, primary: Metric, comparisons: Sequence[Comparison]):
        self._metric = metric_text(primary.name)
        self._primary = primary
        self._by_pair = {(c.a, c.b): c for c in comparisons}

    def among(self, teachers: Sequence[Candidate]) -> list[str]:
        """Which teacher is best, and which are not told apart from it."""
        if not teachers:
            return []
        best, others = teachers[0], teachers[1:]
        level = f"{self._metric} {numbers.estimate(best.metrics[self._primary.name])}"
        if not others:
            return [f"{best.name} has {level}."]
        close = [o for o in others if self._by_pair[best.name, o.name].verdict != "better"]
        beaten = [o.name for o in others if o not in close]
        if not close:
            return [f"{best.name} is the best teacher: {level}, surely better than {_all(beaten)}."]
        told = [f"{o.name} ({self._difference(best.name, o.name)})" for o in close]
        sentences = [f"{best.name} comes first ({level}), but is not told apart from {_all(told)}."]
        if beaten:
            sentences.append(f"It is surely better than {_all(beaten)}.")
        return [*sentences, *_cheapest([best, *close])]

    def worth(self, teachers: Sequence[Candidate], students: Sequence[Candidate]) -> list[str]:
        """Which teachers beat which untouched student."""
        sentences = []
        for student in students:
            beat = [
                f"{t.name} ({self._difference(t.name, student.name)})"
                for t in teachers
                if self._by_pair[t.name, student.name].verdict == "better"
            ]
            if beat:
                verb = "beats" if len(beat) == 1 else "beat"
                sentences.append(f"{_all(beat)} {verb} {student.name}.")
        return sentences

    def worthless(self, teachers: Sequence[Candidate], students: Sequence[Candidate]) -> list[str]:
        """Which teachers do not beat an untouched student: what they say teaches it little."""
        sentences = []
        for student in students:
            for teacher in teachers:
                found = self._by_pair[teacher.name, student.name]
                if found.verdict == "better":
                    continue
                doubt = "is worse than" if found.verdict == "worse" else "does not surely beat"
                sentences.append(
                    f"{teacher.name} {doubt} {student.name} "
                    f"({self._difference(teacher.name, student.name)}): a student that learns "
                    f"from it may gain nothing"
                )
        return sentences

    def _difference(self, a: str, b: str) -> str:
        found, unit = self._by_pair[a, b], self._primary.unit
        ends = numbers.interval(found.low, found.high, unit, sign=True)
        return f"difference {numbers.number(found.difference, unit, sign=True)} {ends}".strip()


def _cheapest(candidates: Sequence[Candidate]) -> list[str]:
    """Which of several that are not told apart costs least, where that is known of all."""
    costs = {c.name: c.cost_per_accepted for c in candidates}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    if len(known) < len(costs) or len(set(known.values())) == 1:
        return []
    name = min(known, key=lambda name: known[name])
    return [f"Of these, {name} costs least: {price(known[name])} for an accepted answer."]


def _all(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def price(amount: float | None) -> str:
    """An amount of money to three digits; a dash where it is not known."""
    return numbers.EN_DASH if amount is None else f"{amount:.3g}"


def audition_table(found: Audition) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a terminal or a page; columns that nobody fills are left out."""
    names = dict.fromkeys([found.primary_metric, *FIGURES])
    headings = ["", *(_HEADING.get(name, metric_text(name)) for name in names)]
    headings.insert(3, "cost / accepted")
    rows = []
    for candidate in found.candidates:
        cells = [_cell(candidate, name) for name in names]
        cost = candidate.cost_per_accepted
        cells.insert(2, "" if cost is None else price(cost))
        rows.append([candidate.name, *cells])
    used = [i for i in range(len(headings)) if i < 2 or any(row[i] for row in rows)]
    return [headings[i] for i in used], [[row[i] for i in used] for row in rows]


def _cell(candidate: Candidate, name: str) -> str:
    found = candidate.metrics.get(name)
    if found is None or found.value is None:
        return "not asked" if candidate.error and name not in FIGURES else ""
    return numbers.number(found.value, found.unit) if name in FIGURES else numbers.estimate(found)


def render_audition(found: Audition) -> str:
    """The whole audition as Markdown."""
    headings, rows = audition_table(found)
    cells = [[safe(cell) for cell in row] for row in rows]
    pairs = [
        [
            safe(f"{c.a} minus {c.b}"),
            numbers.number(c.difference, sign=True),
            numbers.interval(c.low, c.high, sign=True),
            numbers.p_value(c.p_holm),
            c.verdict,
        ]
        for c in found.comparisons
    ]
    parts = [
        f"# Audition: {safe(found.run)}",
        " ".join(safe(sentence) for sentence in found.verdict),
        titled("Warnings", [safe(warning) for warning in found.warnings]),
        f"## Candidates\n\n{table(headings, cells)}\n\n{found.num_rows:,} rows with known "
        f"answers. Values with 95 % intervals.",
    ]
    if pairs:
        headings = ["pair", "difference", "95 % interval", "p (Holm)", "verdict"]
        parts.append(f"## Paired comparisons\n\n{table(headings, pairs)}")
    return "\n\n".join(part for part in parts if part) + "\n"
