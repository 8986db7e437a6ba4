"""What the judge of `evaluate.judge` will take, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.config import JudgeConfig
from potstill.examine.ballots import Pair
from potstill.examine.judge import answer_records, pair_records
from potstill.models.catalog import ModelRef
from potstill.pipeline.context import Context, decoding
from potstill.pipeline.estimate import (
    FEWEST_ANSWERS,
    MOST_ROWS,
    Forecast,
    Range,
    Size,
    Sizer,
    lengths_in_ledger,
    priced,
    seconds_of,
    sizer,
)
from potstill.pipeline.preflight import ref_of
from potstill.types import Record, Sample

REPLY_TOKENS = 64
"""A reply of one or two sentences, as the judge is asked for."""


def estimate_judge(ctx: Context, test: Sequence[Record]) -> Forecast | None:
    """Questions, tokens, money and time of the judge; None without a judge or a test set."""
    config = ctx.config.evaluate.judge
    if config is None or not test:
        return None
    turns = [turn for record in test for turn in ctx.task.turns(record)]
    num_rows = min(len(turns), config.num_rows or len(turns))
    looked_at = turns[:: -(-len(turns) // MOST_ROWS)]
    others = _others(ctx, config)
    ref = ref_of(ctx, config)
    notes: list[str] = []
    size = sizer(ref, notes, "judge")
    longest = decoding(ctx).max_new_tokens
    asked, num_requests = [], 0
    for how in config.how:
        of_each = 2 * len(others) if how == "pairwise" else 1 + len(others)
        num_requests += num_rows * of_each
        scale = num_rows * of_each / len(looked_at)
        sizes = [_question(turn, how, config, size, longest) for turn in looked_at]
        # Equal answers are a tie unasked, so that nothing need be asked about pairs.
        low = 0.0 if how == "pairwise" else scale * sum(s.low for s in sizes)
        likely, most = (scale * sum(s[i] for s in sizes) for i in (1, 2))
        asked.append(Range(low=low, likely=likely, most=most))
    prompts = Range(
        low=sum(r.low for r in asked),
        likely=sum(r.likely or 0 for r in asked),
        most=sum(r.most for r in asked),
    )
    came = lengths_in_ledger(ctx.run.judgments)
    mean = sum(came) / len(came) if len(came) >= FEWEST_ANSWERS else REPLY_TOKENS
    is_free = "rubric" not in config.how
    replies = Range(
        low=0 if is_free else num_rows * (1 + len(others)),
        likely=num_requests * min(mean, config.max_new_tokens),
        most=num_requests * config.max_new_tokens,
    )
    notes.append(
        f"replies are reckoned as long as {len(came):,} that are in {ctx.run.judgments}"
        if len(came) >= FEWEST_ANSWERS
        else f"a reply of one or two sentences is reckoned as {REPLY_TOKENS} tokens"
    )
    notes.append(
        "answers are reckoned as long as the known ones; equal answers are not asked about"
    )
    return Forecast(
        num_records=num_rows,
        num_looked_at=len(looked_at),
        num_requests=num_requests,
        prompt_tokens=prompts,
        answer_tokens=replies,
        cost=_cost(config, ref, prompts, replies, notes),
        seconds=seconds_of(config, num_requests, prompts, replies, notes, "judge"),
        notes=tuple(notes),
    )


def _others(ctx: Context, config: JudgeConfig) -> list[str]:
    """The rows that the student is judged against."""
    settings = ctx.config.evaluate
    if config.against is not None:
        return list(config.against)
    untouched = ["untouched"] if "untouched" in settings.baselines else []
    return [*(["teacher"] if settings.teacher else []), *untouched]


def _question(turn: Record, how: str, config: JudgeConfig, size: Sizer, longest: int) -> Size:
    """Tokens of one question: with next to no answers, with known ones, with the longest ones."""
    references = (turn.reference,) if turn.reference else ()

    def of(text: str) -> Size:
        one = Sample(record_id=turn.id, prompt=turn.messages, references=references, text=text)
        told = {"criteria": config.criteria, "show_reference": config.show_reference}
        if how == "rubric":
            return size(answer_records([one], **told)[0][1].messages)
        two = one.model_copy(update={"text": f"{text} b"})
        return size(pair_records([Pair(one, two)], **told)[0][2].messages)

    short = of("a")
    most = short.most + longest * (2 if how == "pairwise" else 1)
    return Size(short.low, min(of(turn.reference or "a").likely, most), most)


def _cost(
    config: JudgeConfig, ref: ModelRef, prompts: Range, replies: Range, notes: list[str]
) -> Range | None:
    price = config.price or ref.price
    if price is None:
        why = "the judge's price is not known; set evaluate.judge.price to see the cost"
        notes.append(why if ref.kind == "endpoint" else "a judge on this machine has no price")
        return None
    if config.max_cost is not None:
        notes.append(f"evaluate.judge.max_cost stops the judge at {config.max_cost:g}")

    return priced(price, prompts, replies)
