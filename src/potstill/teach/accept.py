"""Sorts the teacher's answers into records to learn from and rejections with reasons.

    records with answers -> checks, one answer at a time -> choice among the answers to one
    prompt -> checks of the set (duplicates, contamination, quotas) -> accepted or rejected

Each answer ends on one side. Rows pass one by one: nothing here grows with their number.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from potstill.config import GenerationConfig
from potstill.protocols import Check, Task
from potstill.tasks.conversation import with_answers
from potstill.teach.checks import first_fault
from potstill.teach.choose import agreed, choose
from potstill.teach.isolated import CheckPool, Verdict
from potstill.teach.prompts import join_reasoning
from potstill.types import Record, Rejection, Response

SetCheck = Callable[[Record], Rejection | None]
"""Looks at an accepted record beside those accepted before it."""


class Outcome(NamedTuple):
    """What became of the answers to one record."""

    accepted: list[Record]
    rejected: list[Rejection]


@dataclass
class _Answer:
    """One sample of a record on its way through the checks."""

    sample: int
    turns: Mapping[int, Response]
    verdict: Verdict | Future[Verdict]


def accept(
    rows: Iterable[tuple[Record, Sequence[Response]]],
    task: Task,
    *,
    checks: Sequence[Check] = (),
    pool: CheckPool | None = None,
    set_checks: Sequence[SetCheck] = (),
    config: GenerationConfig | None = None,
) -> Iterator[Outcome]:
    """Yields what became of each record's answers, in the order of the records.

    An accepted record has the teacher's answer as its reference and the teacher's earlier
    turns in its messages; the known answer, if there was one, is in `metadata["gold"]`. A
    conversation is accepted when all its turns are. Further samples of a record are records
    of their own, named ID#1, ID#2 ...

    Args:
        rows: Each record with the responses to it, in any order. Of two outcomes of one
            request the later one counts; a record without responses is passed over.
        checks: Run in this process, before those of the pool.
        pool: Runs checks that may hang or crash; sees only what `checks` let through.
        set_checks: Run in order on what is accepted. The next one sees only what the one
            before let through.
        config: Says whether the student learns the reasoning too, and which of several
            answers to one prompt it learns.
    """
    config = config or GenerationConfig()
    waiting: deque[tuple[Record, list[_Answer]]] = deque()
    ahead = pool.num_ahead if pool else 0
    for record, responses in rows:
        waiting.append((record, list(_begun(record, responses, task, checks, pool))))
        if len(waiting) > ahead:
            yield _ended(*waiting.popleft(), task, set_checks, config)
    while waiting:
        yield _ended(*waiting.popleft(), task, set_checks, config)


def accepted_id(record: Record, sample: int) -> str:
    """The id of an accepted answer: the record's own, or a further sample's."""
    return f"{record.id}#{sample}" if sample else record.id


def check_responses(
    records: Iterable[Record],
    responses: Iterable[Response],
    checks: Sequence[Check],
    task: Task,
    *,
    set_checks: Sequence[SetCheck] = (),
    config: GenerationConfig | None = None,
) -> tuple[list[Record], list[Rejection]]:
    """`accept` for rows that fit into memory: (accepted, rejected)."""
    by_record: dict[str, list[Response]] = {}
    for response in responses:
        by_record.setdefault(response.record_id, []).append(response)
    rows = ((record, by_record.get(record.id, [])) for record in records)
    found = list(accept(rows, task, checks=checks, set_checks=set_checks, config=config))
    accepted = itertools.chain.from_iterable(outcome.accepted for outcome in found)
    rejected = itertools.chain.from_iterable(outcome.rejected for outcome in found)
    return list(accepted), list(rejected)


def _begun(
    record: Record,
    responses: Sequence[Response],
    task: Task,
    checks: Sequence[Check],
    pool: CheckPool | None,
) -> Iterator[_Answer]:
    samples: dict[int, dict[int, Response]] = {}
    for response in responses:
        samples.setdefault(response.sample, {})[response.turn] = response
    prompts = task.turns(record)
    for sample, turns in sorted(samples.items()):
        fault = first_fault(prompts, turns, checks)
        if fault is None and pool is not None:
            yield _Answer(sample, turns, pool.submit(record, turns))
        else:
            yield _Answer(sample, turns, Verdict(fault))


def _ended(
    record: Record,
    answers: Sequence[_Answer],
    task: Task,
    set_checks: Sequence[SetCheck],
    config: GenerationConfig,
) -> Outcome:
    prompts = task.turns(record)
    rejected: list[Rejection] = []
    passed: list[tuple[int, list[Response]]] = []
    scores: dict[int, float] = {}
    for answer in answers:
        verdict = answer.verdict
        verdict = verdict.result() if isinstance(verdict, Future) else verdict
        if verdict.rejection is not None:
            update = {"record_id": record.id, "sample": answer.sample}
            rejected.append(verdict.rejection.model_copy(update=update))
            continue
        passed.append((answer.sample, [answer.turns[turn] for turn in range(len(prompts))]))
        if verdict.score is not None:
            scores[answer.sample] = verdict.score
    if config.teachers == "vote":
        passed, left = agreed(prompts[-1], passed, task, config.min_agreement)
    else:
        passed, left = choose(prompts[-1], passed, scores, task, config.choose)
    rejected += left
    accepted = []
    for sample, responses in passed:
        found = _accepted(record, prompts, responses, sample, config)
        faults = (check(found) for check in set_checks)
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None:
            accepted.append(found)
        else:
            rejected.append(fault.model_copy(update={"record_id": record.id, "sample": sample}))
    return Outcome(accepted, rejected)


def _accepted(
    record: Record,
    prompts: Sequence[Record],
    answers: Sequence[Response],
    sample: int,
    config: GenerationConfig,
) -> Record:
    learns_reasoning = config.reasoning == "reasoning"

    def text_of(response: Response) -> str:
        text = response.text.strip()
        return join_reasoning(response.reasoning, text) if learns_reasoning else text

    texts = [text_of(response) for response in answers]
    last = with_answers(prompts, len(prompts) - 1, texts)
    metadata = {**record.metadata, "model": answers[-1].model}
    if answers[-1].teacher:
        metadata["teacher"] = answers[-1].teacher
    if record.reference is not None:
        metadata["gold"] = record.reference
    if any(response.reasoning for response in answers):
        metadata["reasoning"] = answers[-1].reasoning
    elif config.reasoning == "both":
        metadata.pop("reasoning", None)  # a column of the user's is not how the teacher got there
    if sample:
        metadata["record_id"] = record.id
    return record.model_copy(
        update={
            "id": accepted_id(record, sample),
            "messages": last.messages,
            "reference": texts[-1],
            "metadata": metadata,
        }
    )
