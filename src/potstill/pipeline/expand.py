"""Stage expand: new training prompts in the style of the real ones, written by the teacher."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from potstill.config import DataGenerationConfig, GenerationConfig
from potstill.data.scratch import scratch
from potstill.errors import DataError, TeacherError
from potstill.pipeline.check import reasons_text, test_records, typical_prompts
from potstill.pipeline.context import Context, wait
from potstill.pipeline.preflight import privacy_key, teacher_key
from potstill.pipeline.teach import open_teacher
from potstill.protocols import ChatModel
from potstill.rundir import iter_jsonl, write_jsonl
from potstill.tasks import get_task
from potstill.teach.contamination import NotContaminated
from potstill.teach.doubles import duplicate_checks
from potstill.teach.expand import LONGEST_SEED, Seeds, new_records
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Record, Rejection, Response

FIRST_REQUESTS = 4
"""Requests of the first round: where none of them gives a prompt, no more are sent."""

MOST_NEEDED = 3
"""Requests at most, in what would do if every prompt were of use; see `max_requests`."""

MOST_BARREN = 3
"""Rounds without a new prompt, one after the other, of which the last is the end."""

_DUPLICATES = ("no_duplicates", "no_near_duplicates")

Screen = Callable[[Record], Rejection | None]


def expand(ctx: Context) -> None:
    """Lets the teacher write prompts, where the config wants that; they join the training side.

    A new prompt must not be (nearly) equal to a training prompt, to another new one, or to one
    of validation or any test set.

    Raises:
        TeacherError: If no prompt can be read in any of the first replies.
        DataError: If every training prompt is too long to be an example.
    """
    config, run = ctx.config, ctx.run
    settings = config.data_generation
    if settings is None:
        return
    inputs = (
        settings,
        _sampled(config.generation, settings),
        config.task,
        *teacher_key(ctx),
        *privacy_key(ctx),
        run.train,
        run.validation,
        run.test,
        *config.data.keep_out,
    )

    def work() -> dict[str, Any]:
        return wait(_expand(ctx, settings))

    ctx.stage("expand", inputs, work)


async def _expand(ctx: Context, config: DataGenerationConfig) -> dict[str, Any]:
    run = ctx.run
    seeds = Seeds(iter_jsonl(run.train, Record), seed=ctx.config.generation.seed)
    if not len(seeds):
        raise DataError(
            f"all {seeds.num_records:,} training prompts are longer than {LONGEST_SEED:,} "
            f"characters, too long to be examples; leave data_generation out"
        )
    wanted = config.num_prompts or seeds.num_records
    teacher = open_teacher(ctx)
    try:
        with _screen(ctx) as screen:
            writer = _Writer(ctx, teacher, config, seeds, wanted, screen)
            await writer.write()
    finally:
        await teacher.close()
    write_jsonl(run.synthetic, writer.kept)
    write_jsonl(run.unused_prompts, writer.dropped)
    write_jsonl(run.prompts, itertools.chain(iter_jsonl(run.train, Record), writer.kept))
    num_kept, reasons = len(writer.kept), Counter(one.reason for one in writer.dropped)
    share = seeds.num_records / (seeds.num_records + num_kept)
    text = f"{num_kept:,} new prompts, {share:.0%} of the training prompts are real"
    if reasons:
        text += f"; not used: {reasons_text(reasons)}"
    if num_kept < wanted:
        ctx.tell("expand", "note", f"{num_kept:,} of {wanted:,} wanted prompts: {writer.end}")
    return {
        "num_real": seeds.num_records,
        "num_new": num_kept,
        "share_real": round(share, 4),
        "num_requests": writer.num_requests,
        "reasons": dict(reasons.most_common()),
        "cost": writer.cost,
        "text": text,
    }


class _Writer:
    """Asks for prompts round by round, as many as are missing, and keeps the new ones."""

    def __init__(
        self,
        ctx: Context,
        teacher: ChatModel,
        config: DataGenerationConfig,
        seeds: Seeds,
        wanted: int,
        screen: Screen,
    ):
        self._ctx, self._teacher, self._config, self._seeds = ctx, teacher, config, seeds
        self._wanted, self._screen = wanted, screen
        enough = math.ceil(MOST_NEEDED * wanted / config.num_each)
        self._most = config.max_requests or max(FIRST_REQUESTS, enough)
        self.num_requests = self._num_rounds = 0
        self.cost = 0.0
        self.kept: list[Record] = []
        self.dropped: list[Rejection] = []
        self.end = ""
        """Why there are not more."""

    async def write(self) -> None:
        """Ends with all that were wanted, or when no more are to be had."""
        num_barren = 0
        while len(self.kept) < self._wanted:
            if self.num_requests == self._most:
                self.end = f"data_generation.max_requests = {self._most:,} were sent"
                return
            num_before = len(self.kept)
            num_read = self._take(await self._ask())
            if not num_read and not self.kept:
                raise TeacherError(
                    f"none of the first {self.num_requests} replies holds a new prompt "
                    f"({self._told()}); change data_generation or the teacher"
                )
            num_barren = num_barren + 1 if len(self.kept) == num_before else 0
            if num_barren == MOST_BARREN:
                self.end = "the last replies held no new one"
                return

    async def _ask(self) -> list[tuple[int, Response]]:
        """The replies to the next requests."""
        ctx, first = self._ctx, self.num_requests
        needed = math.ceil((self._wanted - len(self.kept)) / self._config.num_each)
        more = needed if first else min(needed, FIRST_REQUESTS)
        numbers = range(first, min(self._most, first + more))
        self.num_requests = numbers.stop
        self._num_rounds += 1
        part = "prompts" if self._num_rounds == 1 else f"prompts, round {self._num_rounds}"
        requests = [self._seeds.request(number, self._config) for number in numbers]
        found = await generate(
            self._teacher,
            requests,
            ctx.run.responses,
            task=get_task("conversation"),  # a request is a conversation of one turn
            config=_sampled(ctx.config.generation, self._config),
            part=part,
            on_progress=ctx.progress("expand"),
            on_asking=ctx.figures("expand"),
        )
        self.cost += found.cost or 0.0
        with Ledger(ctx.run.responses) as ledger:
            rows = list(ledger.with_records(part, requests))
        pairs = zip(numbers, rows, strict=True)
        return [(number, response) for number, (_, some) in pairs for response in some]

    def _take(self, replies: list[tuple[int, Response]]) -> int:
        """Keeps what is new, up to the number wanted; returns how many could be read."""
        num_read = 0
        for number, response in replies:
            written = new_records(response, self._seeds.examples(number, self._config))
            self.dropped += written.rejected
            num_read += len(written.records)
            for record in written.records:
                if len(self.kept) == self._wanted:
                    return num_read
                rejection = self._screen(record)
                if rejection is None:
                    self.kept.append(record)
                else:
                    self.dropped.append(rejection)
        return num_read

    def _told(self) -> str:
        first = self.dropped[0] if self.dropped else None
        return f"{first.reason}: {first.detail or 'empty'}" if first else "no reply came"


def _sampled(generation: GenerationConfig, config: DataGenerationConfig) -> GenerationConfig:
    """How prompts are asked for; a reply that fails is only one reply less."""
    update = {
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
        "prompting": "plain",
        "num_responses": 1,
        "stop": (),
        "logprobs": 0,
        "pilot": 0,
        "min_success_ratio": 0.0,
        "max_failures": None,
    }
    return generation.model_copy(update=update)


@contextlib.contextmanager
def _screen(ctx: Context) -> Iterator[Screen]:
    """Says why a prompt is not new; it knows those it was asked about before."""
    run, task = ctx.run, ctx.task

    def asked(record: Record) -> Record:
        first = task.turns(record)[0]
        turns = tuple(message for message in first.messages if message.role != "system")
        return first.model_copy(update={"messages": turns, "reference": None})

    typical = typical_prompts(ctx)
    with scratch(run.data) as own_database, scratch(run.data) as held_database:
        own = duplicate_checks(_DUPLICATES, own_database, task, typical)
        held_out = duplicate_checks(_DUPLICATES, held_database, task, typical)
        for record in iter_jsonl(run.train, Record):
            _learn(own, asked(record))
        for record in itertools.chain(test_records(ctx), iter_jsonl(run.validation, Record)):
            _learn(held_out, asked(record))
        contaminated = NotContaminated(held_database, test_records(ctx), typical)

        def fault(record: Record) -> Rejection | None:
            prompt = asked(record)
            for check in own:
                if (found := check(prompt)) is not None:
                    return found
            for check in held_out:
                if (found := check(prompt)) is not None:
                    update = {"reason": "leak", "detail": f"{found.detail}, which is held out"}
                    return found.model_copy(update=update)
            return contaminated(prompt) if contaminated.num_test_rows else None

        yield fault


def _learn(checks: list[Screen], record: Record) -> None:
    """A check remembers what it lets through."""
    for check in checks:
        check(record)
