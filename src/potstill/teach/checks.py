"""Which of the teacher's answers are fit to learn from, and why the others are not."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from potstill.config import GenerationConfig
from potstill.protocols import Check, Task, resolve
from potstill.tasks import is_closed
from potstill.teach.forms import (
    expected_script,
    is_copy,
    letters,
    num_words,
    script_of,
    translation_length_fault,
)
from potstill.teach.generate import with_answers
from potstill.teach.prompts import join_reasoning
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
    r"|(?:क्षमा करें|माफ़ कीजिए|माफ कीजिए|मुझे खेद है).{0,60}(?:नहीं|असमर्थ)"
    r")",
    re.I | re.S,
)
_LONGEST_REFUSAL = 400
"""Characters; a longer text that begins like a refusal goes on to answer."""


def finished(record: Record, response: Response) -> Rejection | None:
    """The answer came, is not empty and ended by itself."""
    if response.finish_reason == "error":
        return _rejection(response, "finished", "error", response.error)
    if response.finish_reason == "length":
        return _rejection(
            response, "finished", "length", f"cut after {response.num_new_tokens} tokens"
        )
    if response.finish_reason == "content_filter":
        return _rejection(response, "finished", "refusal", "withheld by a content filter")
    if not response.text.strip():
        detail = "only reasoning came" if response.reasoning else ""
        return _rejection(response, "finished", "empty", detail)
    return None


def not_refusal(record: Record, response: Response) -> Rejection | None:
    """The answer does not begin as a refusal, or is too long to be nothing else."""
    text = unicodedata.normalize("NFKC", response.text.strip()).replace("’", "'")
    if len(text) <= _LONGEST_REFUSAL and _REFUSALS.match(text):
        return _rejection(response, "not_refusal", "refusal", _short(text))
    return None


def task(
    record: Record, response: Response, *, task: Task, config: GenerationConfig | None = None
) -> Rejection | None:
    """The answer has the form that the task asks for."""
    text = response.text.strip()
    if not text:
        return _rejection(response, "task", "empty")
    if task.name == "translation":
        return _translation_fault(record, response)
    if task.name == "summarization":
        return _summary_fault(record, response, config)
    if task.name == "conversation":
        copied = is_copy(record, text, of_part=False)
        return _rejection(response, "task", "copy", _short(text)) if copied else None
    if task.parse(text, record) is None:
        reason = "off_label" if is_closed([record], task) else "unparsable"
        return _rejection(response, "task", reason, _short(text))
    return None


def agrees(record: Record, response: Response, *, task: Task) -> Rejection | None:
    """The answer is right by the task's accuracy rule, where the right answer is known."""
    if record.reference is None:
        return None
    prediction = task.parse(response.text, record)
    correct = task.correct(prediction, record)
    if correct is None or correct >= 0.5:
        return None
    detail = f"{_short(prediction or response.text)!r}, but {_short(record.reference)!r} is known"
    return _rejection(response, "agrees", "disagrees", detail)


class no_duplicates:  # noqa: N801 - a check by its name in the config, with a memory
    """The same answer to the same prompt was not there before: letters and digits compared."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, record: Record, response: Response) -> Rejection | None:
        prompt = [f"{message.role}:{letters(message.content)}" for message in record.messages]
        text = "\0".join([*prompt, letters(response.text)])
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).digest()
        if key in self._seen:
            return _rejection(response, "no_duplicates", "duplicate", _short(response.text))
        self._seen.add(key)
        return None


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


def check_responses(
    records: Sequence[Record],
    responses: Sequence[Response],
    checks: Sequence[Check],
    task: Task,
    *,
    config: GenerationConfig | None = None,
) -> tuple[list[Record], list[Rejection]]:
    """Sorts answers into records to learn from and rejections; each answer is in one of them.

    An accepted record has the teacher's answer as its reference and the teacher's earlier
    turns in its messages; the known answer, if there was one, is in `metadata["gold"]`. A
    conversation is accepted when all its turns are. Further samples of a record are records
    of their own, named ID#1, ID#2 ...

    Args:
        responses: In any order. Of two outcomes of one request the later one counts.
        config: Says with `reasoning: reasoning` that the student learns the reasoning too.
    """
    outcomes: dict[str, dict[int, dict[int, Response]]] = {}
    for response in responses:
        samples = outcomes.setdefault(response.record_id, {})
        samples.setdefault(response.sample, {})[response.turn] = response
    accepted, rejections = [], []
    for record in records:
        prompts = task.turns(record)
        for sample, turns in sorted(outcomes.get(record.id, {}).items()):
            rejection = _check_turns(prompts, turns, checks)
            if rejection is not None:
                rejections.append(rejection.model_copy(update={"sample": sample}))
            else:
                answers = [turns[turn] for turn in range(len(prompts))]
                accepted.append(_accepted(record, prompts, answers, sample, config))
    return accepted, rejections


def _check_turns(
    prompts: Sequence[Record], turns: dict[int, Response], checks: Sequence[Check]
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
        for check in checks:
            rejection = check(prompt, response)
            if rejection is not None:
                return rejection.model_copy(update={"turn": turn})
        said.append(response.text)
    return None


def _accepted(
    record: Record,
    prompts: Sequence[Record],
    answers: Sequence[Response],
    sample: int,
    config: GenerationConfig | None,
) -> Record:
    learns_reasoning = config is not None and config.reasoning == "reasoning"

    def text_of(response: Response) -> str:
        text = response.text.strip()
        return join_reasoning(response.reasoning, text) if learns_reasoning else text

    texts = [text_of(response) for response in answers]
    last = with_answers(prompts, len(prompts) - 1, texts)
    metadata = {**record.metadata, "model": answers[-1].model}
    if record.reference is not None:
        metadata["gold"] = record.reference
    if any(response.reasoning for response in answers):
        metadata["reasoning"] = answers[-1].reasoning
    if sample:
        metadata["record_id"] = record.id
    return record.model_copy(
        update={
            "id": f"{record.id}#{sample}" if sample else record.id,
            "messages": last.messages,
            "reference": texts[-1],
            "metadata": metadata,
        }
    )


def _translation_fault(record: Record, response: Response) -> Rejection | None:
    text = response.text
    if is_copy(record, text, of_part=True):
        return _rejection(response, "task", "copy", _short(text))
    wanted, found = expected_script(record), script_of(text)
    if wanted and found and wanted != found:
        detail = f"{found.lower()} letters where {wanted.lower()} was to be expected"
        return _rejection(response, "task", "language", detail)
    fault = translation_length_fault(record, text)
    return _rejection(response, "task", "length_ratio", fault) if fault else None


def _summary_fault(
    record: Record, response: Response, config: GenerationConfig | None
) -> Rejection | None:
    text = response.text
    if is_copy(record, text, of_part=False):
        return _rejection(response, "task", "copy", _short(text))
    words = num_words(text)
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


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 120 else flat[:119] + "…"
