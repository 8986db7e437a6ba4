"""Does the teacher beat the untouched student? Found out on its first answers, for nothing more.

The rows are training rows, so the teacher's answers to them are wanted anyway. A teacher that is
not better is warned of; it stops no run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.errors import DataError, PotstillError
from potstill.examine import numbers
from potstill.examine.compare import compare
from potstill.examine.metrics import estimate
from potstill.examine.report_verdict import metric_text
from potstill.examine.run import named_metrics
from potstill.pipeline.context import Context, decoding, wait, weights_key
from potstill.pipeline.labelled import (
    ask_teacher,
    ask_untouched,
    labelled,
    samples_of,
    untouched_ref,
)
from potstill.pipeline.preflight import asked_generation, place_key, privacy_key, teacher_key
from potstill.protocols import ChatModel
from potstill.rundir import content_hash
from potstill.types import Comparison, Record, Sample

FEWEST_ROWS = 8
"""Known answers below which hardly any difference can be shown."""

_MOST_LOOKED_AT = 10_000
"""Training records among which the rows are looked for."""


@dataclass(frozen=True)
class Trial:
    """Rows with known answers, and what the untouched student said to them."""

    records: list[Record]
    untouched: list[Sample]
    key: str
    """Hash of what the result depends on."""

    facts: dict[str, Any]
    """The result, where it is known from an earlier run."""


@dataclass(frozen=True)
class Outcome:
    """What a trial showed, and what of the teacher's answers was new."""

    facts: dict[str, Any]
    num_new: int = 0
    cost: float = 0.0


def begin_trial(ctx: Context) -> Trial | None:
    """Asks the untouched student, before the teacher is opened: two models may not fit at once.

    None where there is nothing to compare: too few known answers, logged answers instead of a
    teacher, or a student that is still to be cut out of another model. Where the student cannot
    be asked, that is told.
    """
    config, run = ctx.config, ctx.run
    if config.student.prune or config.data.logged_answers == "reuse":
        return None
    if run.facts("load").get("num_references", 0) < FEWEST_ROWS:
        return None
    number = config.evaluate.num_trial
    if config.teachers[0].batch:
        number = min(number, config.generation.pilot)  # others would wait for a batch of their own
    records = labelled(ctx, number, most=_MOST_LOOKED_AT)
    if len(records) < FEWEST_ROWS:
        return None
    key = content_hash(
        config.task,
        config.generation,
        *teacher_key(ctx),
        config.evaluate.metrics,
        decoding(ctx),
        *privacy_key(ctx),
        [record.model_dump(mode="json") for record in records],
        weights_key(place_key(ctx, config.student)),
    )
    if run.is_done("trial", key):
        return Trial(records, [], key, run.facts("trial")["found"])
    out = run.audition().samples("untouched")
    try:
        ref = untouched_ref(ctx, config.student.place)
        samples = wait(ask_untouched(ctx, ref, records, out, stage="teach"))
    except PotstillError as error:
        text = f"open whether the teacher beats the untouched student, which cannot answer: {error}"
        ctx.tell("teach", "note", text)
        return None
    return Trial(records, samples, key, {})


async def end_trial(ctx: Context, teacher: ChatModel, trial: Trial | None) -> Outcome:
    """Asks the teacher the same rows, compares, and tells what was found.

    Raises:
        TeacherError, ConfigError: As asking all of its prompts would.
    """
    if trial is None:
        return Outcome({})
    if trial.facts:
        ctx.tell("teach", "note", trial.facts["text"])
        return Outcome(trial.facts)
    counts, responses = await ask_teacher(
        ctx, teacher, trial.records, part="trial", stage="teach", generation=asked_generation(ctx)
    )
    paid = {"num_new": counts.answered - counts.reused, "cost": counts.cost or 0.0}
    try:
        facts = _facts(ctx, samples_of(ctx, trial.records, responses), trial.untouched)
    except DataError as error:  # a metric of the user's own that counts none of these rows
        ctx.tell("teach", "note", f"open whether the teacher beats the untouched student: {error}")
        return Outcome({}, **paid)
    ctx.run.mark_done("trial", trial.key, found=facts)
    ctx.tell("teach", "note", facts["text"])
    return Outcome(facts, **paid)


def _facts(ctx: Context, teacher: list[Sample], untouched: list[Sample]) -> dict[str, Any]:
    settings = ctx.config.evaluate
    metric = named_metrics(ctx.task, settings.metrics)[0]
    found = compare(
        "teacher", "untouched", metric, teacher, untouched, margin=None, seed=settings.seed
    )
    values = [estimate(metric, samples, seed=settings.seed) for samples in (teacher, untouched)]
    levels = " and ".join(numbers.number(value.value, value.unit) for value in values)
    about = (
        f"{metric_text(metric.name)} {levels} on {len(teacher):,} rows with known answers, "
        f"{_difference(found, metric.unit)}"
    )
    is_better = found.verdict == "better"
    if is_better:
        text = f"the teacher beats the untouched student: {about}"
    else:
        doubt = "is worse than" if found.verdict == "worse" else "does not surely beat"
        text = (
            f"warning: the teacher {doubt} the untouched student, which may learn nothing from "
            f"it: {about}; potstill audition compares teachers on more rows"
        )
    return {
        "num_rows": len(teacher),
        "metric": metric.name,
        "teacher": values[0].value,
        "untouched": values[1].value,
        **found.model_dump(include={"difference", "low", "high", "p", "verdict"}),
        "is_better": is_better,
        "text": text,
    }


def _difference(found: Comparison, unit: str) -> str:
    ends = numbers.interval(found.low, found.high, unit, sign=True)
    return f"difference {numbers.number(found.difference, unit, sign=True)} {ends}".strip()
