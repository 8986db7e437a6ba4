"""What asking the teacher will take, before it is asked: requests, tokens, money and time.

What training will take is in `estimate_training`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from potstill.config import PriceConfig, TeacherConfig
from potstill.models.catalog import ModelRef
from potstill.models.several import labels_of, route
from potstill.pipeline.context import Context
from potstill.pipeline.data import load, split
from potstill.pipeline.estimate_training import TrainingForecast, estimate_training
from potstill.pipeline.preflight import ref_of
from potstill.rundir import JsonLines, LedgerDir, RunDir
from potstill.teach.outcomes import kept_responses
from potstill.teach.prompts import teacher_prompt
from potstill.types import Message, Noun, Record

MOST_ROWS = 200
"""Records that are looked at; the others are taken to be like them."""

_ABOUT = {
    "route": "each record is reckoned for the teacher whose rule holds for it",
    "fallback": "likely is what the first teacher takes alone, most what all of them take that "
    "are asked every prompt; requests are the first one's",
    "vote": "every teacher is asked every prompt",
}

_MOST_ANSWERS = 1000
FEWEST_ANSWERS = 10


class Range(Noun):
    """What something may come to."""

    low: float
    likely: float | None = None
    """None where nothing is known that would say it."""

    most: float


class Forecast(Noun):
    """What the teacher's answers will take, those that are there already not subtracted."""

    num_records: int
    num_looked_at: int
    num_requests: int
    """Records times turns times samples; scaled up where not all records were looked at."""

    prompt_tokens: Range
    answer_tokens: Range
    cost: Range | None = None
    """In the currency of the price; None where no price is known, or nobody charges one."""

    seconds: Range | None = None
    """What the rate limits of the config alone take; None without them."""

    notes: tuple[str, ...] = ()
    """How it was reckoned, and what could not be known."""

    judge: Forecast | None = None
    """What judging will take; None without a judge or a test set."""

    training: TrainingForecast | None = None
    """What training will take; None where it was not asked for, or the weights are not here."""


class Size(NamedTuple):
    """Tokens of a text."""

    low: float
    likely: float
    most: float


Sizer = Callable[[Sequence[Message]], Size]


def estimate(ctx: Context, *, training: bool = False) -> Forecast:
    """Reads and splits the data in a folder that is gone afterwards; asks nobody.

    Args:
        training: Whether to train for 20 steps as well, to see what all of them take.

    Raises:
        ConfigError, DataError: As loading and splitting do.
        TrainError: If the 20 steps failed.
    """
    from potstill.pipeline.estimate_judge import estimate_judge  # it is reckoned with what is here

    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        run = RunDir(folder)
        reading = dataclasses.replace(ctx, run=run, on_event=None)
        load(reading)
        split(reading)
        parts = [JsonLines(path, Record) for path in (run.train, run.validation)]
        num_records = sum(part.num_lines() for part in parts)
        every = math.ceil(num_records / MOST_ROWS)
        sample = list(itertools.islice(itertools.chain(*parts), 0, None, every))
        found = _forecast(ctx, num_records, sample)
        judged = estimate_judge(ctx, list(JsonLines(run.test, Record)) if run.test.exists() else [])
        found = found.model_copy(update={"judge": judged})
        return _with_training(ctx, found, run) if training else found


def _with_training(ctx: Context, found: Forecast, records: RunDir) -> Forecast:
    likely = found.answer_tokens.likely
    mean = likely / found.num_requests if likely and found.num_requests else None
    known = estimate_training(ctx, records, answer_tokens=mean)
    if isinstance(known, str):
        return found.model_copy(update={"notes": (*found.notes, known)})
    return found.model_copy(update={"training": known})


