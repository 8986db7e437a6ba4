"""Stages teach, check and score: what the teacher says, what of it is fit to learn from."""

from __future__ import annotations

from collections import Counter
from typing import Any

from potstill.data.render import Rendered, render, template_fingerprint, vocab_fingerprint
from potstill.errors import DataError
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.models.weights import load_tokenizer
from potstill.pipeline.context import Context, wait, weights_key
from potstill.pipeline.preflight import place_key, teacher_ref
from potstill.rundir import read_jsonl, write_jsonl
from potstill.teach.checks import build_checks, check_responses
from potstill.teach.generate import generate
from potstill.types import Record, Rejection, Response

SPLITS = ("train", "validation")


def teach(ctx: Context) -> None:
    """Asks the teacher every training and validation prompt that it has not answered yet."""
    config, run = ctx.config, ctx.run
    place = place_key(ctx, config.teacher)
    inputs = (
        config.generation,
        config.teacher.model,
        weights_key(place),
        run.train,
        run.validation,
    )

    def work() -> dict[str, Any]:
        return wait(_ask(ctx))

    ctx.stage("teach", inputs, work)


async def _ask(ctx: Context) -> dict[str, Any]:
    config, run = ctx.config, ctx.run
    teacher = open_chat_model(
        config.teacher,
        workspace=ctx.workspace,
        batch_size=config.generation.batch_size,
        key=ctx.secrets.get("teacher"),
    )
    counts: Counter[str] = Counter()
    cost = 0.0
    try:
        for split in SPLITS:
            records = read_jsonl(_split_file(ctx, split), Record)
            if not records:
                continue
            out = run.response_file(split)
            out.parent.mkdir(parents=True, exist_ok=True)
            found = await generate(
                teacher,
                records,
                out,
                task=ctx.task,
                config=config.generation,
                on_progress=ctx.progress("teach"),
            )
            counts.update(requested=found.requested, answered=found.answered, reused=found.reused)
            cost += found.cost or 0.0
    finally:
        await teacher.close()
    text = f"{counts['answered']:,} responses of {counts['requested']:,} asked"
    if cost:
        text += f", cost {cost:.4f}"
    return {"text": text, "cost": cost, "teacher": teacher.name, **counts}


def check(ctx: Context) -> None:
    """Keeps the answers that pass every check, and writes down why the others do not."""
    config, run = ctx.config, ctx.run
    files = tuple(run.response_file(split) for split in SPLITS)
    inputs = (
        config.task,
        config.checks,
        config.generation.reasoning,
        config.generation.prompting,
        run.train,
        run.validation,
        *files,
    )

    def work() -> dict[str, Any]:
        checks = build_checks(config.checks, ctx.task, config=config.generation)
        rejections: list[Rejection] = []
        counts: dict[str, int] = {}
        outputs = {"train": run.accepted, "validation": run.accepted_validation}
        for split in SPLITS:
            records = read_jsonl(_split_file(ctx, split), Record)
            responses = read_jsonl(run.response_file(split), Response)
            accepted, rejected = check_responses(
                records, responses, checks, ctx.task, config=config.generation
            )
            write_jsonl(outputs[split], accepted)
            counts[f"num_{split}"] = len(accepted)
            rejections += rejected
        write_jsonl(run.rejected, rejections)
        reasons = Counter(rejection.reason for rejection in rejections)
        if not counts["num_train"]:
            raise DataError(
                f"the checks rejected every answer of the teacher ({_list(reasons)}); read "
                f"{run.rejected}, and change the prompt, generation or checks"
            )
        text = f"{sum(counts.values()):,} accepted, {len(rejections):,} rejected"
        if rejections:
            text += f" ({_list(reasons)})"
        return {**counts, "num_rejected": len(rejections), "reasons": reasons, "text": text}

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


def _list(reasons: Counter[str]) -> str:
    return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in reasons.most_common(5))
