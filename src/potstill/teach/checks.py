"""Which of the teacher's answers are fit to learn from, and why the others are not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.config import GenerationConfig
from potstill.protocols import Check, Task, resolve
from potstill.tasks import is_closed
from potstill.tasks.conversation import with_answers
from potstill.tasks.languages import language_fault
from potstill.tasks.refusal import is_refusal
from potstill.teach.forms import (
    FEWEST_SUMMARY_WORDS,
    is_copy,
    is_long,
    num_words,
    says_nothing,
    translation_length_fault,
)
from potstill.types import Record, Rejection, Response


def finished(record: Record, response: Response) -> Rejection | None:
    """The answer came, is not empty and ended by itself."""
    if response.finish_reason == "length":
        return _rejection(
            response, "finished", "length", f"cut after {response.num_new_tokens} tokens"
        )
    if response.finish_reason == "content_filter":
        return _rejection(response, "finished", "refusal", "withheld by a content filter")
    return came(record, response)


def came(record: Record, response: Response) -> Rejection | None:
    """An answer came, with something in it; no other can be learnt, whatever the checks are."""
    if response.finish_reason == "error":
        return _rejection(response, "finished", "error", response.error)
    if response.text.strip():
        return None
    detail = "only reasoning came" if response.reasoning else ""
    return _rejection(response, "finished", "empty", detail)


def not_refusal(record: Record, response: Response) -> Rejection | None:
    """The answer does not begin as a refusal, or is too long to be nothing else."""
    if is_refusal(response.text):
        return _rejection(response, "not_refusal", "refusal", short(response.text.strip()))
    return None


def task(
    record: Record, response: Response, *, task: Task, config: GenerationConfig | None = None
) -> Rejection | None:
    """The answer has the form that the task asks for; a known result of math must be met too."""
    text = response.text.strip()
    if not text:
        return _rejection(response, "task", "empty")
    if task.name == "translation":
        return _translation_fault(record, response)
    if task.name == "summarization":
        return _summary_fault(record, response, config)
    if task.name == "conversation":
        return _reply_fault(record, response)
    if task.parse(text, record) is None:
        reason = "off_label" if is_closed([record], task) else "unparsable"
        return _rejection(response, "task", reason, short(text))
    if task.name == "math":
        return _disagreement(record, response, task, "task")
    return None


def agrees(record: Record, response: Response, *, task: Task) -> Rejection | None:
    """The answer is right by the task's accuracy rule, where the right answer is known."""
    return _disagreement(record, response, task, "agrees")


SET_CHECKS = ("no_duplicates", "no_near_duplicates")
"""Checks of a row beside the rows accepted before it; the others look at one answer alone."""


def divided(names: Sequence[str], task: Task) -> tuple[list[str], list[str]]:
    """(names to run in this process, names to run where they can be killed), SET_CHECKS left out.

    Foreign code and computer algebra may hang, crash or eat memory.
    """
    alone = [name for name in names if name not in SET_CHECKS]
    algebra = ("task", "agrees") if task.name == "math" else ()
    apart = [name for name in alone if ":" in name or name in algebra]
    return [name for name in alone if name not in apart], apart


def build_checks(
    names: Sequence[str], task: Task, *, config: GenerationConfig | None = None
) -> list[Check]:
    """The checks of these names, ready to be called, in their order.

    A check that takes `task` or `config` is given it; a class is a check with a memory and is
    made anew.

    Args:
        config: What the teacher was asked for, such as a longest summary.

    Raises:
        ConfigError: If a name is unknown.
    """
    checks: list[Check] = []
    for name in names:
        check: Any = resolve("check", name)
        if inspect.isclass(check):
            checks.append(check())
        else:
            taken = inspect.signature(check).parameters
            offered = {"task": task, "config": config}
            wanted = {key: value for key, value in offered.items() if key in taken}
            checks.append(functools.partial(check, **wanted) if wanted else check)
    return checks


def first_fault(
    prompts: Sequence[Record], turns: Mapping[int, Response], checks: Sequence[Check]
) -> Rejection | None:
    """The first fault in a conversation; a turn that was never answered is one."""
    said: list[str] = []
    for turn in range(len(prompts)):
        response = turns.get(turn)
        if response is None:
            record_id = prompts[turn].id
            return Rejection(
                record_id=record_id, turn=turn, check="finished", reason="error", detail="no answer"
            )
        prompt = with_answers(prompts, turn, said)
        asked = () if response.finish_reason == "error" else checks
        for check in (*asked, came):
            rejection = check(prompt, response)
            if rejection is not None:
                return rejection.model_copy(update={"turn": turn})
        said.append(response.text)
    return None


def _disagreement(record: Record, response: Response, task: Task, check: str) -> Rejection | None:
    if record.reference is None:
        return None
    prediction = task.parse(response.text, record)
    correct = task.correct(prediction, record)
    if correct is None or correct >= 0.5:
        return None
    detail = f"{short(prediction or response.text)!r}, but {short(record.reference)!r} is known"
    return _rejection(response, check, "disagrees", detail)


def _reply_fault(record: Record, response: Response) -> Rejection | None:
    text = response.text
    if is_copy(record, text, of_part=False):
        return _rejection(response, "task", "copy", short(text))
    return _rejection(response, "task", "too_short", short(text)) if says_nothing(text) else None


def _translation_fault(record: Record, response: Response) -> Rejection | None:
    text = response.text
    if is_copy(record, text, of_part=True):
        return _rejection(response, "task", "copy", short(text))
    fault = language_fault(record, text)
    if fault:
        return _rejection(response, "task", "language", fault)
    fault = translation_length_fault(record, text)
    return _rejection(response, "task", "length_ratio", fault) if fault else None


def _summary_fault(
    record: Record, response: Response, config: GenerationConfig | None
) -> Rejection | None:
    text = response.text
    if is_copy(record, text, of_part=False):
        return _rejection(response, "task", "copy", short(text))
    words = num_words(text)
    if says_nothing(text) or (words < FEWEST_SUMMARY_WORDS and is_long(record)):
        return _rejection(response, "task", "too_short", short(text))
    limit = num_words(record.messages[-1].content)
    if config is not None and config.prompting == "chain_of_density":
        limit = min(limit, config.max_summary_words)
    if words > limit:
        detail = f"{words} words, at most {limit} are allowed"
        return _rejection(response, "task", "too_long_summary", detail)
    return None


def _rejection(response: Response, check: str, reason: str, detail: str = "") -> Rejection:
    return Rejection(
        record_id=response.record_id,
        turn=response.turn,
        sample=response.sample,
        check=check,
        reason=reason,
        detail=detail,
    )


def short(text: str) -> str:
    """A text as a rejection quotes it: one line, at most 120 characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 120 else flat[:119] + "…"
