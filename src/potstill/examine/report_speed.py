"""The parts of a report on speed, memory, load and cost: tables once, drawn as text and as a page.

A section is a title, tables and remarks, all plain text; whoever draws it escapes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.examine.measured import (
    ENOUGH_FOR,
    REQUESTS,
    TIMES,
    Claim,
    Load,
    OneOff,
    failures_text,
    money,
    objective_text,
)
from potstill.examine.numbers import EN_DASH, estimate, interval, number, size
from potstill.types import Estimate, Evaluation, Report

DETAILS = (
    *(f"{name}{end}" for name in TIMES for end in ("", *ENOUGH_FOR) if name + end != "latency"),
    *("energy", "memory.weights", "memory.cache_token"),
    *("memory.gpu_allocated", "memory.gpu_reserved"),
)
"""Metrics that are shown here and left out of the table of all models."""

SPEED = {
    "latency": "whole answer (e2e)",
    "latency.p95": "slowest 5 %",
    "latency.p99": "slowest 1 %",
    "ttft": "first token (ttft)",
    "ttft.p95": "first token, slowest 5 %",
    "tpot": "each further token (tpot)",
    "tpot.p95": "each further token, slowest 5 %",
    "tokens_per_second": "tokens/s",
    "energy": "energy of an answer, J",
}
MEMORY = {
    "memory": "peak, above an empty process",
    "memory.weights": "weights as loaded",
    "memory.cache_token": "cache of a token",
    "memory.gpu_allocated": "GPU, tensors",
    "memory.gpu_reserved": "GPU, reserved",
}
_SETTING = ("engine", "dtype", "device", "threads", "batch", "context")


@dataclass(frozen=True)
class Table:
    """Headings and rows, all plain text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    caption: str = ""
    """What the table is, in a sentence."""


def speed_sections(report: Report) -> list[tuple[str, list[Table]]]:
    """(title, tables) of what the report holds on each; what was not measured has none."""
    sections = [
        ("What is said of distilled models, for this run", [_claims(report)]),
        ("Speed and memory", [*_speed(report), *_memory(report)]),
        ("Under load", _loads(report)),
        ("What it costs", _costs(report)),
    ]
    return [(title, [t for t in tables if t.rows]) for title, tables in sections
            if any(t.rows for t in tables)]  # fmt: skip


def _claims(report: Report) -> Table:
    claims = [Claim.model_validate(claim) for claim in report.claims]
    currency = str(report.cost.get("currency", ""))
    rows, notes = [], []
    for claim in claims:
        parts = [f"{part.what} {_factor(part.factor)}" for part in claim.parts]
        rows.append(
            (
                claim.title,
                _amount(claim.teacher, claim.name, currency),
                _amount(claim.student, claim.name, currency),
                _factor(claim.factor),
                claim.basis,
                "; ".join(parts) or EN_DASH,
            )
        )
        notes += [f"{claim.title}, {claim.basis}: {claim.why}"] if claim.why else []
        notes += [f"{claim.title}, {part.what}: {part.note}" for part in claim.parts if part.note]
    row = claims[0].row if claims else ""
    headings = ("", "teacher", row, "student / teacher", "basis", "of which")
    caption = (
        "What users get of the student, over the teacher: below 1x is less. In brackets 95 % "
        "intervals. Assumed: a price from outside is part of it."
    )
    return Table("", headings, tuple(rows), tuple(dict.fromkeys(notes)), caption)


def _amount(found: Estimate | None, name: str, currency: str) -> str:
    if found is None or found.value is None:
        return "not known"
    if name == "cost":
        return money(found.value, currency)
    if name == "users":
        known = found.low is not None and found.high is not None and found.low < found.high
        ends = f" ({found.low:.0f} to {found.high:.0f})" if known else ""
        return f"{found.value:.0f}{ends}"
    return number(found.value, found.unit)


