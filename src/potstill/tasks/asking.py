"""Instructions for rows of bare fields; rows with a prompt of their own are left alone."""

from __future__ import annotations

from typing import Any

from potstill.types import Message, Record


def fields_of(record: Record) -> tuple[str, ...]:
    """The bare fields a record was made of; empty where the row brought its own prompt."""
    fields: Any = record.metadata.get("fields", ())
    return tuple(fields) if isinstance(fields, list | tuple) else ()


def ask(record: Record, *, before: str = "", after: str = "", name: str = "") -> Record:
    """The record with an instruction around its last user turn, added once.

    Args:
        name: What the text is called on the line under the instruction, such as "Text".
    """
    *history, last = record.messages
    content = last.content
    if after and not content.endswith(after):
        content = f"{content}\n\n{after}"
    if before and not content.startswith(before):
        content = f"{before}\n\n{name}: {content}" if name else f"{before}\n\n{content}"
    if content == last.content:
        return record
    asked = Message(role="user", content=content)
    return record.model_copy(update={"messages": (*history, asked)})
