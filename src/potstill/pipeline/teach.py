"""Stages teach, check and score: what the teacher says, what of it is fit to learn from."""

from __future__ import annotations

from collections import Counter
from typing import Any

from potstill.config import TASKS
from potstill.data.privacy import describe
from potstill.data.render import Rendered, render, template_fingerprint, vocab_fingerprint
from potstill.errors import AnswersLost, DataError
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.logged import LoggedAnswers
from potstill.models.private import PrivateModel, guarded
from potstill.models.weights import load_tokenizer
from potstill.pipeline.check import sort_answers
from potstill.pipeline.context import Context, wait, weights_key
from potstill.pipeline.preflight import place_key, privacy_key, privacy_of, teacher_ref
from potstill.protocols import ChatModel
from potstill.rundir import JsonLines, RunDir, content_hash, iter_jsonl, read_jsonl
from potstill.teach.generate import generate
from potstill.teach.ledger import Inventory, Ledger
from potstill.types import Record

SPLITS = ("train", "validation")


def teach(ctx: Context) -> None:
    """Asks the teacher every training and validation prompt that it has not answered yet."""
    config, run = ctx.config, ctx.run
    place = place_key(ctx, config.teacher)
    inputs = (
        config.generation,
        config.teacher.model,
        config.data.logged_answers,
        *privacy_key(ctx),
        weights_key(place),
        run.train,
        run.validation,
    )

    def work() -> dict[str, Any]:
        return wait(_ask(ctx))

    ctx.stage("teach", inputs, work)


def _open_teacher(ctx: Context) -> ChatModel:
    """Who answers: the teacher, shown no personal data, or the logs."""
    config = ctx.config
    if config.data.logged_answers == "reuse":
        return LoggedAnswers()
    wanted = config.generation.max_in_flight
    teacher = open_chat_model(
        config.teacher,
        workspace=ctx.workspace,
        batch_size=config.generation.batch_size,
        max_in_flight=None if wanted == "auto" else wanted,
        key=ctx.secrets.get("teacher"),
    )
    return guarded(teacher, privacy_of(ctx))


def _count_hidden(ctx: Context, teacher: ChatModel) -> Counter[str]:
    """How many personal values of each kind the teacher is not shown; said before it is asked."""
    hidden: Counter[str] = Counter()
    if isinstance(teacher, PrivateModel):
        privacy = privacy_of(ctx)
        for split in SPLITS:
            hidden += privacy.count(iter_jsonl(_split_file(ctx, split), Record))
        if hidden or privacy.mode != "auto":
            found = describe(hidden) or "nothing, since nothing was found"
            ctx.tell("teach", "note", f"hidden from the teacher: {found}")
    return hidden


async def _ask(ctx: Context) -> dict[str, Any]:
    config, run = ctx.config, ctx.run
    generation = config.generation
    if config.data.logged_answers == "reuse":
        generation = generation.model_copy(update={"pilot": 0, "max_cost": None})
    teacher = _open_teacher(ctx)
    hidden = _count_hidden(ctx, teacher)
    counts: Counter[str] = Counter()
    cost = 0.0
    try:
        for split in SPLITS:
            records = JsonLines(_split_file(ctx, split), Record)
            num_prompts, source = _prompts(ctx, records)
            found = await generate(
                teacher,
                records,
                run.responses,
                task=ctx.task,
                config=generation,
                part=split,
                requested=num_prompts * generation.num_responses,
                source=source,
                on_progress=ctx.progress("teach"),
                on_asking=ctx.figures("teach"),
            )
            counts.update(requested=found.requested, answered=found.answered, reused=found.reused)
            cost += found.cost or 0.0
            if found.damaged:
                ctx.tell("teach", "note", damaged_text(found.damaged, run))
    finally:
        await teacher.close()
    text = f"{counts['answered']:,} responses of {counts['requested']:,} asked"
    if cost:
        text += f", cost {cost:.4f}"
    if hidden:
        text += f"; hidden: {describe(hidden)}"
    facts = {"text": text, "cost": cost, "teacher": teacher.name, "hidden": dict(hidden)}
    return {**facts, **counts}


def _prompts(ctx: Context, records: JsonLines[Record]) -> tuple[int, str]:
    """How many prompts a split holds; and a hash of all their messages are made of.

    Only conversations have more than one prompt a record; these are looked at one by one.
    """
    config = ctx.config
    if config.task in TASKS and config.task != "conversation":
        answers = config.data.logged_answers
        source = content_hash(records.path, config.task, answers, *privacy_key(ctx))
        return records.num_lines(), source
    return sum(len(ctx.task.turns(record)) for record in records), ""


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
            run.mark("teach").unlink(missing_ok=True)
        return found


def check(ctx: Context) -> None:
    """Keeps the answers that pass every check, and writes down why the others do not."""
    config, run = ctx.config, ctx.run
    generation = config.generation
    inputs = (
        config.task,
        config.checks,
        config.check_limits,
        generation.reasoning,
        generation.prompting,
        generation.max_summary_words,
        generation.choose,
        generation.best_by,
        config.data.label_quota,
        run.train,
        run.validation,
        run.test,
        *config.data.keep_out,
        run.facts("teach").get("finished_at"),  # when answers were last asked for or looked up
    )

    def work() -> dict[str, Any]:
        try:
            with Ledger(run.responses) as answers:
                return sort_answers(ctx, answers.with_records)
        except AnswersLost:
            run.mark("teach").unlink(missing_ok=True)
            raise

    ctx.stage("check", inputs, work)


def score(ctx: Context) -> None:
    """Keeps the teacher's probabilities of its accepted answers, once, for every epoch."""
    config, run = ctx.config, ctx.run
    place = place_key(ctx, config.teacher)
    inputs = (
        config.loss.targets,
        config.loss.temperature,
        config.train.max_tokens,
        weights_key(place),
        run.accepted,
        run.accepted_validation,
    )

    def work() -> dict[str, Any]:
        from potstill.models.local import LocalModel
        from potstill.teach.score import score as score_rows

        tokenizer = student_tokenizer(ctx)
        rows = [row for split in SPLITS for row in accepted_rows(ctx, tokenizer, split)]
        teacher = LocalModel(teacher_ref(ctx), batch_size=config.generation.batch_size)
        try:
            manifest = score_rows(
                teacher,
                rows,
                run.targets,
                k=config.loss.targets.k,
                temperature=config.loss.temperature,
                student_vocab_fingerprint=vocab_fingerprint(tokenizer),
                student_template_fingerprint=template_fingerprint(tokenizer),
                on_progress=ctx.progress("score"),
            )
        finally:
            wait(teacher.close())
        facts = manifest.model_dump(exclude={"shards", "settings"})
        text = f"{len(rows):,} answers, the {config.loss.targets.k} largest of "
        text += f"{manifest.settings.vocab_size:,} probabilities a token"
        return {**facts, "text": text}

    ctx.stage("score", inputs, work)


def accepted_rows(ctx: Context, tokenizer: Any, split: str) -> list[Rendered]:
    """Accepted answers of a split as token ids and loss masks; one row an assistant turn."""
    path = ctx.run.accepted if split == "train" else ctx.run.accepted_validation
    return render_rows(ctx, tokenizer, read_jsonl(path, Record))


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


def _split_file(ctx: Context, split: str) -> Any:
    return ctx.run.train if split == "train" else ctx.run.validation
