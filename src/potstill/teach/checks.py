"""Which of the teacher's answers are fit to learn from, and why the others are not."""

from __future__ import annotations

import functools
import inspect
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.config import GenerationConfig
from potstill.protocols import Check, Task, resolve
from potstill.tasks import is_closed
from potstill.teach.forms import (
    FEWEST_SUMMARY_WORDS,
    is_copy,
    is_long,
    num_words,
    says_nothing,
    translation_length_fault,
)
from potstill.teach.languages import language_fault
from potstill.teach.requests import with_answers
from potstill.types import Record, Rejection, Response

_REFUSALS = re.compile(
    r"\A\W*(?:"
    r"(?:i'?m|i am) (?:really |very |so )?(?:sorry|afraid)\b.{0,60}"
    r"\b(?:can'?t|cannot|can not|unable|not able|won'?t)\b"
    r"|(?:sorry|unfortunately|apologies),?.{0,30}\b(?:i|we) (?:can'?t|cannot|can not|am unable"
    r"|are unable|am not able|won'?t)\b"
    r"|i (?:can'?t|cannot|can not|won'?t|will not|am unable to|am not able to|must decline to)"
    r" (?:help|assist|answer|provide|comply|do that|fulfil|fulfill|continue|discuss|create|write)"
    r"|as an? (?:ai|artificial intelligence|large language model|language model)\b"
    r"|i(?:'m| am) (?:just |only )?an? (?:ai|language model)\b.{0,60}\b(?:can'?t|cannot|unable)"
    r"|(?:lo siento|perdón|disculpa),?.{0,40}\bno puedo\b|no puedo (?:ayudar|responder|cumplir)"
    r"|(?:je suis )?désolée?,?.{0,40}\bje ne peux pas\b"
    r"|je ne peux pas (?:vous |t')?(?:aider|répondre)"
    r"|(?:es tut mir (?:sehr )?leid|entschuldigung|leider),?.{0,40}\bkann ich\b.{0,40}\bnicht\b"
    r"|(?:es tut mir (?:sehr )?leid|entschuldigung),?.{0,40}\bich kann\b.{0,60}\bnicht\b"
    r"|(?:desculpe|lamento|sinto muito),?.{0,40}\bnão posso\b"
    r"|(?:mi dispiace|spiacente),?.{0,40}\bnon posso\b"
    r"|(?:很抱歉|抱歉|对不起|對不起).{0,20}(?:无法|無法|不能)"
    r"|(?:申し訳|すみません).{0,40}(?:できません|できかねます)"
    r"|죄송.{0,30}(?:없습니다|어렵습니다)"
    r"|(?:к сожалению|извините|простите),?.{0,30}не (?:могу|можем)"
    r"|(?:ക്ഷമിക്കണം|ക്ഷമിക്കുക|ഖേദിക്കുന്നു).{0,60}(?:കഴിയില്ല|സാധിക്കില്ല|സാധ്യമല്ല)"
    r"|(?:عذر|آسف|أعتذر).{0,40}(?:لا أستطيع|لا يمكنني|لا يمكن)"
    r"|(?:क्षमा करें|माफ़ कीजिए|माफ कीजिए|मुझे खेद है).{0,60}(?:नहीं|असमर्थ)"
    r")",
    re.I | re.S,
)
_LONGEST_REFUSAL = 400
"""Characters; a longer text that begins like a refusal goes on to answer."""


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
    text = unicodedata.normalize("NFKC", response.text.strip()).replace("’", "'")
    if len(text) <= _LONGEST_REFUSAL and _REFUSALS.match(text):
        return _rejection(response, "not_refusal", "refusal", short(text))
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
