"""Stage score: the teacher's probabilities of its accepted answers, once, for every epoch.

What came with the answers is used as it is. The rest is computed from the teacher's weights
where they are on this machine, or scored by the endpoint where it is a server that tells the
probabilities of given text; behind other endpoints there is no second look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.data.render import Rendered, render, template_fingerprint, vocab_fingerprint
from potstill.errors import AnswersLost, DataError
from potstill.models.catalog import ModelRef
from potstill.models.chat import open_chat_model
from potstill.models.endpoint import EndpointModel
from potstill.models.fingerprint import weights_identity
from potstill.pipeline.context import Context, wait, weights_key
from potstill.pipeline.preflight import (
    is_plainly_sampled,
    logprobs_mode,
    place_key,
    privacy_of,
    teacher_ref,
)
from potstill.pipeline.teach import (
    SPLITS,
    accepted_rows,
    answered,
    as_the_teacher_reads,
    lessons_key,
    student_tokenizer,
)
from potstill.rundir import read_jsonl
from potstill.targets.store import TargetWriter
from potstill.tasks.conversation import with_answers
from potstill.teach.accept import accepted_id
from potstill.teach.kept import TEXTS, Kept, Lesson, Misfit, Source, keep
from potstill.teach.ledger import Ledger
from potstill.teach.prompts import lessons, teacher_prompt
from potstill.types import Message, Record, Response

if TYPE_CHECKING:
    from potstill.teach.score_endpoint import Unscored

MOST_UNUSABLE = 0.5
"""Share of the accepted answers that may have no probabilities, where they cannot be computed."""


def score(ctx: Context) -> None:
    """Keeps the teacher's probabilities of its accepted answers, once, for every epoch.

    Raises:
        DataError: If the teacher is an endpoint, and more than `MOST_UNUSABLE` of its answers
            came without probabilities that can be learned from.
    """
    config, run = ctx.config, ctx.run
    teacher = teacher_ref(ctx)
    temperatures = config.loss.temperatures
    inputs = (
        # What is stored does not change when training moves to another stored temperature.
        config.loss.targets.model_copy(update={"temperatures": temperatures}),
        config.train.max_tokens,
        weights_key(place_key(ctx, config.teachers)),
        run.accepted,
        run.accepted_validation,
        *lessons_key(ctx),
        *((config.teachers[0].model, logprobs_mode(ctx)) if teacher.kind == "endpoint" else ()),
    )
    ctx.stage("score", inputs, lambda: _score(ctx, teacher))


def _score(ctx: Context, teacher: ModelRef) -> dict[str, Any]:
    from potstill.teach.score import target_settings

    loss, run = ctx.config.loss, ctx.run
    tokenizer = student_tokenizer(ctx)
    is_topk = loss.targets.kind == "topk"
    settings = target_settings(
        len(tokenizer),
        kind=loss.targets.kind,
        k=loss.targets.k if is_topk else loss.targets.num_draws,
        temperatures=loss.temperatures,
        vocab_fingerprint=vocab_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        teacher=_identity(ctx, teacher),
    )
    writer = TargetWriter(run.targets, settings)
    is_remote = teacher.kind == "endpoint"
    kept = _keep(ctx, writer, tokenizer, is_remote=is_remote)
    if not kept.rows:
        accepted_rows(ctx, tokenizer, "train")  # says it where all are too long
    missing = [key for key in kept.misfits if key not in writer]
    scored: dict[str, Any] = {}
    if missing and is_remote:
        scored = _score_there(ctx, writer, kept, tokenizer) if ctx.can_score_text else {}
        missing = [key for key in missing if key not in writer]
        if missing:
            _tell_unusable(ctx, Counter(kept.misfits[key] for key in missing), len(kept.rows))
    elif missing:
        _compute(ctx, teacher, writer, {key: kept.rows[key] for key in missing}, tokenizer)
    # What was computed before an interruption did not come with the answers either.
    reasons = Counter(kept.misfits[key] for key in (missing if is_remote else kept.misfits))
    manifest = writer.finish()
    facts = manifest.model_dump(exclude={"shards", "settings"})
    num_kept, num_missing = len(kept.rows) - len(kept.misfits), reasons.total()
    num_scored = len(kept.misfits) - num_missing
    text = f"{len(kept.rows):,} answers, "
    if is_topk:
        text += f"the {settings.k} largest of {settings.vocab_size:,} probabilities a token, "
    else:
        text += f"{settings.k} draws a token, "
    text += f"{manifest.bytes_per_position:,.0f} bytes each"
    if manifest.mass_dropped >= 1e-6:
        text += f", {manifest.mass_dropped:.2g} of the probability on tokens the student has not"
    text += f"; {num_kept:,} came with the answers"
    if num_scored:
        text += f", {num_scored:,} were scored by {teacher.name}"
    if num_missing:
        verb = "left out" if is_remote else "computed"
        text += f", {num_missing:,} {verb} ({_listed(reasons)})"
    counts = {"num_kept": num_kept, "num_scored": num_scored, "num_missing": num_missing}
    return {**facts, **counts, **scored, "reasons": dict(reasons), "text": text}


def _keep(ctx: Context, writer: TargetWriter, tokenizer: Any, *, is_remote: bool) -> Kept:
    source = Source(logprobs_mode(ctx), is_plainly_sampled(ctx.config.generation))
    tell = ctx.progress("score")

    def kept(answers: Ledger | None) -> Kept:
        every = _lessons(ctx, tokenizer, answers)
        return keep(every, writer, source=source, tokenizer=tokenizer, on_progress=tell)

    try:
        with Ledger(ctx.run.responses) as answers:
            return kept(answers)
    except AnswersLost as error:
        if is_remote:
            ctx.run.mark("teach").unlink(missing_ok=True)
            raise
        ctx.tell("score", "note", f"what came with the answers is not used: {error}")
        return kept(None)


def _compute(
    ctx: Context,
    ref: ModelRef,
    writer: TargetWriter,
    rows: Mapping[bytes, Rendered],
    tokenizer: Any,
) -> None:
    """Asks the teacher's weights for the probabilities of what it answered."""
    from potstill.models.local import LocalModel
    from potstill.teach.score import Translation, score_into

    teacher = LocalModel(ref, batch_size=ctx.config.generation.batch_size)
    translation = None
    try:
        if teacher.vocab_fingerprint != writer.settings.vocab_fingerprint:
            read = as_the_teacher_reads(ctx, tokenizer, teacher.tokenizer)
            translation = Translation(tokenizer, [read[key] for key in rows])
        score_into(
            writer,
            teacher,
            list(rows.values()),
            translation=translation,
            max_dropped=ctx.config.loss.targets.max_dropped,
            on_progress=ctx.progress("score"),
        )
    finally:
        wait(teacher.close())


