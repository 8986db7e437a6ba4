"""Stages teach and check: what the teacher says, and what of it is fit to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from potstill.config import GenerationConfig, asked_of_all
from potstill.data.privacy import describe
from potstill.data.render import Rendered, render
from potstill.errors import AnswersLost, ConfigError, DataError
from potstill.models.catalog import find_model
from potstill.models.logged import LoggedAnswers
from potstill.models.logprobs import Capture
from potstill.models.weights import load_tokenizer
from potstill.pipeline.check import Rows, sort_answers
from potstill.pipeline.context import Context, prepared, wait
from potstill.pipeline.data import training_prompts
from potstill.pipeline.preflight import (
    asked_generation,
    privacy_key,
    privacy_of,
    required_logprobs,
    teacher_key,
)
from potstill.pipeline.rounds import answered_rounds, ask_until_enough, prompts_of
from potstill.pipeline.teachers import (
    is_screened,
    open_teachers,
    refuse_unrouted,
    said_by,
    screened,
)
from potstill.pipeline.trial import Trial, begin_trial, end_trial
from potstill.protocols import ChatModel
from potstill.rundir import JsonLines, RunDir, iter_jsonl, read_jsonl
from potstill.targets.manifest import content_key
from potstill.teach.generate import Counts, generate
from potstill.teach.ledger import Inventory, Ledger
from potstill.teach.prompts import lessons
from potstill.teach.spending import spending_lines
from potstill.types import Record

SPLITS = ("train", "validation")

_WASTE = ("num_unused", "num_unused_tokens", "num_unread")
"""Of `Counts`: what was asked for in this run and is of no use."""


def teach(ctx: Context) -> None:
    """Asks the teacher every training and validation prompt that it has not answered yet."""
    config, run = ctx.config, ctx.run
    inputs = (
        asked_generation(ctx),
        *teacher_key(ctx),
        config.data.logged_answers,
        *privacy_key(ctx),
        training_prompts(ctx),
        run.validation,
        *(() if config.generation.num_accepted is None else _check_key(ctx)),
    )

    def work() -> dict[str, Any]:
        refuse_unrouted(ctx)
        trial = begin_trial(ctx)
        return wait(_ask(ctx, trial))

    ctx.stage("teach", inputs, work)


def open_teacher(ctx: Context, *, capture: Capture | None = None) -> ChatModel:
    """Who answers: the teacher or several, shown no personal data, or the logs.

    Args:
        capture: What local weights keep of their probabilities while they answer.
    """
    if ctx.config.data.logged_answers == "reuse":
        return LoggedAnswers()
    generation = asked_generation(ctx)
    return open_teachers(
        ctx,
        batch_size=generation.batch_size,
        max_in_flight=None if generation.max_in_flight == "auto" else generation.max_in_flight,
        batches=True,
        capture=capture,
        top_logprobs=generation.logprobs,
    )


def _count_hidden(ctx: Context, teacher: ChatModel) -> Counter[str]:
    """How many personal values of each kind the teacher is not shown; said before it is asked."""
    hidden: Counter[str] = Counter()
    if is_screened(teacher):
        privacy = privacy_of(ctx)
        for split in SPLITS:
            hidden += privacy.count(screened(teacher, iter_jsonl(_split_file(ctx, split), Record)))
        if hidden or privacy.mode != "auto":
            found = describe(hidden) or "nothing, since nothing was found"
            ctx.tell("teach", "note", f"hidden from the teacher: {found}")
    return hidden


async def _ask(ctx: Context, trial: Trial | None) -> dict[str, Any]:
    config, run = ctx.config, ctx.run
    generation = asked_of_all(asked_generation(ctx), len(config.teachers))
    if config.data.logged_answers == "reuse":
        generation = generation.model_copy(update={"pilot": 0, "max_cost": None})
    teacher = open_teacher(ctx, capture=_capture(ctx))
    hidden = _count_hidden(ctx, teacher)
    if hidden and required_logprobs(ctx):
        await teacher.close()
        raise ConfigError(
            f"loss.kind: {config.loss.kind} learns the probabilities of what the teacher wrote, "
            f"and data.privacy puts other values into it ({describe(hidden)}); use data.privacy: "
            f"{{learn: pseudonyms}}, or loss.kind: sft"
        )
    counts: Counter[str] = Counter()
    cost = unused_cost = 0.0
    rounds: dict[str, Any] = {}
    try:
        await prepared(teacher, ctx.progress("teach"))
        tried = await end_trial(ctx, teacher, trial)
        cost += tried.cost
        counts["reused"] -= tried.num_new  # asked by this run, though not as part of a split
        for split in SPLITS:
            if split == "train" and generation.num_accepted is not None:
                found, rounds = await ask_until_enough(ctx, teacher, generation)
            else:
                found = await _ask_split(ctx, teacher, generation, split)
            counts.update(requested=found.requested, answered=found.answered, reused=found.reused)
            counts.update({name: getattr(found, name) for name in _WASTE})
            cost += found.cost or 0.0
            unused_cost += found.unused_cost or 0.0
            if found.damaged:
                ctx.tell("teach", "note", damaged_text(found.damaged, run))
    finally:
        await teacher.close()
    text = f"{counts['answered']:,} responses of {counts['requested']:,} asked"
    if rounds:
        text += f", {rounds['found']:,} of {rounds['wanted']:,} wanted rows"
    if cost:
        text += f", cost {cost:.4f}"
    if hidden:
        text += f"; hidden: {describe(hidden)}"
    facts = {"text": text, "cost": cost, "teacher": teacher.name, "hidden": dict(hidden)}
    facts |= {"trial": tried.facts, "teachers": said_by(ctx), "unused_cost": unused_cost}
    return {**facts, **counts, **rounds}


def _capture(ctx: Context) -> Capture | None:
    """What the loss needs of the probabilities that local weights answer with."""
    loss = ctx.config.loss
    if loss.kind == "sft" or loss.targets.kind != "topk" or len(loss.temperatures) > 1:
        return None  # draws, and tails at several temperatures, are computed when scoring
    return Capture(loss.targets.k, loss.temperature)


async def _ask_split(
    ctx: Context, teacher: ChatModel, config: GenerationConfig, split: str
) -> Counts:
    records = JsonLines(_split_file(ctx, split), Record)
    num_prompts, source = prompts_of(ctx, records)
    return await generate(
        teacher,
        records,
        ctx.run.responses,
        task=ctx.task,
        config=config,
        part=split,
        requested=num_prompts * config.num_responses,
        source=source,
        on_progress=ctx.progress("teach"),
        on_asking=ctx.figures("teach"),
    )


def damaged_text(number: int, run: RunDir) -> str:
    """What became of answers that are not what was written."""
    return (
        f"{number:,} answers in {run.responses} had changed since they were written; they are set "
        f"aside in damaged-*.jsonl there and asked again"
    )


def verify(run: RunDir) -> Inventory:
    """Reads all answers that a run keeps; what is damaged or lost is asked again by the next run.

    Raises:
        RunLocked: If the run is going on.
    """
    with run.locked(), Ledger(run.responses) as ledger:
        found = ledger.verify()
        if found.num_damaged or found.num_missing:
            for stage in ("expand", "teach"):
                run.mark(stage).unlink(missing_ok=True)
        return found


def check(ctx: Context) -> None:
    """Keeps the answers that pass every check, and writes down why the others do not."""
    run = ctx.run
    asked = run.facts("teach")
    # The time says when answers were last asked for or looked up.
    inputs = (*_check_key(ctx), asked.get("finished_at"))

    def work() -> dict[str, Any]:
        try:
            with Ledger(run.responses) as answers:

                def with_answers(split: str, records: Iterable[Record]) -> Rows:
                    return answered(ctx, answers, split, records)

                facts = sort_answers(ctx, with_answers)
                return {**facts, "spending": _spending(ctx, facts["spending"], answers.cost)}
        except AnswersLost:
            run.mark("teach").unlink(missing_ok=True)
            raise

    ctx.stage("check", inputs, work)


def _spending(ctx: Context, bill: dict[str, Any], cost: float) -> dict[str, Any]:
    """What was paid for, accepted and not, told and kept; `elsewhere` is for other answers."""
    here = sum(bill[name].get("cost", 0.0) for name in ("accepted", "unused"))
    found = {**bill, "cost": cost, "elsewhere": max(0.0, cost - here)}
    if found["elsewhere"] < 1e-9 * cost:  # sums of the same numbers in another order
        found["elsewhere"] = 0.0
    found["lines"] = spending_lines(found)
    for line in found["lines"]:
        ctx.tell("check", "note", line)
    ctx.keep_figures("check", {"spending": found})
    return found


def _check_key(ctx: Context) -> tuple[Any, ...]:
    """What the checks depend on, the answers themselves left out."""
    config, run = ctx.config, ctx.run
    generation = config.generation
    return (
        config.task,
        config.checks,
        config.check_limits,
        generation.reasoning,
        generation.prompting,
        generation.max_summary_words,
        generation.choose,
        generation.best_by,
        config.data.label_quota,
        training_prompts(ctx),
        run.validation,
        run.test,
        *config.data.keep_out,
    )


def answered(
    ctx: Context, answers: Ledger, split: str, records: Iterable[Record] | None = None
) -> Rows:
    """Each prompt of a split with the answers to it, in the order they were asked.

    Args:
        records: What was asked; read from the run by default.
    """
    num_rounds = len(ctx.run.facts("teach").get("rounds", ()))
    if split == "train" and num_rounds:
        return answered_rounds(ctx.run, answers, num_rounds)
    records = iter_jsonl(_split_file(ctx, split), Record) if records is None else records
    return answers.with_records(split, records)


def accepted_rows(ctx: Context, tokenizer: Any, split: str) -> list[Rendered]:
    """Accepted answers of a split as token ids and loss masks; one row an assistant turn.

    With `generation.reasoning: both` training answers give two rows. The student is watched on
    bare answers, which is what it will be asked for.
    """
    return render_rows(ctx, tokenizer, _accepted_lessons(ctx, split))


def _accepted_lessons(ctx: Context, split: str) -> list[Record]:
    if split != "train":
        return read_jsonl(ctx.run.accepted_validation, Record)
    accepted = read_jsonl(ctx.run.accepted, Record)
    return [row for record in accepted for row in lessons(record, ctx.config.generation)]


def as_the_teacher_reads(ctx: Context, ours: Any, theirs: Any) -> dict[bytes, Rendered]:
    """The rows of `accepted_rows` with the teacher's own tokenizer and template, by the keys
    that they have in the student's."""
    found: dict[bytes, Rendered] = {}
    for split in SPLITS:
        for record in _accepted_lessons(ctx, split):
            for turn in ctx.task.turns(record):
                if turn.reference is None:
                    continue
                row = render(ours, turn.messages, turn.reference)
                read = render(theirs, turn.messages, turn.reference)
                assert row is not None and read is not None, "no limit was given"
                found[content_key(row.ids, row.loss_mask)] = read
    return found


