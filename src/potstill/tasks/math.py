"""Word problems: the answer is a number, a formula, or the letter of an option."""

from __future__ import annotations

import dataclasses
import re

from potstill.tasks.asking import ask, fields_of
from potstill.tasks.numbers import last_number, number, same_number
from potstill.tasks.options import comparable, options_of, read_option
from potstill.tasks.reading import ANSWER_CUE, bare, boxed, json_answers, visible
from potstill.tasks.verifier import VERIFIER
from potstill.types import Record

INSTRUCTION = (
    "Solve the problem step by step, then give the final number alone on the last line after ####."
)
_FORMULA = re.compile(r"[\\^=_{}]|\bsqrt\b|\bpi\b|π|√|[a-z]\s*[-+*/]|\d\s*[-+*]\s*\d|\d[a-z]\b")
_PROSE = re.compile(r"(?<![\\\w])(?!sqrt|sin|cos|tan|log|exp|frac|pi)[^\W\d_]{3,}")
_LONGEST_FORMULA = 300


@dataclasses.dataclass(frozen=True)
class Mathematics:
    """Right when the answer equals the reference as a number, however either is written."""

    name: str = "math"
    default_metrics: tuple[str, ...] = ("accuracy",)
    closed: bool = False

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The record, with an instruction where it is a bare question."""
        fields = fields_of(record)
        if "choices" in fields:
            instruction = (
                "Solve the problem step by step, then give the letter of the right option alone "
                "on the last line after ####."
            )
            return (ask(record, after=instruction),)
        return (ask(record, after=INSTRUCTION) if "question" in fields else record,)

    def parse(self, text: str, record: Record) -> str | None:
        """The final answer: after ####, in a box, behind a cue, else the last number."""
        if _is_option(record):
            return read_option(text, options_of(record))
        return _final(visible(text))

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 for the same number or an equal formula; for options, the same letter."""
        if record.reference is None and record.metadata.get("answer") is None:
            return None
        if prediction is None:
            return 0.0
        if _is_option(record):
            return float(comparable(prediction) == comparable(_gold(record)))
        gold = _gold(record)
        same = same_number(prediction, gold)
        if same is not None:
            return float(same)
        if comparable(prediction) == comparable(gold):
            return 1.0
        return float(_may_be_equal(prediction, gold) and VERIFIER.equal(gold, prediction))


def _gold(record: Record) -> str:
    answer = record.metadata.get("answer")
    if isinstance(answer, str | int | float) and not isinstance(answer, bool):
        return str(answer)
    reference = record.reference or ""
    return _final(visible(reference)) or reference


def _is_option(record: Record) -> bool:
    """Whether the right answer is the letter of an option, so that a number will not do."""
    options = options_of(record)
    if not options:
        return False
    answer = record.metadata.get("answer")
    if answer is None and record.reference is not None:
        answer = read_option(record.reference, options)
    return answer is None or str(answer).strip() in options


def _may_be_equal(prediction: str, gold: str) -> bool:
    """Whether asking for computer algebra can help: a formula on a side, and neither endless."""
    short = max(len(prediction), len(gold)) <= _LONGEST_FORMULA
    return short and any(_FORMULA.search(text) for text in (prediction, gold))


def _final(text: str) -> str | None:
    _, hashes, after = text.rpartition("####")
    if hashes and after.strip():
        return _cleaned(after.strip().splitlines()[0])
    if found := json_answers(text):
        return _cleaned(found[0])
    if (box := boxed(text)) is not None:
        return _cleaned(box)
    cues = list(ANSWER_CUE.finditer(text))
    if cues and (rest := text[cues[-1].end() :].strip()):
        line = rest.splitlines()[0]
        return _number_in(line) or _cleaned(line)
    if number(text) is not None or (not _PROSE.search(text) and _FORMULA.search(text)):
        return _cleaned(text)
    return last_number(text)


def _number_in(line: str) -> str | None:
    """The number of a sentence such as "42 apples, because ..."; None where it is a formula."""
    cleaned = _cleaned(line)
    if cleaned is None or number(cleaned) is not None or _FORMULA.search(line):
        return None
    return last_number(line)


def _cleaned(text: str) -> str | None:
    text = text.strip().strip("*_`").strip()
    text = re.sub(r"\A\\[(\[]\s*|\s*\\[)\]]\Z", "", text).strip()
    if text.count("$") >= 2 and text.startswith("$"):
        text = text.strip("$").strip()
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\!", "")
    text = text.rstrip(" .。।,;").strip()
    # "= 42" at the end of a calculation: the right-hand side is the answer.
    _, equals, right = text.rpartition("=")
    if equals and number(right) is not None:
        text = right.strip()
    return text if bare(text) else None


math_task = Mathematics()
