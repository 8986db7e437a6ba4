"""The work of stage check: which of the teacher's answers the student learns from."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from potstill.data.scratch import scratch
from potstill.errors import DataError
from potstill.pipeline.context import Context
from potstill.pipeline.data import records_of, training_prompts
from potstill.protocols import resolve
from potstill.rundir import iter_jsonl, json_line, whole_file, write_text
from potstill.teach.accept import Outcome, SetCheck, accept
from potstill.teach.checks import build_checks, divided
from potstill.teach.contamination import NotContaminated
from potstill.teach.doubles import duplicate_checks
from potstill.teach.isolated import CheckPool
from potstill.teach.quality import LabelQuota, Quality
from potstill.teach.spending import Bill
from potstill.types import Record, Response

_NUM_TYPICAL = 2000
"""Prompts that tell what many rows share: instructions and other phrases of a template."""

_TELL_EVERY = 256

Rows = Iterable[tuple[Record, list[Response]]]
WithAnswers = Callable[[str, Iterable[Record]], Rows]
Judged = Callable[[Rows, list[SetCheck]], Iterator[Outcome]]


def sort_answers(ctx: Context, with_answers: WithAnswers) -> dict[str, Any]:
    """Writes accepted.jsonl, rejected.jsonl and quality.json; returns facts for the mark.

    Args:
        with_answers: Brings the records of `train` or `validation` together with the responses
            to each, one record at a time.

    Raises:
        DataError: If nothing is left to train on.
    """
    run = ctx.run
    places = {
        "train": (training_prompts(ctx), run.accepted),
        "validation": (run.validation, run.accepted_validation),
    }
    quality = Quality(ctx.task)
    counts: Counter[str] = Counter({f"num_{split}": 0 for split in places})
    reasons: Counter[str] = Counter()
    by_teacher: Counter[str] = Counter()
    bill = Bill()
    tell = ctx.progress("check")
    with judges(ctx) as judged, scratch(run.data) as database, whole_file(run.rejected) as dropped:
        set_checks, facts = _set_checks(ctx, database)
        for split, (asked, out) in places.items():
            own = _with_quota(ctx, set_checks) if split == "train" else set_checks
            rows = _billed(with_answers(split, iter_jsonl(asked, Record)), own, judged, bill)
            with whole_file(out) as kept:
                for number, outcome in enumerate(rows, start=1):
                    for record in outcome.accepted:
                        kept.write(json_line(record))
                        counts[f"num_{split}"] += 1
                        if len(ctx.config.teachers) > 1:
                            by_teacher[str(record.metadata.get("teacher"))] += 1
                        if split == "train":
                            quality.add(record)
                    for rejection in outcome.rejected:
                        dropped.write(json_line(rejection))
                        reasons[rejection.reason] += 1
                    if number % _TELL_EVERY == 0:
                        tell(number, None, split)
    found = {**quality.figures(), **facts}
    whole = {**counts, "rejected": dict(reasons.most_common()), **found}
    write_text(run.quality, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
    text = f"{counts.total():,} accepted, {reasons.total():,} rejected"
    if reasons:
        text += f" ({reasons_text(reasons)})"
    if not counts["num_train"]:
        raise DataError(
            f"the checks rejected every answer of the teacher ({reasons_text(reasons)}); read "
            f"{run.rejected}, and change the prompt, generation or checks"
        )
    return {
        **counts,
        "num_rejected": reasons.total(),
        "reasons": dict(reasons.most_common()),
        **({"teachers": dict(by_teacher)} if by_teacher else {}),
        "spending": bill.facts,
        "quality": found,
        "text": text,
    }


def _billed(
    rows: Rows, set_checks: list[SetCheck], judged: Judged, bill: Bill
) -> Iterator[Outcome]:
    """The outcomes of rows, each with what its answers cost put on the bill."""
    waiting: deque[list[Response]] = deque()

    def remembered() -> Rows:
        for record, responses in rows:
            waiting.append(responses)
            yield record, responses

    for outcome in judged(remembered(), set_checks):
        bill.add_sorted(waiting.popleft(), outcome.rejected)
        yield outcome


@contextlib.contextmanager
def judging(ctx: Context) -> Iterator[Callable[[Rows], Iterator[Outcome]]]:
    """Judges training rows, some at a time, as `sort_answers` will; nothing is written."""
    with judges(ctx) as judged, scratch(ctx.run.data) as database:
        set_checks = _with_quota(ctx, _set_checks(ctx, database)[0])
        yield lambda rows: judged(rows, set_checks)


def reasons_text(reasons: Counter[str]) -> str:
    """The five most frequent reasons with their counts."""
    return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in reasons.most_common(5))


@contextlib.contextmanager
def judges(ctx: Context) -> Iterator[Judged]:
    """`accept` with the checks of the config, and the processes that some of them need."""
    config = ctx.config
    generation = config.generation
    here, apart = divided(config.checks, ctx.task)
    checks = build_checks(here, ctx.task, config=generation)
    pool: CheckPool | None = None
    with contextlib.ExitStack() as stack:
        if apart or generation.best_by:
            remembers = any(inspect.isclass(resolve("check", name)) for name in apart)
            pool = stack.enter_context(
                CheckPool(
                    apart,
                    config.task,
                    generation,
                    config.check_limits,
                    best_by=generation.best_by,
                    one_worker=remembers,
                )
            )

        def judged(rows: Rows, set_checks: list[SetCheck]) -> Iterator[Outcome]:
            return accept(
                rows, ctx.task, checks=checks, pool=pool, set_checks=set_checks, config=generation
            )

        yield judged


def _with_quota(ctx: Context, set_checks: list[SetCheck]) -> list[SetCheck]:
    quota = ctx.config.data.label_quota
    return set_checks if quota is None else [*set_checks, LabelQuota(ctx.task, quota)]


def _set_checks(
    ctx: Context, database: sqlite3.Connection
) -> tuple[list[SetCheck], dict[str, Any]]:
    """The checks of a row beside others, and facts on what they compare with."""
    config, task = ctx.config, ctx.task
    typical = typical_prompts(ctx)
    test = NotContaminated(
        database,
        test_records(ctx),
        typical,
        with_reasoning=config.generation.reasoning == "both",
    )
    checks: list[SetCheck] = [test] if test.num_test_rows else []
    checks += duplicate_checks(config.checks, database, task, typical)
    return checks, {"contamination": test.facts()}


def typical_prompts(ctx: Context) -> list[Record]:
    """Training prompts, enough to tell what many share."""
    return list(itertools.islice(iter_jsonl(ctx.run.train, Record), _NUM_TYPICAL))


def test_records(ctx: Context) -> Iterator[Record]:
    """The records of every declared test set: the run's own and `data.keep_out`."""
    yield from iter_jsonl(ctx.run.test, Record)
    for path in ctx.config.data.keep_out:
        yield from records_of(ctx, path)