def _score_there(ctx: Context, writer: TargetWriter, kept: Kept, tokenizer: Any) -> dict[str, Any]:
    """Asks the endpoint for the probabilities of what it answered; returns what that took."""
    from potstill.teach.score_endpoint import score_at_endpoint

    config, privacy = ctx.config, privacy_of(ctx)
    (settings,) = config.teachers

    def may_be_sent(key: bytes) -> bool:
        # What nothing was hidden from when it was asked shows nothing now; answers are its own.
        record = Record(id="text", messages=kept.texts[key][0])
        return privacy.in_data or not privacy.covers(record) or not privacy.hide(record).digest

    rows = {key: kept.rows[key] for key in kept.misfits if may_be_sent(key)}

    async def ask() -> dict[str, Any]:
        model = open_chat_model(settings, workspace=ctx.workspace, key=ctx.secrets.get("teacher"))
        assert isinstance(model, EndpointModel), type(model)
        try:
            await model.prepare()
            scorer = model.open_scorer()
            assert scorer is not None, "asked only where the dry call has found one"
            earlier = sum(len(row.ids) for key, row in rows.items() if key in writer)
            spent = ctx.run.facts("teach").get("cost", 0.0) + (scorer.cost_of(earlier) or 0.0)
            limit = config.generation.max_cost
            left = await score_at_endpoint(
                writer,
                scorer,
                rows,
                kept.texts,
                tokenizer,
                most_cost=None if limit is None else limit - spent,
                on_progress=ctx.progress("score"),
            )
        finally:
            await model.close()
        _tell_unscored(ctx, left)
        facts = {"num_prompt_tokens": scorer.num_prompt_tokens}
        return facts if scorer.cost is None else {**facts, "cost": scorer.cost}

    return wait(ask())