def lessons_key(ctx: Context) -> tuple[str, ...]:
    """What training rows depend on beside the accepted answers, for stage hashes."""
    return ("both",) if ctx.config.generation.reasoning == "both" else ()


def render_rows(ctx: Context, tokenizer: Any, records: list[Record]) -> list[Rendered]:
    """Records with answers as token ids and loss masks; rows too long are left out, and said.

    Raises:
        DataError: If every row is longer than train.max_tokens.
    """
    limit = ctx.config.train.max_tokens
    rows, num_long = [], 0
    for record in records:
        for turn in ctx.task.turns(record):
            if turn.reference is None:
                continue
            row = render(tokenizer, turn.messages, turn.reference, max_tokens=limit)
            if row is None:
                num_long += 1
            else:
                rows.append(row)
    if num_long:
        text = f"{num_long:,} rows are longer than train.max_tokens = {limit} and were left out"
        if not rows:
            raise DataError(f"all {text.replace(' and were left out', '')}; raise it")
        ctx.tell("train", "note", text)
    return rows


def student_tokenizer(ctx: Context) -> Any:
    """The tokenizer that the student will be trained with."""
    return load_tokenizer(find_model(ctx.config.student.place, workspace=ctx.workspace))


def _split_file(ctx: Context, split: str) -> Path:
    return training_prompts(ctx) if split == "train" else ctx.run.validation