def _forecast(ctx: Context, num_records: int, sample: Sequence[Record]) -> Forecast:
    config = ctx.config
    if config.data.logged_answers == "reuse":
        nothing = Range(low=0, likely=0, most=0)
        return Forecast(
            num_records=num_records,
            num_looked_at=0,
            num_requests=0,
            prompt_tokens=nothing,
            answer_tokens=nothing,
            notes=("data.logged_answers: reuse asks no teacher",),
        )
    several = len(config.teachers) > 1
    notes = [_ABOUT[config.generation.teachers]] if several else []
    parts: list[Forecast] = []
    is_known = True
    for number, teacher in enumerate(config.teachers):
        label = f"{labels_of(config.teachers)[number]}: " if several else ""
        some = [record for record in sample if _is_asked(ctx, number, record)]
        scale = num_records / len(sample) * config.generation.num_responses
        if not some:
            continue
        one = _of_one(ctx, teacher, some, scale)
        is_known = is_known and (one.cost is not None or ref_of(ctx, teacher).kind != "endpoint")
        if number and config.generation.teachers == "fallback":
            one = _in_reserve(one)
        notes += [label + note for note in one.notes]
        parts.append(one)
    if len(sample) < num_records:
        notes.append(f"{len(sample):,} of {num_records:,} records were looked at")
    costs = [part.cost for part in parts if part.cost is not None]
    return Forecast(
        num_records=num_records,
        num_looked_at=len(sample),
        num_requests=sum(part.num_requests for part in parts),
        prompt_tokens=_sum([part.prompt_tokens for part in parts]),
        answer_tokens=_sum([part.answer_tokens for part in parts]),
        cost=_sum(costs) if costs and is_known else None,
        seconds=_longest([part.seconds for part in parts if part.seconds]),
        notes=tuple(notes),
    )


def _is_asked(ctx: Context, number: int, record: Record) -> bool:
    """Whether a teacher may be asked a record."""
    rules = [teacher.when for teacher in ctx.config.teachers]
    return ctx.config.generation.teachers != "route" or route(record, rules) == number


def _in_reserve(one: Forecast) -> Forecast:
    """What a teacher takes that is asked only where those before it fail: perhaps nothing."""

    def perhaps(found: Range | None) -> Range | None:
        return found and Range(low=0, likely=0, most=found.most)

    names = ("prompt_tokens", "answer_tokens", "cost", "seconds")
    return one.model_copy(
        update={"num_requests": 0, **{name: perhaps(getattr(one, name)) for name in names}}
    )


def _sum(ranges: Sequence[Range]) -> Range:
    likely = [one.likely for one in ranges if one.likely is not None]
    return Range(
        low=sum(one.low for one in ranges),
        likely=sum(likely) if len(likely) == len(ranges) else None,
        most=sum(one.most for one in ranges),
    )


def _longest(ranges: Sequence[Range]) -> Range | None:
    """Of times that pass together; None where none is known."""
    if not ranges:
        return None
    likely = [one.likely for one in ranges if one.likely is not None]
    return Range(
        low=max(one.low for one in ranges),
        likely=max(likely) if len(likely) == len(ranges) else None,
        most=max(one.most for one in ranges),
    )


def _of_one(
    ctx: Context, teacher: TeacherConfig, sample: Sequence[Record], scale: float
) -> Forecast:
    """What one teacher will take for so many records like these."""
    generation, ref, notes = ctx.config.generation, ref_of(ctx, teacher), []
    size = sizer(ref, notes)
    prompts = [
        (place, size(teacher_prompt(turn, generation).messages))
        for record in sample
        for place, turn in enumerate(ctx.task.turns(record))
    ]
    if any(place for place, _ in prompts):
        notes.append("later turns are reckoned with the given answers; the teacher sees its own")
    # The teacher's own earlier answers may each be as long as an answer may be.
    most = sum(found.most + place * generation.max_new_tokens for place, found in prompts)
    asked = Range(
        low=scale * sum(found.low for _, found in prompts),
        likely=scale * sum(found.likely for _, found in prompts),
        most=scale * most,
    )
    num_requests = scale * len(prompts)
    low, likely = _answer_tokens(ctx, sample, size, notes)
    limit = generation.max_new_tokens
    answers = Range(
        low=num_requests * min(low, limit),
        likely=None if likely is None else num_requests * min(likely, limit),
        most=num_requests * limit,
    )
    return Forecast(
        num_records=len(sample),
        num_looked_at=len(sample),
        num_requests=round(num_requests),
        prompt_tokens=asked,
        answer_tokens=answers,
        cost=_cost(teacher, ref, asked, answers, notes),
        seconds=seconds_of(teacher, num_requests, asked, answers, notes),
        notes=tuple(notes),
    )