def _tell_unscored(ctx: Context, left: Unscored) -> None:
    parts = []
    if left.num_other_tokens:
        parts.append(f"{left.num_other_tokens:,} are written with other tokens by the server")
    if left.num_unaffordable:
        parts.append(f"{left.num_unaffordable:,} would cost more than generation.max_cost allows")
    if left.failures:
        parts.append(f"{len(left.failures):,} failed, the last with: {left.failures[-1]}")
    if parts:
        ctx.tell("score", "note", f"not scored by the endpoint: {'; '.join(parts)}")


def _tell_unusable(ctx: Context, reasons: Counter[Misfit], num_rows: int) -> None:
    number = reasons.total()
    text = f"{number:,} of {num_rows:,} accepted answers have no probabilities to learn from: "
    text += "; ".join(f"{count:,} {TEXTS[reason]}" for reason, count in reasons.most_common())
    if number > MOST_UNUSABLE * num_rows:
        raise DataError(
            f"{text}. This endpoint was not able to score them afterwards, and from so few the "
            f"student would learn another task; use loss.kind: sft, which learns all of them, or "
            f"a teacher whose weights are on this machine or behind vLLM"
        )
    ctx.tell("score", "note", f"{text}; the student learns without them")


def _lessons(ctx: Context, tokenizer: Any, answers: Ledger | None) -> Iterator[Lesson]:
    """Every row that is learned or watched, with the answer that it was made of.

    Args:
        answers: None where they are not to be looked at.
    """
    for split in SPLITS:
        path = ctx.run.accepted if split == "train" else ctx.run.accepted_validation
        accepted = {record.id: record for record in read_jsonl(path, Record)}
        for asked, responses in answered(ctx, answers, split) if answers else ():
            samples: dict[int, dict[int, Response]] = {}
            for response in responses:
                samples.setdefault(response.sample, {})[response.turn] = response
            for sample, turns in sorted(samples.items()):
                found = accepted.pop(accepted_id(asked, sample), None)
                if found is not None:
                    yield from _lessons_of(ctx, tokenizer, split, found, asked, turns)
        for found in accepted.values():
            yield from _lessons_of(ctx, tokenizer, split, found, found, {})


def _lessons_of(
    ctx: Context,
    tokenizer: Any,
    split: str,
    accepted: Record,
    asked: Record,
    turns: Mapping[int, Response],
) -> Iterator[Lesson]:
    """The lessons of one accepted answer, or of one conversation.

    Args:
        asked: The record as it was before it was answered.
        turns: The answers to it, by turn.
    """
    generation, limit = ctx.config.generation, ctx.config.train.max_tokens
    prompts = _prompts(ctx, asked, turns)
    rows = lessons(accepted, generation) if split == "train" else (accepted,)
    for record in rows:
        for number, turn in enumerate(ctx.task.turns(record)):
            if turn.reference is None:
                continue
            row = render(tokenizer, turn.messages, turn.reference, max_tokens=limit)
            if row is not None:
                is_as_asked = prompts.get(number) == turn.messages
                answer = turns.get(number)
                yield Lesson(row, turn.reference, answer, is_as_asked, turn.messages)


def _prompts(
    ctx: Context, asked: Record, turns: Mapping[int, Response]
) -> dict[int, tuple[Message, ...]]:
    """What the teacher was asked in each turn that it answered, its own words before it."""
    prompts, found = ctx.task.turns(asked), {}
    said = [turns[turn].text for turn in sorted(turns)]
    for turn in range(min(len(said), len(prompts))):
        prompt = with_answers(prompts, turn, said)
        found[turn] = teacher_prompt(prompt, ctx.config.generation).messages
    return found


def _listed(reasons: Counter[Misfit]) -> str:
    return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in reasons.most_common())


def _identity(ctx: Context, teacher: ModelRef) -> str:
    """What tells the teacher's probabilities from others'."""
    if teacher.kind == "endpoint":
        return f"{teacher.source} {ctx.config.teachers[0].model or teacher.model or ''}".strip()
    from potstill.models.weights import cached_folder

    is_file = teacher.kind == "gguf"
    return weights_identity(Path(teacher.source) if is_file else cached_folder(teacher))
