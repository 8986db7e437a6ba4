"""Gold answers in a row: labels, options and accepted answers, as data sets write them."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any, TypeGuard


class BadRow(ValueError):
    """A row that cannot be used; the message is the finding and the way out."""


def read_label(row: Mapping[str, Any], *, names_needed: bool = False) -> str | None:
    """The row's label as text: its name where `label_names` lists them, else as written.

    -1 and an absent label mean that nobody has labelled the row.
    """
    label = row.get("label")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is None or (isinstance(label, int) and label == -1):
        return None
    if isinstance(label, bool) or isinstance(label, str):
        text = str(label).strip()
        if not text:
            raise BadRow('"label" is empty; fill it, or leave the key out of unlabelled rows')
        return text
    if not isinstance(label, int):
        raise BadRow(f'"label" must be a name or a number, got {brief(label)}')
    inner = row.get("metadata")
    names = row.get("label_names") or (inner.get("label_names") if is_map(inner) else None)
    if names:
        if not 0 <= label < len(names):
            raise BadRow(f"label {label} is outside label_names, which has {len(names)}")
        return str(names[label])
    if names_needed:
        raise BadRow(
            f"label {label} is a number, and data sets disagree on their order; write the name, "
            f'or add "label_names": ["entailment", "neutral", "contradiction"] in your order'
        )
    return str(label)


def read_answers(value: Any) -> list[str]:
    """All accepted answers, of text, a list, or SQuAD's {"text": [...]}."""
    if is_map(value):
        value = value.get("text", [])
    items = value if isinstance(value, list) else [value]
    texts = []
    for item in items:
        item = item.get("text") if is_map(item) else item
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise BadRow(f"an answer must be text or a number, got {brief(item)}")
        if not str(item).strip():
            raise BadRow("an answer is empty; fill it, or leave the key out where none is known")
        if str(item) not in texts:
            texts.append(str(item))
    return texts


def read_choices(value: Any) -> dict[str, str]:
    """Options by their letter, of a list of texts, a mapping, or parallel lists of both."""
    if isinstance(value, str):
        value = inner_json(value, "choices")
    if is_map(value) and {"label", "text"} <= value.keys():
        options = dict(zip(value["label"], value["text"], strict=False))
    elif is_map(value):
        options = dict(value)
    elif isinstance(value, list) and all(is_map(item) for item in value):
        options = {item.get("label"): item.get("text") for item in value}
    elif isinstance(value, list):
        options = dict(zip(string.ascii_uppercase, value, strict=False))
    else:
        raise BadRow(f'"choices" must be a list or an object, got {brief(value)}')
    if len(options) < 2 or (isinstance(value, list) and len(options) != len(value)):
        raise BadRow(f"{len(options)} options; a choice needs 2 to 26, each with its own letter")
    if not all(
        isinstance(text, str | int | float) and str(text).strip() for text in options.values()
    ):
        raise BadRow("an option is empty or not text")
    return {str(key).strip(): str(text) for key, text in options.items()}


def option_key(answer: Any, options: Mapping[str, str]) -> str:
    """The letter of the right option, from a letter, the option's text or its index from 0."""
    text = str(answer).strip()
    for key in options:
        if text.casefold() in (key.casefold(), f"({key})".casefold()):
            return key
    same = [key for key, option in options.items() if option.strip() == text]
    if len(same) == 1:
        return same[0]
    if text.isdecimal() and int(text) < len(options):
        return list(options)[int(text)]
    raise BadRow(f"the answer {text!r} is none of the options {', '.join(options)}")


def is_map(value: Any) -> TypeGuard[Mapping]:
    """Whether a value of a row is an object."""
    return isinstance(value, Mapping)


def inner_json(text: str, key: str) -> Any:
    """Tables keep lists as JSON inside a cell."""
    try:
        return json.loads(text)
    except ValueError:
        raise BadRow(f'"{key}" must be a list, or JSON of one, got {brief(text)}') from None


def brief(value: Any) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
