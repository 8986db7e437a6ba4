"""Which of several answers to one prompt the student learns.

    all    every answer that passed its checks
    vote   one answer of those that most samples agree on (self-consistency)
    best   the answer that a function of the user's scores highest

Where several teachers vote, each has one sample, and `agreed` takes the place of this choice.

Source of the vote:
    Wang et al. (2023), "Self-consistency improves chain of thought reasoning in language
    models". arXiv:2203.11171.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from potstill.errors import ConfigError
from potstill.protocols import Task
from potstill.tasks.agreement import agreeing, same_answer
from potstill.teach.checks import short
from potstill.types import Record, Rejection, Response

Sampled = tuple[int, list[Response]]
"""A sample's number and its answers, one for each turn."""


def choose(
    prompt: Record,
    passed: Sequence[Sampled],
    scores: Mapping[int, float],
    task: Task,
    how: Literal["all", "vote", "best"],
) -> tuple[list[Sampled], list[Rejection]]:
    """(chosen, the others with reasons) of the samples that passed their checks.

    Reasons are `outvoted`, `no_majority` (two answers have the most votes) and `not_best`.
    Of equal ones the first sample is taken.

    Args:
        prompt: The last turn's; says how an answer is read.
        scores: Sample -> what `best_by` gave it; only for `best`.

    Raises:
        ConfigError: If the best is wanted and nothing was scored.
    """
    if how == "all" or not passed:
        return list(passed), []
    if how == "best":
        if not scores:
            raise ConfigError(
                "generation.choose: best is chosen by the stage check of a run, with "
                "generation.best_by; use vote or all here"
            )
        best = max(passed, key=lambda one: scores[one[0]])
        detail = f"sample {best[0]} scores {scores[best[0]]:g}"
        return _only(best, passed, "not_best", lambda one: f"{scores[one[0]]:g}, but {detail}")
    return _vote(prompt, passed, task)


def agreed(
    prompt: Record, passed: Sequence[Sampled], task: Task, fewest: int
) -> tuple[list[Sampled], list[Rejection]]:
    """(chosen, the others with reasons) of teachers' answers, each a sample that passed.

    The first teacher's of the largest group that gives one answer, where so many do. Reasons are
    `disagrees`, and `duplicate` for those that say the same as the chosen one.

    Args:
        fewest: How many must give the same answer. Two groups of one size are no agreement.
    """
    if not passed:
        return [], []
    texts = [responses[-1].text for _, responses in passed]
    groups = agreeing(prompt, texts, task)
    sizes = [len(group) for group in groups[:2]]
    said = "; ".join(f"{one[1][-1].teacher or one[0]}: {short(one[1][-1].text)}" for one in passed)
    if not groups or sizes[0] < fewest or sizes[1:] == sizes[:1]:
        detail = f"{sizes[0] if sizes else 0} agree, {fewest} must; {said}"
        return [], [_rejection(one, "disagrees", detail) for one in passed]
    winners = [passed[place] for place in groups[0]]
    return _only(winners[0], passed, "disagrees", lambda one: said, agreeing=winners)


def _vote(
    prompt: Record, passed: Sequence[Sampled], task: Task
) -> tuple[list[Sampled], list[Rejection]]:
    votes: dict[str, list[Sampled]] = {}
    for one in passed:
        votes.setdefault(same_answer(prompt, one[1][-1].text, task), []).append(one)
    ranked = sorted(votes.values(), key=len, reverse=True)
    winners = ranked[0]
    text = f"{len(winners)} of {len(passed)} say {short(winners[0][1][-1].text)!r}"
    if len(ranked) > 1 and len(ranked[1]) == len(winners):
        text += f", {len(ranked[1])} say {short(ranked[1][0][1][-1].text)!r}"
        return [], [_rejection(one, "no_majority", text) for one in passed]
    return _only(winners[0], passed, "outvoted", lambda one: text, agreeing=winners)


def _only(
    chosen: Sampled,
    passed: Sequence[Sampled],
    reason: str,
    detail: Callable[[Sampled], str],
    *,
    agreeing: Sequence[Sampled] = (),
) -> tuple[list[Sampled], list[Rejection]]:
    agreed = {sample for sample, _ in agreeing}
    rejected = [
        _rejection(one, "duplicate" if one[0] in agreed else reason, detail(one))
        for one in passed
        if one is not chosen
    ]
    return [chosen], rejected


def _rejection(one: Sampled, reason: str, detail: str) -> Rejection:
    sample, responses = one
    return Rejection(
        record_id=responses[-1].record_id,
        turn=responses[-1].turn,
        sample=sample,
        check="choose",
        reason=reason,
        detail=detail,
    )
