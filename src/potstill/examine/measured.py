"""What a report holds on speed, load and cost: the nouns, and how they are said.

They load nothing heavy, so that a report is drawn without what it was measured with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from potstill.types import Estimate, Noun

REQUESTS = 1_000
"""Requests that prices are told for, since one costs too little to be read."""

TIMES = {
    "latency": "e2e: from the call to the whole answer, monotonic clock",
    "ttft": "from the call to the first piece of the answer, monotonic clock",
    "tpot": "(e2e - ttft) / (answer tokens - 1), monotonic clock",
}
"""Name of a time -> its definition, which is written beside every number."""

ENOUGH_FOR = {".p95": (0.95, 100), ".p99": (0.99, 1000)}
"""Quantile, and how many calls it takes to know it."""


class Level(Noun):
    """One number of users at once."""

    concurrency: int
    seconds: float
    """The counted time."""

    n: int
    """Answers in it, failures among them."""

    num_failed: int = 0
    failures: dict[str, int] = {}
    """These by their reason, see `models.failures.Failure`."""

    share_met: Estimate
    """Share of the requests that met the objective; failures did not."""

    metrics: dict[str, Estimate]
    """requests_per_second, goodput, tokens_per_second, latency, ttft, tpot and their slow ends."""


class Load(Noun):
    """A model under load, level by level."""

    model: str
    objective: dict[str, float]
    """e2e_seconds, ttft_seconds, tpot_seconds, as far as they were asked for, and share."""

    levels: tuple[Level, ...]
    best: int
    """The level of the highest goodput."""

    users: Estimate
    """Most users at once, of the levels tried, with which the objective holds."""

    think_seconds: float = 0.0
    users_with_pauses: float | None = None
    """Users that make this load when each pauses for `think_seconds` between two requests."""

    ended: str
    """Why the sweep went no further."""

    setting: dict[str, Any] = {}

    @property
    def carried(self) -> Level | None:
        """The highest level that met the objective."""
        return next((at for at in self.levels if at.concurrency == self.users.value), None)


class Part(Noun):
    """One step of the way from teacher to deployed student."""

    what: str
    """distillation, engine, quantisation, or two of them where no row tells them apart."""

    before: str
    after: str
    """Rows of the report."""

    factor: Estimate
    note: str = ""


class Claim(Noun):
    """One of the five, for this run."""

    name: Literal["response_time", "memory", "accuracy", "cost", "users"]
    title: str
    basis: Literal["measured", "assumed", "not measured"]
    """`assumed` where a price or another number that nobody measured here is part of it."""

    why: str
    """What the basis rests on, or why there is no value."""

    teacher: Estimate | None = None
    student: Estimate | None = None
    row: str
    """The row that stands for the student: what is deployed."""

    factor: Estimate | None = None
    """Student over teacher; its ends are an interval where both have one."""

    parts: tuple[Part, ...] = ()


class OneOff(Noun):
    """What a distillation cost once, by what it was spent on."""

    parts: dict[str, float | None]
    """`teacher`: the bill of its answers, those that were not used too; `machine`: the time of
    this one; `preparation`: as the config says. None where it was spent and has no price."""

    machine_seconds: float = 0.0
    """Time of this machine that `machine` is the price of."""

    note: str = ""

    @property
    def total(self) -> float | None:
        """The sum of all; None while a part has no price."""
        known = [amount for amount in self.parts.values() if amount is not None]
        return sum(known) if len(known) == len(self.parts) else None


def objective_text(objective: Mapping[str, float]) -> str:
    """An objective in words."""
    what = {
        "e2e_seconds": "the whole answer within",
        "ttft_seconds": "the first token within",
        "tpot_seconds": "each further token within",
    }
    limits = [f"{text} {objective[name]:g} s" for name, text in what.items() if name in objective]
    if not limits:
        return "no objective"
    return f"{' and '.join(limits)}, for {objective['share']:.0%} of the requests"


def failures_text(failures: Mapping[str, int]) -> str:
    """Failures by their reason, the most frequent first: "3 timeout, 1 connection"."""
    by_number = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {reason}" for reason, number in by_number)


def money(amount: float | None, currency: str) -> str:
    """An amount for a person: three digits, or whole units from a thousand on."""
    if amount is None:
        return "not known"
    text = f"{amount:,.0f}" if abs(amount) >= 1000 else f"{amount:.3g}"
    return f"{text} {currency}"
