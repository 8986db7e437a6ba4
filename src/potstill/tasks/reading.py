"""Where in a model's text the answer stands.

Models wrap answers: in reasoning, in JSON, in bold type, behind "The answer is". The functions
here find the spans that may hold the answer, the most explicit first. Nothing here raises:
what cannot be read is None, and a check says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

ANSWER_KEYS = ("answer", "final_answer", "label", "result", "output", "prediction", "choice")

_THOUGHTS = re.compile(
    r"\A\s*(?:<think>|<thinking>|<reasoning>)?.*?(?:</think>|</thinking>|</reasoning>)\s*",
    re.DOTALL | re.IGNORECASE,
)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ANSWER = (
    r"\b(?:final |correct |right |best )*answer(?: is| would be| should be|[ \t]*[*_]*[:=：])"
    r"|(?:उत्तर|जवाब|ഉത്തരം)(?:[ \t]*[*_]*[:：]|\s+है\s)"
    r"|(?:答案|回答|答え)(?:是|は|[ \t]*[:：])"
)
_LABEL = (
    r"\b(?:label|option|choice|class|category|intent|relation(?:ship)?|prediction)"
    r"(?: is| would be| should be|[ \t]*[*_]*[:=：])"
    r"|(?:लेबल|ലേബൽ|标签)(?:[ \t]*[*_]*[:：]|\s+है\s|是)"
)
ANSWER_CUE = re.compile(rf"(?:{_ANSWER})[*_]*[ \t]*[:：]?", re.IGNORECASE)
"""What stands before an answer."""

CHOICE_CUE = re.compile(rf"(?:{_ANSWER}|{_LABEL})[*_]*[ \t]*[:：]?", re.IGNORECASE)
"""What stands before an answer that is a choice."""

_WRAPPING = " \t\r\n*_`\"'“”‘’«»「」.。।,;:!()[]{}<>"


class Span(NamedTuple):
    """A piece of the text that may hold the answer."""

    text: str
    explicit: bool
    """Whether the model marked it as its answer."""


def visible(text: str) -> str:
    """The text without a leading block of thoughts."""
    return _THOUGHTS.sub("", text, count=1).strip() if "</" in text else text.strip()


def bare(text: str) -> str:
    """A span without the marks around it: bold, quotes, brackets, a full stop."""
    return text.strip(_WRAPPING)


def spans(text: str, cue: re.Pattern[str] = CHOICE_CUE) -> Iterator[Span]:
    """Pieces of a text that may hold the answer, the most explicit first."""
    text = visible(text)
    _, hashes, after = text.rpartition("####")
    if hashes and after.strip():
        yield Span(after.strip().splitlines()[0], True)
    for value in json_answers(text):
        yield Span(value, True)
    if (box := boxed(text)) is not None:
        yield Span(box, True)
    *_, last = [None, *cue.finditer(text)]
    if last is not None:
        rest = text[last.end() :].strip()
        if rest:
            yield Span(rest.splitlines()[0], True)
    lines = [line for line in text.splitlines() if bare(line)]
    if lines:
        yield Span(lines[-1], False)
        yield Span(lines[0], False)
        yield Span(text, False)


def json_answers(text: str) -> list[str]:
    """Answers inside JSON objects of the text, fenced or not; scalars under a usual key."""
    for piece in [*_FENCE.findall(text), text]:
        start = piece.find("{")
        if start < 0:
            continue
        try:
            value, _ = json.JSONDecoder().raw_decode(piece[start:])
        except (ValueError, RecursionError):
            continue  # not JSON after all; the other readings follow
        found = _answers_in(value)
        if found:
            return found
    return []


def _answers_in(value: dict[str, Any]) -> list[str]:
    folded = {key.casefold(): item for key, item in value.items()}
    found = [folded[key] for key in ANSWER_KEYS if key in folded]
    if not found and len(value) == 1:
        found = list(value.values())
    return [str(item) for item in found if isinstance(item, str | int | float)][:1]


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, its braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth < 0:
            return text[begin:at]
    return None
