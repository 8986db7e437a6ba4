"""Hard facts of a text, and whether another text conveys them.

A conversation has many good answers. What they must share are the facts: numbers, codes and
names. Where the reference has none, the wording is compared (ROUGE-L F1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from potstill.data.words import fold, words
from potstill.tasks.numbers import number, plain_digits
from potstill.tasks.words import rouge_l

NEAR_ENOUGH = 0.5
"""ROUGE-L F1 from which a text without hard facts counts as right."""

RULE = "hard facts of the reference conveyed, else ROUGE-L F1 >= 0.5"
"""The accuracy rule in words, for a metric's signature."""

_TIME = r"\d{1,2}:\d{2}"
_NUMBER = r"\d+(?:[,.]\d+)*"
_NUMBERS = re.compile(rf"(?<!\w)(?:{_TIME}|{_NUMBER})(?!\w)")
_CODE = re.compile(r"(?<!\w)(?=[\w-]*\d)(?=[\w-]*[^\W\d_])[\w-]*\w(?!\w)")
_SENTENCE = re.compile(r"(?<=[.!?:;।。！？\n\"“(])\s*|\A\s*")
_WORD = re.compile(r"(?<!\w)(?:[^\W\d_][\w'’.-]*\w|[^\W\d_])")
_NO_NAMES = frozenset(
    "i i'm i'll i've i'd ok okay yes no hi hello thanks thank sorry please mr mrs ms dr "
    "am pm a the".split()
)
_WITH_UNIT = re.compile(r"(\d+)([^\W\d_]{1,3})")
_ORDINALS = frozenset(("st", "nd", "rd", "th"))
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
}


def hard_facts(text: str) -> tuple[str, ...]:
    """Numbers, codes (letters with digits) and names of a text, in order, without repeats.

    Names are words with a capital that do not open a sentence, neighbours taken together; a
    script without capitals gives numbers and codes only.
    """
    text = plain_digits(text)
    found = [(m.start(), m[0]) for m in _CODE.finditer(text)]
    rest = _without_codes(text)
    found += [(m.start(), m[0]) for m in _NUMBERS.finditer(rest)]
    found += _names(rest)
    return tuple(dict.fromkeys(fact for _, fact in sorted(found)))


def _without_codes(text: str) -> str:
    return _CODE.sub(lambda match: " " * len(match[0]), text)


def _names(text: str) -> list[tuple[int, str]]:
    openings = {match.end() for match in _SENTENCE.finditer(text)}
    names: list[tuple[int, str]] = []
    last_end = -1
    for match in _WORD.finditer(text):
        word = match[0]
        capital = word[0].isupper() or word[0].istitle()
        if not capital or match.start() in openings or word.casefold() in _NO_NAMES:
            continue
        if names and text[last_end : match.start()] == " ":
            names[-1] = (names[-1][0], f"{names[-1][1]} {word}")
        else:
            names.append((match.start(), word))
        last_end = match.end()
    return names


def conveys(text: str, fact: str) -> bool:
    """Whether a text says a fact: the same number, or the same words next to each other."""
    value = number(fact)
    if value is not None and not re.search(_TIME, fact) and not _CODE.search(fact):
        return value[0] in _numbers(text)
    wanted, said = words(plain_digits(fact)), words(plain_digits(text))
    if _follow(said, wanted):
        return True
    unit = _WITH_UNIT.fullmatch(wanted[0]) if len(wanted) == 1 else None
    if unit is None:
        return False
    if unit[2] in _ORDINALS:  # "March 16th" and "16 March" are one day
        return _follow(said, [unit[1]])
    return _follow(said, [unit[1], unit[2]])  # "7pm" and "7 pm"


def _follow(said: list[str], wanted: list[str]) -> bool:
    size = len(wanted)
    return any(said[at : at + size] == wanted for at in range(len(said) - size + 1))


def _numbers(text: str) -> set[Any]:
    text = plain_digits(text)
    told = [*_NUMBERS.findall(text), *_NUMBERS.findall(_without_codes(text))]
    told += [_NUMBER_WORDS[word] for word in words(text) if word in _NUMBER_WORDS]
    # Digits inside codes and next to units ("20GB", "7pm") are said as well.
    told += re.findall(_NUMBER, text)
    return {value[0] for value in map(number, told) if value is not None}


def agrees(answer: str, references: Iterable[str], facts: Iterable[Any] = ()) -> bool:
    """The accuracy rule of free text: see RULE.

    Args:
        facts: What must be conveyed; each a text, or a list of texts of which one will do.
            Empty: the hard facts of the reference.
    """
    facts = list(facts)
    if facts:
        return all(_any_conveyed(answer, fact) for fact in facts)
    return any(_agrees_with(answer, reference) for reference in references)


def _any_conveyed(answer: str, fact: Any) -> bool:
    choices = fact if isinstance(fact, list | tuple) else [fact]
    return any(conveys(answer, str(choice)) for choice in choices)


def _agrees_with(answer: str, reference: str) -> bool:
    if fold(answer) == fold(reference):
        return True
    facts = hard_facts(reference)
    if facts:
        return all(conveys(answer, fact) for fact in facts)
    return rouge_l(answer, reference) >= NEAR_ENOUGH


def facts_of(metadata: Mapping[str, Any], turn: int, reference: str) -> list[Any]:
    """Facts that the metadata names for one assistant turn; empty where it names none.

    `facts` is a list of facts that the turn must convey, or one such list for each assistant
    turn. `slots` maps slots to their value or values; those count that the reference says.
    """
    listed = metadata.get("facts")
    if isinstance(listed, str):
        return [listed]
    if isinstance(listed, list) and listed:
        if _by_turn(listed):
            return listed[turn] if turn < len(listed) else []
        return listed
    slots = metadata.get("slots")
    values = slots.values() if isinstance(slots, Mapping) else ()
    return [value for value in values if value and _any_conveyed(reference, value)]


def facts_by_turn(facts: Any, references: Sequence[str]) -> list[list[Any]] | None:
    """A conversation's facts, given to the turns whose reference says them.

    None where there is nothing to divide: no facts, or one list for each turn already.
    """
    facts = [facts] if isinstance(facts, str) else facts
    if not isinstance(facts, list) or not facts or _by_turn(facts):
        return None
    return [[f for f in facts if _any_conveyed(text, f)] for text in references]


def _by_turn(facts: list[Any]) -> bool:
    return all(isinstance(item, list) for item in facts)
