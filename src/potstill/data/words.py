"""Words of a text, in any script.

A word is a run of letters, digits and the marks that belong to them: the vowel signs of Hindi
and Malayalam are marks, and a tokenizer that drops them counts other words. Scripts written
without spaces give one word per character, with its marks.
"""

from __future__ import annotations

import functools
import unicodedata

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, extensions
)
_JOINERS = {0x200C: None, 0x200D: None, 0xFEFF: None, 0x00AD: None}
# Malayalam chillus: older texts write consonant + virama + joiner for what is one letter now.
_CHILLUS = {"ണ്\u200d": "ൺ", "ന്\u200d": "ൻ", "ര്\u200d": "ർ", "ല്\u200d": "ൽ", "ള്\u200d": "ൾ"}


def fold(text: str) -> str:
    """A text as it is compared: NFKC, case folded, joiners out, white space single."""
    if "\u200d" in text:
        for old, new in _CHILLUS.items():
            text = text.replace(old, new)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.translate(_JOINERS).split())


def words(text: str) -> list[str]:
    """Folded words in order; punctuation, symbols and spaces only separate them."""
    found: list[str] = []
    current: list[str] = []
    alone = False  # whether `current` is one character of a script without spaces
    for char in fold(text):
        kind = _kind(char)
        if kind == "mark" and current:
            current.append(char)
            continue
        if current and (alone or kind != "letter"):
            found.append("".join(current))
            current = []
        if kind in ("letter", "alone"):
            current.append(char)
            alone = kind == "alone"
    if current:
        found.append("".join(current))
    return found


@functools.lru_cache(maxsize=1 << 16)
def _kind(char: str) -> str:
    category = unicodedata.category(char)[0]
    if category == "M":
        return "mark"
    if category not in "LN":
        return "gap"
    point = ord(char)
    return "alone" if any(low <= point <= high for low, high in _UNSPACED) else "letter"
