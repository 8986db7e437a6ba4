"""The five things that are said of distilled models, computed for one run.

Response time, memory, accuracy kept, running cost, concurrent users: each is the deployed file
of the student over the teacher, as a factor. The way from one to the other goes over rows of the
same report, and each step is put down to what changed in it:

    distillation    teacher -> distilled student, both in the same engine
    engine          distilled student -> its export in another engine, with 16-bit weights or wider
    quantisation    that export -> one with fewer bits

The factors of the steps multiply to the whole. A step that changes two things at once is named
after both; where a row is missing, so is the step that would tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from potstill.examine.fidelity import retention
from potstill.examine.measured import REQUESTS, Claim, Load, Part
from potstill.examine.report_verdict import is_export, metric_text
from potstill.examine.speed import NETWORK
from potstill.examine.times import ratio_of_medians
from potstill.protocols import Metric
from potstill.types import Estimate, Evaluation, Noun, Sample

WIDE = ("f32", "f16", "bf16", "float32", "fp32")
"""Number formats of exports that are no quantisation."""

Ratio = Callable[[str, str], Estimate]
"""(row, other row) -> the first one's value over the other's."""


class Found(Noun):
    """What the claims are made of, beside the evaluations."""

    seconds: dict[str, tuple[float, ...]] = {}
    """Row -> time of each answer, measured in alternation."""

    loads: dict[str, Load] = {}
    costs: dict[str, Estimate] = {}
    """Row -> price of a thousand requests."""

    currency: str = "USD"


def deployed_row(roles: Sequence[str], student: str) -> str:
    """What users of the student get: its first quantised export, else its first, else itself."""
    exports = [role for role in roles if is_export(role)]
    narrow = [role for role in exports if _quant(role) not in WIDE]
    return (narrow or exports or [student])[0]


def five_claims(
    models: Mapping[str, Evaluation],
    samples: Mapping[str, Sequence[Sample]],
    found: Found,
    *,
    metric: Metric,
    student: str = "distilled",
    seed: int = 0,
) -> tuple[Claim, ...]:
    """What this run shows of each of the five.

    Args:
        metric: What quality is measured with.
    """
    row = deployed_row(list(models), student)
    steps = _steps(models, student, row)

    def seconds(a: str, b: str) -> Estimate:
        ours, theirs = found.seconds.get(a, ()), found.seconds.get(b, ())
        if ours and len(ours) == len(theirs):
            return ratio_of_medians(ours, theirs, reference=b, seed=seed)
        return _over(_metric(models, a, "latency"), _metric(models, b, "latency"))

    def kept(a: str, b: str) -> Estimate:
        return retention(metric, samples[a], samples[b], None, seed=seed)["of_teacher"]

    def of(values: Callable[[str], Estimate | None]) -> Ratio:
        return lambda a, b: _over(values(a), values(b))

    def memory(role: str) -> Estimate | None:
        return _metric(models, role, "memory")

    def users(role: str) -> Estimate | None:
        return found.loads[role].users if role in found.loads else None

    table: tuple[tuple[str, str, Callable[[str], Estimate | None], Ratio], ...] = (
        ("response_time", "Response time", lambda r: _metric(models, r, "latency"), seconds),
        ("memory", "Memory", memory, of(memory)),
        ("accuracy", f"{metric_text(metric.name).capitalize()} kept",
         lambda r: _metric(models, r, metric.name), kept),
        ("cost", f"Running cost of {REQUESTS:,} requests", found.costs.get, of(found.costs.get)),
        ("users", "Users at once", users, of(users)),
    )  # fmt: skip
    return tuple(
        _claim(name, title, values, ratio, row, steps, models)
        for name, title, values, ratio in table
    )


def _claim(
    name: str,
    title: str,
    values: Callable[[str], Estimate | None],
    ratio: Ratio,
    row: str,
    steps: Sequence[tuple[str, str, str, str]],
    models: Mapping[str, Evaluation],
) -> Claim:
    theirs = values("teacher") if "teacher" in models else None
    ours = values(row)
    known = [v is not None and v.value is not None for v in (theirs, ours)]
    parts = tuple(
        Part(what=what, before=before, after=after, factor=factor, note=note)
        for what, before, after, note in steps
        if (factor := _factor(values, ratio, before, after)) is not None
    )
    about = {"name": name, "title": title, "row": row, "teacher": theirs, "student": ours}
    if not all(known):
        return Claim(**about, basis="not measured", why=_missing(name, theirs, ours, row, models),
                     parts=parts)  # fmt: skip
    return Claim(
        **about,
        basis="assumed" if name == "cost" else "measured",
        why=_rests_on(name, theirs, ours),
        factor=ratio(row, "teacher"),
        parts=parts,
    )  # fmt: skip


def _factor(
    values: Callable[[str], Estimate | None], ratio: Ratio, before: str, after: str
) -> Estimate | None:
    ends = (values(before), values(after))
    if any(end is None or end.value is None for end in ends):
        return None
    return ratio(after, before)


def _steps(
    models: Mapping[str, Evaluation], student: str, row: str
) -> list[tuple[str, str, str, str]]:
    """(what, row before, row after, note) of each step that the rows of this report allow."""
    steps = []
    if "teacher" in models:
        note = _mixed(models["teacher"], models[student])
        what = "distillation, with another engine" if note else "distillation"
        steps.append((what, "teacher", student, note))
    if row == student:
        return steps
    wide = next((r for r in models if is_export(r) and _quant(r) in WIDE and r != row), None)
    if wide is not None:
        steps.append(("engine", student, wide, ""))
        steps.append(("quantisation", wide, row, ""))
    elif _quant(row) in WIDE:
        steps.append(("engine", student, row, ""))
    else:
        note = "export it as gguf:f16 too, to see engine and quantisation apart"
        steps.append(("engine and quantisation", student, row, note))
    return steps


def _mixed(teacher: Evaluation, student: Evaluation) -> str:
    """Why the step from teacher to student is not distillation alone; empty where it is."""
    if teacher.format == student.format and teacher.format != "endpoint":
        return ""
    if any(NETWORK in e.note for e in teacher.metrics.values()):
        return (
            "the teacher answers over a network and on other machines, which is in this step "
            "for time, cost and users"
        )
    return "teacher and student run in different engines, which is in this step"


def _missing(
    name: str,
    theirs: Estimate | None,
    ours: Estimate | None,
    row: str,
    models: Mapping[str, Evaluation],
) -> str:
    if "teacher" not in models:
        return "the teacher did not answer the test set"
    reasons = []
    for who, found in (("the teacher", theirs), (row, ours)):
        if found is None or found.value is None:
            why = found.note if found is not None and found.note else _how(name, who)
            reasons.append(f"{who}: {why}")
    return "; ".join(reasons)


def _how(name: str, who: str) -> str:
    if name == "users":
        return "not put under load (evaluate.load)"
    if name == "cost":
        price = "teacher.price, or " if who == "the teacher" else ""
        return f"no price is known ({price}evaluate.cost.machine_price)"
    if name == "memory" and who == "the teacher":
        return "its weights are not on this machine"
    return "not measured"


def _rests_on(name: str, theirs: Estimate | None, ours: Estimate | None) -> str:
    assert theirs is not None and ours is not None
    if name == "cost":
        notes = dict.fromkeys(note for note in (theirs.note, ours.note) if note)
        return f"measured tokens and rates, with prices from outside: {'; '.join(notes)}"
    return "; ".join(dict.fromkeys(n for n in (ours.signature, theirs.note, ours.note) if n))


def _over(ours: Estimate | None, theirs: Estimate | None) -> Estimate:
    """One estimate over another; the ends from the far ends of both, where both have them."""
    about = {"n": 0, "unit": "x", "higher_is_better": False}
    if ours is None or theirs is None or ours.value is None or not theirs.value:
        return Estimate(value=None, method="none", note="one of both is not known", **about)
    ends = (ours.low, ours.high, theirs.low, theirs.high)
    low = high = None
    if all(end is not None for end in ends) and ends[2]:
        low, high = ours.low / theirs.high, ours.high / theirs.low  # type: ignore[operator]
    return Estimate(
        value=ours.value / theirs.value,
        low=low,
        high=high,
        method="ends of both" if low is not None else "none",
        **about,
    )


def _metric(models: Mapping[str, Evaluation], role: str, name: str) -> Estimate | None:
    return models[role].metrics.get(name) if role in models else None


def _quant(role: str) -> str:
    return role.partition(":")[2]
