"""Markdown that shows a text as it is: cells, tables, lists."""

from __future__ import annotations

from collections.abc import Sequence

_MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


def safe(text: object) -> str:
    """Text that Markdown and a table cell show as it is, on one line."""
    return " ".join(str(text).split()).translate(_MARKUP)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def titled(title: str, lines: Sequence[str]) -> str:
    """A heading with a list below it; nothing where the list is empty."""
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""
