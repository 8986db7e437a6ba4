"""Reads the fenced blocks of documentation pages, which tests run."""

from __future__ import annotations

from pathlib import Path

PAGES = Path(__file__).parent.parent / "docs"


def blocks(page: Path) -> dict[str, str]:
    """The fenced blocks of a documentation page, by language."""
    found: dict[str, str] = {}
    for part in page.read_text(encoding="utf-8").split("```")[1::2]:
        language, _, text = part.partition("\n")
        found[language.strip()] = text
    return found