def sizer(ref: ModelRef, notes: list[str], who: str = "teacher") -> Sizer:
    """Counts the tokens of messages: with a model's own tokenizer where it is here."""
    folder = Path(ref.source)
    if ref.kind == "huggingface" and (folder / "tokenizer_config.json").exists():
        from potstill.data.render import render_prompt
        from potstill.models.weights import load_tokenizer

        tokenizer = load_tokenizer(ref)
        notes.append(f"prompts are counted with the {who}'s own tokenizer")

        def count(messages: Sequence[Message]) -> Size:
            return Size(*[float(len(render_prompt(tokenizer, messages)))] * 3)

        return count
    notes.append(
        f"the {who}'s tokenizer is not here: a token is reckoned as 6, 4 and 1 bytes; more than "
        "one a byte no tokenizer makes"
    )

    def reckon(messages: Sequence[Message]) -> Size:
        num_bytes = sum(len(m.content.encode("utf-8", "replace")) for m in messages)
        return Size(
            num_bytes / 6, num_bytes / 4 + 4 * len(messages), num_bytes + 16 * len(messages)
        )

    return reckon


def _answer_tokens(
    ctx: Context,
    sample: Sequence[Record],
    size: Sizer,
    notes: list[str],
) -> tuple[float, float | None]:
    """Tokens of one answer, low and likely: from answers that came, else from known ones."""
    came = lengths_in_ledger(ctx.run.responses)
    if len(came) >= FEWEST_ANSWERS:
        mean = sum(came) / len(came)
        spread = math.sqrt(sum((n - mean) ** 2 for n in came) / (len(came) - 1) / len(came))
        notes.append(
            f"answers are reckoned as long as {len(came):,} that are in {ctx.run.responses}; what "
            f"is there already is asked again only where it no longer fits, and is not subtracted"
        )
        return max(1.0, mean - 2 * spread), mean
    known = [turn.reference for r in sample for turn in ctx.task.turns(r) if turn.reference]
    if known and ctx.config.generation.prompting == "plain":
        notes.append("answers are reckoned as long as the known ones; the teacher may say more")
        sizes = [size((Message(role="user", content=text),)).likely for text in known]
        return 1.0, sum(sizes) / len(sizes)
    notes.append(
        "how long answers will be is not known, so nothing is called likely; the answers of a "
        "pilot tell (potstill teach, and stop it after some answers)"
    )
    return 1.0, None


def lengths_in_ledger(folder: Path) -> list[int]:
    """Tokens of the first answers that a ledger keeps; reads beside a run that goes on."""
    lengths = (
        response.num_new_tokens
        for response in kept_responses(LedgerDir(folder))
        if response.finish_reason != "error" and response.num_new_tokens
    )
    return list(itertools.islice(lengths, _MOST_ANSWERS))


def _cost(
    teacher: TeacherConfig, ref: ModelRef, asked: Range, answers: Range, notes: list[str]
) -> Range | None:
    price = teacher.price or ref.price
    if price is None:
        why = "the teacher's price is not known; set teacher.price to see the cost"
        notes.append(why if ref.kind == "endpoint" else "a teacher on this machine has no price")
        return None

    notes.append("retries, an evaluation of the teacher and tokens of hidden thoughts cost extra")
    return priced(price, asked, answers)


def priced(price: PriceConfig, asked: Range, answers: Range) -> Range:
    """What so many tokens of prompts and of answers cost."""

    def money(num_prompt: float, num_answer: float) -> float:
        return (num_prompt * price.input + num_answer * price.output) / 1e6

    is_known = asked.likely is not None and answers.likely is not None
    return Range(
        low=money(asked.low, answers.low),
        likely=money(asked.likely, answers.likely) if is_known else None,
        most=money(asked.most, answers.most),
    )


def seconds_of(
    teacher: TeacherConfig,
    num_requests: float,
    asked: Range,
    answers: Range,
    notes: list[str],
    who: str = "teacher",
) -> Range | None:
    """What the rate limits of a place alone take; None without them."""
    if not (teacher.requests_per_minute or teacher.tokens_per_minute):
        notes.append(f"how fast the {who} answers is not known")
        return None

    def minutes(num_tokens: float) -> float:
        by_requests = num_requests / (teacher.requests_per_minute or math.inf)
        return max(by_requests, num_tokens / (teacher.tokens_per_minute or math.inf))

    notes.append("the time is what the rate limits alone take")
    likely = None
    if asked.likely is not None and answers.likely is not None:
        likely = 60 * minutes(asked.likely + answers.likely)
    return Range(
        low=60 * minutes(asked.low + answers.low),
        likely=likely,
        most=60 * minutes(asked.most + answers.most),
    )