def _factor(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return EN_DASH
    return f"{found.value:.2f}x {interval(found.low, found.high)}".strip()


def _speed(report: Report) -> list[Table]:
    rows = _rows(report.models, SPEED)
    settings = {
        role: speed
        for role, found in report.models.items()
        if isinstance(speed := found.setting.get("speed"), Mapping)
    }
    notes = [f"{name}: {text}" for name, text in TIMES.items()]
    notes += _notes({role: report.models[role] for role in settings}, SPEED)
    energy = {str(speed["energy"]) for speed in settings.values() if speed.get("energy")}
    notes += [f"energy: {', '.join(sorted(energy))}"] if energy else []
    told = ("", "engine", "prompt tokens", "answer tokens", "calls", "network")
    return [
        Table("One request at a time", *rows, tuple(notes), "Medians with 95 % intervals."),
        Table(
            "Measured with",
            told,
            tuple((role, *setting_cells(speed)) for role, speed in settings.items()),
            caption="What the times are only true for.",
        ),
    ]


def _notes(models: Mapping[str, Evaluation], names: Mapping[str, str]) -> list[str]:
    """What the numbers of all rows say beside themselves, each remark once with its rows."""
    found: dict[tuple[str, str], list[str]] = {}
    for role, evaluation in models.items():
        for name, title in names.items():
            if (one := evaluation.metrics.get(name)) is not None and one.note:
                found.setdefault((title, one.note), []).append(role)
    return [f"{title}, {', '.join(roles)}: {note}" for (title, note), roles in found.items()]


def setting_cells(speed: Mapping[str, Any]) -> tuple[str, ...]:
    """Engine, lengths, numbers of calls and network of a measurement."""
    named = [f"{speed[k]}" if k == "engine" else f"{k} {speed[k]}" for k in _SETTING if k in speed]
    processor = speed.get("processor")
    if isinstance(processor, Mapping):
        named.append(f"{processor.get('name', '')} ({processor.get('cores', '?')} cores)")

    def spread(name: str) -> str:
        found = speed.get(name)
        if not isinstance(found, Mapping):
            return "not counted"
        return f"{found['median']:,} ({found['least']:,} to {found['most']:,})"

    calls = f"{speed.get('timed_calls', '?')} after {speed.get('warm_up_calls', '?')} to warm up"
    if (different := speed.get("different_prompts")) is not None:
        calls += f", {different:,} prompts"
    if failed := speed.get("failed_calls"):
        calls += f", {failed:,} failed"
        if reasons := speed.get("failures"):
            calls += f" ({failures_text(reasons)})"
    network = "included" if speed.get("includes_network") else "none"
    return (", ".join(named), spread("prompt_tokens"), spread("answer_tokens"), calls, network)


def _memory(report: Report) -> list[Table]:
    headings, rows = _rows(report.models, MEMORY)
    caption = "The peak is that of a process of its own that answers one prompt."
    sizes = {r: e.disk_bytes for r, e in report.models.items() if e.disk_bytes}
    if not sizes or not rows:
        return [Table("Memory", headings, rows, caption=caption)]
    rows = tuple((row[0], size(sizes[row[0]]) if row[0] in sizes else "", *row[1:]) for row in rows)
    notes = tuple(_notes(report.models, MEMORY))
    return [Table("Memory", (headings[0], "on disk", *headings[1:]), rows, notes, caption)]


def _rows(
    models: Mapping[str, Evaluation], names: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and rows of metrics that any model has a value of."""
    there = [n for n in names if any(_value(e, n) is not None for e in models.values())]
    rows = tuple(
        (role, *(_cell(found.metrics.get(name)) for name in there))
        for role, found in models.items()
        if any(name in found.metrics for name in there)
    )
    return ("", *(names[name] for name in there)), rows


def _value(found: Evaluation, name: str) -> float | None:
    return found.metrics[name].value if name in found.metrics else None


def _cell(found: Estimate | None) -> str:
    return "" if found is None else estimate(found)


def _loads(report: Report) -> list[Table]:
    return [load_table(role, Load.model_validate(found)) for role, found in report.load.items()]


def load_table(title: str, found: Load) -> Table:
    """A model under load, a row for each level."""
    columns = {
        "requests_per_second": "answers/s",
        "goodput": "goodput",
        "tokens_per_second": "tokens/s",
        "latency": "e2e",
        "latency.p95": "e2e, slowest 5 %",
        "ttft": "ttft",
        "tpot": "tpot",
    }
    rows = []
    for level in found.levels:
        share = level.share_met
        met = f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
        values = (level.metrics.get(name) for name in columns)
        cells = (EN_DASH if v is None or v.value is None else number(v.value, v.unit)
                 for v in values)  # fmt: skip
        rows.append((f"{level.concurrency:,}", f"{level.n:,}", *cells, met))
    if found.users.value is None:
        users = f"users carried: not known, {found.users.note}"
    else:
        users = f"users carried: {found.users.value:.0f}"
        if found.users.low is not None and found.users.high is not None:
            users += f" (surely {found.users.low:.0f}, perhaps {found.users.high:.0f})"
    notes = [
        users,
        f"most goodput with {found.best} at once; {found.ended}",
    ]
    if found.users_with_pauses is not None:
        notes.append(
            f"about {found.users_with_pauses:,.0f} users, if each pauses for "
            f"{found.think_seconds:g} s (assumed) between an answer and the next request"
        )
    if failed := sum(level.num_failed for level in found.levels):
        reasons = sum((Counter(level.failures) for level in found.levels), Counter())
        notes.append(f"{failed:,} requests failed: {failures_text(reasons)}")
    headings = ("users at once", "n", *columns.values(), "met")
    caption = f"objective: {objective_text(found.objective)}"
    return Table(title, headings, tuple(rows), tuple(notes), caption)


def _costs(report: Report) -> list[Table]:
    found = report.cost
    if not found:
        return []
    currency = str(found.get("currency", ""))
    costs = {r: Estimate.model_validate(e) for r, e in found.get("per_thousand", {}).items()}
    rows = [
        (role, money(one.value, currency), _ends(one, currency), one.note)
        for role, one in costs.items()
    ]
    tables = [
        Table(
            f"{REQUESTS:,} requests",
            ("", "price", "interval", "from"),
            tuple(rows),
            caption="Tokens times a dated price, or a machine's price over what it answers.",
        ),
    ]
    if "one_off" in found:
        once = OneOff.model_validate(found["one_off"])
        lines = [(name, money(amount, currency)) for name, amount in once.parts.items()]
        lines.append(("all", money(once.total, currency)))
        notes = (once.note,) if once.note else ()
        caption = "What this run spent; students trained for comparison are not in it."
        tables.append(Table("The distillation, once", ("", "cost"), tuple(lines), notes, caption))
    if "break_even" in found:
        even = Estimate.model_validate(found["break_even"])
        if even.value is None:
            text = f"not known: {even.note}"
        else:
            low = f"{even.low:,.0f}" if even.low is not None else "?"
            high = f"{even.high:,.0f}" if even.high is not None else "never"
            text = f"{even.value:,.0f} ({low} to {high})"
        notes = (even.note,) if even.note and even.value is not None else ()
        caption = "Requests after which the distillation has cost less than asking the teacher."
        row = ("paid back after", text)
        tables.append(Table("Break-even", ("", "requests"), (row,), notes, caption))
    return tables


def _ends(found: Estimate, currency: str) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{money(found.low, currency)} to {money(found.high, currency)}"


def claim_lines(report: Report) -> Sequence[str]:
    """The five in a line each, for a terminal, after an empty one; nothing where there are none."""
    table = _claims(report)
    lines = [
        f"{title}: {ours} against {theirs}, {factor} ({basis})"
        if factor != EN_DASH
        else f"{title}: {basis}"
        for title, theirs, ours, factor, basis, _ in table.rows
    ]
    return ["", *lines] if lines else []
