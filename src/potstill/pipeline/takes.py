"""What a run's models take: under load, in money, and beside what is said of distilled models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.config import LoadConfig
from potstill.examine.claims import Found, five_claims
from potstill.examine.cost import (
    break_even,
    by_machine,
    by_tokens,
    one_at_a_time,
    one_off_cost,
)
from potstill.examine.load import measure_load
from potstill.examine.measured import Load, OneOff
from potstill.examine.report_verdict import is_export
from potstill.examine.resample import unit_ids
from potstill.models.catalog import ModelRef, find_model
from potstill.models.machine import processor
from potstill.pipeline.context import Context, wait
from potstill.pipeline.measure import Opened, Row
from potstill.protocols import Metric
from potstill.types import Estimate, Record, Report, Sample, Sampling

LOAD_STAGE = "measure-load"
_ON_THIS_MACHINE = ("prepare", "score", "train")
"""Stages that the configured student needs, whoever the teacher is."""

_OF_A_TEACHER_HERE = ("expand", "teach")
"""Stages that take this machine's time where the teacher runs on it."""


def put_under_load(
    ctx: Context, rows: Sequence[Row], records: list[Record], opened: Opened, sampling: Sampling
) -> None:
    """Asks the rows that the config names with more and more users at once, one row at a time."""
    load = ctx.config.evaluate.load
    assert load is not None
    chosen = _loaded_rows(rows, load)

    async def ask(row: Row) -> Load:
        shown = ctx.progress(LOAD_STAGE)
        async with opened(ctx, row, max(load.concurrency)) as model:
            return await measure_load(
                model,
                records,
                task=ctx.task,
                sampling=sampling,
                config=load,
                seed=ctx.config.evaluate.seed,
                setting={"processor": processor(), "includes_network": row.is_elsewhere},
                on_level=lambda done, total, text: shown(done, total, f"{row.role}, {text}"),
            )

    def work() -> dict[str, Any]:
        found = {row.role: wait(ask(row)) for row in chosen}
        shown = (f"{role} {one.users.value:.0f}" for role, one in found.items()
                 if one.users.value is not None)  # fmt: skip
        return {
            "loads": {role: one.model_dump(mode="json") for role, one in found.items()},
            "text": f"users at once: {', '.join(shown) or 'no objective'}",
        }

    ctx.stage(LOAD_STAGE, ([row.key for row in chosen], ctx.run.test, sampling, load), work)


def _loaded_rows(rows: Sequence[Row], load: LoadConfig) -> list[Row]:
    if load.rows:
        return [row for row in rows if row.role in load.rows]
    usual = [row for row in rows if row.role in ("teacher", "distilled") or is_export(row.role)]
    return [row for row in usual if not row.is_elsewhere]


def what_it_takes(
    ctx: Context, report: Report, samples: Mapping[str, Sequence[Sample]], metric: Metric
) -> dict[str, Any]:
    """The report's fields `load`, `cost` and `claims`, from what was measured.

    Args:
        metric: What verdicts are on.
    """
    settings, run = ctx.config.evaluate, ctx.run
    told = run.facts(LOAD_STAGE).get("loads", {}) if settings.load is not None else {}
    loads = {role: Load.model_validate(one) for role, one in told.items() if role in report.models}
    measured = run.facts("measure") if settings.num_latency_calls >= 2 else {}
    seconds = {role: tuple(each) for role, each in measured.get("times", {}).items()}
    costs = {
        role: _cost(ctx, report, role, samples[role], loads, seconds)
        for role in report.models
        if role in ("teacher", "distilled") or is_export(role)
    }
    claims = five_claims(
        report.models,
        samples,
        Found(seconds=seconds, loads=loads, costs=costs, currency=settings.cost.currency),
        metric=metric,
        seed=settings.seed,
    )
    once = _one_off(ctx)
    ours = costs.get(claims[0].row)
    cost = {
        "currency": settings.cost.currency,
        "per_thousand": {role: one.model_dump(mode="json") for role, one in costs.items()},
        "one_off": once.model_dump(mode="json"),
        "break_even": break_even(once, costs.get("teacher"), ours).model_dump(mode="json"),
        "row": claims[0].row,
    }
    return {
        "load": {role: one.model_dump(mode="json") for role, one in loads.items()},
        "cost": cost,
        "claims": tuple(claim.model_dump(mode="json") for claim in claims),
    }


def _cost(
    ctx: Context,
    report: Report,
    role: str,
    samples: Sequence[Sample],
    loads: Mapping[str, Load],
    seconds: Mapping[str, Sequence[float]],
) -> Estimate:
    """Price of a thousand requests to a row: by its tokens, or by the machine it runs on."""
    settings = ctx.config.evaluate
    if role == "teacher" and (paid := _paid_teacher(ctx)) is not None:
        if paid.price is None:
            reason = "its price is not known (teacher.price)"
            return Estimate(value=None, n=0, method="none", note=reason)
        came = [s for s in samples if not s.error]
        tokens = [(s.num_prompt_tokens, s.num_new_tokens) for s in came]
        return by_tokens(tokens, paid.price, seed=settings.seed, units=unit_ids(came))
    if settings.cost.machine_price is None:
        reason = "the machine's price is not known (evaluate.cost.machine_price)"
        return Estimate(value=None, n=0, method="none", note=reason)
    how = "one request at a time, and several at once cost less each"
    rate = None
    if role in loads:
        level = loads[role].carried or loads[role].levels[0]
        rate = level.metrics["goodput"]
        how = f"goodput with {level.concurrency} at once"
    elif seconds.get(role):
        rate = one_at_a_time(seconds[role], latency=report.models[role].metrics["latency"])
    if rate is None:
        reason = "its speed was not measured"
        return Estimate(value=None, n=0, method="none", note=reason)
    price = settings.cost.machine_price
    return by_machine(price, rate, how=how, as_of=settings.cost.as_of)


def _paid_teacher(ctx: Context) -> ModelRef | None:
    """The teacher that somebody charges for by the token; None where it runs on this machine.

    Of several teachers no one price is right: it is none.
    """
    if len(ctx.config.teachers) > 1:
        return ModelRef(name="several", source="several", kind="endpoint")
    teacher = ctx.config.teachers[0]
    if teacher.launch:
        return None
    ref = find_model(teacher.place, workspace=ctx.workspace)
    price = teacher.price or ref.price
    if ref.kind != "endpoint" and teacher.price is None:
        return None
    return ref.model_copy(update={"price": price})


def _one_off(ctx: Context) -> OneOff:
    """What this distillation cost once, from its own accounting."""
    run, settings = ctx.run, ctx.config.evaluate.cost
    is_paid = _paid_teacher(ctx) is not None
    is_reused = ctx.config.data.logged_answers == "reuse"
    stages = [*_ON_THIS_MACHINE, *(f"export-{name}" for name in ctx.config.export)]
    stages += [] if is_paid else _OF_A_TEACHER_HERE
    facts = {stage: run.facts(stage).get("seconds") for stage in stages}
    spending = run.facts("check").get("spending", {})
    return one_off_cost(
        teacher_cost=spending.get("cost") if _has_price(spending) else None,
        stage_seconds={stage: seconds for stage, seconds in facts.items() if seconds},
        machine_price=settings.machine_price,
        preparation=settings.preparation,
        is_teacher_paid=is_paid and not is_reused,
    )


def _has_price(spending: Mapping[str, Any]) -> bool:
    """Whether any answer of the teacher had a price; a sum of none would read as free."""
    return any("cost" in spending.get(part, {}) for part in ("accepted", "unused"))
