"""Asking until enough training rows pass their checks: rounds of asking and of checking.

Each round asks as many answers as rows are missing, so that none too many is paid for. Nothing
of the plan is kept but the answers themselves: the same command finds every round again from
them, and asks for what is not there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from potstill.config import OPEN_TASKS, TASKS, GenerationConfig
from potstill.pipeline.check import Rows, judging
from potstill.pipeline.context import Context
from potstill.pipeline.data import training_prompts
from potstill.pipeline.preflight import privacy_key
from potstill.protocols import ChatModel
from potstill.rundir import JsonLines, RunDir, content_hash, iter_jsonl, write_jsonl
from potstill.teach.generate import Counts, generate
from potstill.teach.ledger import Ledger
from potstill.types import Record

MOST_SAMPLES = 64
"""Answers to one prompt at most."""

_HOPELESS = 16
"""A first round of so many answers, none of them accepted, is the last one."""


class Plan:
    """Which prompts are asked next: each once, then again, those without an accepted row first.

    Args:
        most_samples: How often one prompt is asked at most.
        again: Whether prompts that have an accepted row are asked for more of them.
    """

    def __init__(self, num_prompts: int, *, most_samples: int, again: bool):
        self._num_samples = bytearray(num_prompts)
        self._has_row = bytearray(num_prompts)
        self._most_samples, self._again = most_samples, again
        self._sample = 0

    def next(self, most: int) -> tuple[list[int], int]:
        """(prompts in ascending order, number of the sample); none where all are asked.

        No prompt is asked a time more before all others have been asked as often.
        """
        while self._sample < self._most_samples:
            chosen = sorted(itertools.islice(self._open(), most))
            if chosen:
                for number in chosen:
                    self._num_samples[number] += 1
                return chosen, self._sample
            self._sample += 1
        return [], 0

    def accepted(self, number: int) -> None:
        """A prompt has a row now."""
        self._has_row[number] = 1

    def _open(self) -> Iterator[int]:
        for has_row in (0, 1) if self._again else (0,):
            for number, num_samples in enumerate(self._num_samples):
                if num_samples == self._sample and self._has_row[number] == has_row:
                    yield number


async def ask_until_enough(
    ctx: Context, teacher: ChatModel, config: GenerationConfig
) -> tuple[Counts, dict[str, Any]]:
    """Asks training prompts until config.num_accepted rows pass the checks.

    Ends also when config.most_candidates answers were asked for, when no prompt is left to ask,
    or when nothing at all was accepted of a first round.

    Returns:
        What became of the requests of all rounds, and facts: `wanted`, `found` and `rounds`.

    Raises:
        TeacherError, ConfigError, PotstillError: As `generate`; bounds on failures hold for
            all rounds together.
    """
    prompts = JsonLines(training_prompts(ctx), Record)
    plan = _plan(ctx, prompts.num_lines())
    wanted, left, num_rows = config.num_accepted or 0, config.most_candidates, 0
    total, rounds = Counts(), []
    with judging(ctx) as judged:
        while num_rows < wanted:
            numbers, sample = plan.next(min(wanted - num_rows, left))
            if not numbers:
                break
            left -= len(numbers)
            path = ctx.run.round(len(rounds) + 1)
            write_jsonl(path, _chosen(prompts, numbers))
            found = await _ask(ctx, teacher, config, path, sample, total, num_rows)
            num_before = num_rows
            with Ledger(ctx.run.responses) as ledger:
                rows = ledger.with_records(_part(len(rounds) + 1), iter_jsonl(path, Record))
                for number, outcome in zip(numbers, judged(rows), strict=True):
                    if outcome.accepted:
                        plan.accepted(number)
                    num_rows += len(outcome.accepted)
            total = _sum(total, found)
            rounds.append({"asked": len(numbers), "accepted": num_rows - num_before})
            if not num_rows and len(numbers) >= _HOPELESS:
                break
    num_asked = config.most_candidates - left
    if num_rows < wanted:
        why = "generation.max_candidates" if not left else "no prompt is left to ask again"
        why = why if num_rows else "not one passed its checks, so no more was asked"
        text = f"{num_rows:,} of {wanted:,} wanted rows after {num_asked:,} answers: {why}"
        ctx.tell("teach", "note", text)
    return total, {"wanted": wanted, "found": num_rows, "rounds": rounds}


def answered_rounds(run: RunDir, ledger: Ledger, num_rounds: int) -> Rows:
    """The prompts of all rounds with the answers to each, in the order they were asked."""
    for number in range(1, num_rounds + 1):
        yield from ledger.with_records(_part(number), iter_jsonl(run.round(number), Record))


def prompts_of(ctx: Context, records: JsonLines[Record]) -> tuple[int, str]:
    """How many prompts there are; and a hash of all their messages are made of.

    Only conversations have more than one prompt a record; these are looked at one by one.
    """
    config = ctx.config
    if config.task in TASKS and config.task != "conversation":
        answers = config.data.logged_answers
        source = content_hash(records.path, config.task, answers, *privacy_key(ctx))
        return records.num_lines(), source
    return sum(len(ctx.task.turns(record)) for record in records), ""


def _plan(ctx: Context, num_prompts: int) -> Plan:
    generation = ctx.config.generation
    # Where an answer is right or wrong, a second one to a prompt is the same row or a wrong one.
    again = ctx.config.task in OPEN_TASKS or generation.reasoning == "reasoning"
    most_samples = MOST_SAMPLES if generation.temperature else 1  # greedy ones are all the same
    return Plan(num_prompts, most_samples=most_samples, again=again)


async def _ask(
    ctx: Context,
    teacher: ChatModel,
    config: GenerationConfig,
    path: Path,
    sample: int,
    earlier: Counts,
    num_rows: int,
) -> Counts:
    """One round; only the first has a pilot."""
    records = JsonLines(path, Record)
    requested, source = prompts_of(ctx, records)
    number = int(path.stem)
    tell = ctx.progress("teach")

    def on_progress(done: int, total: int, text: str) -> None:
        so_far = f"{num_rows:,} of {config.num_accepted:,} rows"
        words = f"{so_far}, {text}" if text else so_far
        tell(earlier.requested + done, earlier.requested + total, words)

    return await generate(
        teacher,
        records,
        ctx.run.responses,
        task=ctx.task,
        config=config.model_copy(update={} if number == 1 else {"pilot": 0}),
        part=_part(number),
        requested=requested,
        source="" if sample else source,
        on_progress=on_progress,
        on_asking=ctx.figures("teach"),
        first_sample=sample,
        earlier=(earlier.requested, earlier.failed),
    )


def _part(number: int) -> str:
    """What the ledger calls the input of a round."""
    return "train" if number == 1 else f"train, round {number}"


def _chosen(prompts: JsonLines[Record], numbers: Iterable[int]) -> Iterator[Record]:
    wanted = bytearray(prompts.num_lines())
    for number in numbers:
        wanted[number] = 1
    left_out = (number for number, is_wanted in enumerate(wanted) if not is_wanted)
    return (record for _, record in prompts.without(left_out))


def _sum(a: Counts, b: Counts) -> Counts:
    """Two calls as one."""
    added = {}
    for name in Counts.model_fields:
        known = [value for each in (a, b) if (value := getattr(each, name)) is not None]
        added[name] = sum(known) if known else None
    return Counts(**added)
