"""Config sections on what answers take: load on one machine, and money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from potstill.config.section import Date, Section

if TYPE_CHECKING:
    from potstill.config.sections import DistillConfig


class LoadConfig(Section):
    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16, 32, 64)
    """How many requests are open at once, level by level. The sweep ends early where goodput falls
    or the objective is missed."""

    num_requests: int = Field(100, ge=10)
    """Timed answers at each level, after one of each user that is not counted. The slowest 5 % are
    known from 100 on."""

    seconds: float = Field(120.0, gt=0)
    """Longest time for a level; it ends with as many answers as came."""

    e2e_seconds: float | None = Field(5.0, gt=0)
    """Objective: a request is met when its whole answer is there within this time. null asks
    nothing of it."""

    ttft_seconds: float | None = Field(None, gt=0)
    """Objective: and its first token within this time."""

    tpot_seconds: float | None = Field(None, gt=0)
    """Objective: and each further token within this time, on average."""

    share: float = Field(0.95, gt=0, le=1)
    """Share of the requests that must be met for a level to count as carried."""

    think_seconds: float = Field(0.0, ge=0)
    """How long a user is assumed to read and write between two requests; 0 asks again at once.
    Users carried are reckoned from it; the sweep itself never pauses."""

    rows: tuple[str, ...] = ()
    """Rows of the report that are put under load, such as `[teacher, distilled, "gguf:q8_0"]`. By
    default all of these three kinds that run on this machine; an endpoint elsewhere must be named,
    since every request may cost money."""

    @model_validator(mode="after")
    def _levels_rise(self) -> LoadConfig:
        if not self.concurrency or list(self.concurrency) != sorted(set(self.concurrency)):
            raise ValueError("concurrency must be a list of rising numbers, such as [1, 2, 4, 8]")
        return self


class CostConfig(Section):
    machine_price: float | None = Field(None, ge=0)
    """Price of this machine for an hour, in the currency of the teacher's price. With it, answers
    of models that run here have a price: the machine's over the requests it answers."""

    currency: str = "USD"
    """What `machine_price` and the teacher's price are in."""

    as_of: Date | None = None
    """When `machine_price` was read: `2026-11` or `2026-11-22`."""

    preparation: float = Field(0.0, ge=0)
    """What else the distillation cost once: data, labels, people's hours."""


def load_problems(config: DistillConfig) -> list[str]:
    """Rows that are to be put under load and that the report will not have."""
    evaluate = config.evaluate
    if evaluate.load is None:
        return []
    known = ["teacher"] if evaluate.teacher else []
    known += ["distilled", *(name for name in evaluate.baselines if name != "plain")]
    known += config.export
    return [
        f"evaluate.load.rows: no row is called {role!r}; there are: {', '.join(known)}"
        for role in evaluate.load.rows
        if role not in known
    ]
