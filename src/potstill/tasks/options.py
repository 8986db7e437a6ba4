"""Answers from a small set: labels, and options with letters."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from potstill.data.words import fold
from potstill.tasks.reading import bare, spans, visible
from potstill.types import Record

_ONE_OF = re.compile(
    r"(?:one of|eines von|इनमें से एक|में से एक|ഒന്ന്|一个|一つ)"
    r"(?: the following| these)?(?: labels| words| options)?[ \t]*[:：][ \t]*(.+)",
    re.IGNORECASE,
)
_OPTION = re.compile(r"^[ \t]*\(?([^\W_]\w?|[१-९])[).:][ \t]+(\S.*)$", re.MULTILINE)
_NEGATED = re.compile(r"(?:\b(?:not|never|nor|neither|isn't|cannot be)|n't)\s+(?:an?\s+|the\s+)?$")
_KEY_FIRST = re.compile(
    r"\A[\s*_`\"'(\[]*(?:option\s+|choice\s+)?[(\[]?([^\W_]\w?)[)\].:*_,]", re.I
)
# "A river" is an article and its noun, "A is right" a choice.
_CAPITAL = re.compile(
    r"(?<![\w'])([A-Z])(?![\w'])(?!\s+(?!is\b|because\b|since\b|or\b|and\b)[a-z])"
)
_KEY_IN_BRACKETS = re.compile(r"\(([^\W_]\w?)\)")


def answer_set(record: Record) -> tuple[str, ...]:
    """The answers a record allows: its option letters or its labels; empty when it is open."""
    return tuple(options_of(record)) or labels_of(record)


def labels_of(record: Record) -> tuple[str, ...]:
    """Labels that the record's metadata lists, else those its prompt does ("one of: a, b")."""
    listed = record.metadata.get("labels")
    if isinstance(listed, list | tuple) and listed:
        return tuple(str(label) for label in listed)
    if record.metadata.get("label_names"):
        return tuple(str(label) for label in record.metadata["label_names"])
    for message in reversed(record.messages):
        if message.role != "assistant" and (found := _ONE_OF.search(message.content)):
            labels = [bare(label) for label in re.split(r"[,、،;|]|\s+or\s+", found[1])]
            labels = [label for label in dict.fromkeys(labels) if label]
            if len(labels) > 1:
                return tuple(labels)
    return ()


def options_of(record: Record) -> dict[str, str]:
    """Options by letter, from the metadata or from lines such as "(A) text" in the prompt."""
    choices = record.metadata.get("choices")
    if isinstance(choices, Mapping) and choices:
        return {str(key): str(text) for key, text in choices.items()}
    found = _OPTION.findall(record.messages[-1].content)
    options = dict(found)
    letters = list(options)
    in_order = all(ord(b[0]) == ord(a[0]) + 1 for a, b in itertools.pairwise(letters))
    return options if len(options) > 1 and len(options) == len(found) and in_order else {}


def comparable(label: str) -> str:
    """A label as it is compared: folded, `_` and `-` as spaces, marks around it gone."""
    return " ".join(re.sub(r"[_\-‐-―/]+", " ", bare(fold(label))).split())


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """The one label that a text says, as `labels` spells it; None for none or for two."""
    by_form = {comparable(label): label for label in labels}
    for span in spans(text):
        exact = by_form.get(comparable(span.text))
        if exact is not None:
            return exact if span.explicit or _no_rival_line(text, exact, by_form) else None
        if span.explicit:
            named = _named(span.text, by_form)
            if named:
                return named.pop() if len(named) == 1 else None
    named = _named(visible(text), by_form)
    return named.pop() if len(named) == 1 else None


def _no_rival_line(text: str, label: str, by_form: Mapping[str, str]) -> bool:
    lines = {by_form.get(comparable(line), label) for line in visible(text).splitlines()}
    return lines == {label}


def _named(text: str, by_form: Mapping[str, str]) -> set[str]:
    """Labels that stand in a text as whole words and are not denied there."""
    folded = comparable(text)
    named = set()
    for form in sorted(by_form, key=len, reverse=True):
        pieces = []
        start = 0
        while form and (at := folded.find(form, start)) >= 0:
            end = at + len(form)
            if _whole(folded, at, end):
                if not _NEGATED.search(folded[:at]):
                    named.add(by_form[form])
                # A longer label hides the shorter ones inside it.
                pieces.append(folded[start:at] + " | ")
            else:
                pieces.append(folded[start:end])
            start = end
        folded = "".join([*pieces, folded[start:]])
    return named


def _whole(text: str, start: int, end: int) -> bool:
    return not (_joins(text[start - 1 : start]) or _joins(text[end : end + 1]))


def _joins(char: str) -> bool:
    return bool(char) and unicodedata.category(char)[0] in "LMN"


def read_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option that a text chooses; None for none or for two."""
    by_key = {fold(key): key for key in options}
    by_text: dict[str, list[str]] = {}
    for key, option in options.items():
        by_text.setdefault(comparable(option), []).append(key)
    for span in spans(text):
        chosen = _chosen(span.text, by_key, by_text)
        if chosen:
            return chosen.pop() if len(chosen) == 1 else None
    return None


def _chosen(text: str, by_key: Mapping[str, str], by_text: Mapping[str, Sequence[str]]) -> set[str]:
    stripped = fold(bare(text))
    if stripped in by_key:
        return {by_key[stripped]}
    same = by_text.get(comparable(text), ())
    if len(same) == 1:
        return set(same)
    found = {by_key[k] for k in map(fold, _KEY_IN_BRACKETS.findall(text)) if k in by_key}
    first = _KEY_FIRST.match(text)
    if first and fold(first[1]) in by_key:
        # "B. a delta": the rest of the line is the option's text, not another choice.
        found.add(by_key[fold(first[1])])
    if found:
        return found
    letters = [fold(letter) for letter in _CAPITAL.findall(text)]
    capitals = {by_key[letter] for letter in letters if letter in by_key}
    # One capital in a long sentence may be a name's initial; two are no choice.
    if len(capitals) > 1 or (capitals and len(text.split()) <= 8):
        return capitals
    named = _named(text, {form: keys[0] for form, keys in by_text.items() if len(keys) == 1})
    return named if len(named) == 1 else set()
