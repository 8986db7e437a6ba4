"""What the form of a translation or a summary gives away, without understanding it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from potstill.tasks.translation import LANGUAGES
from potstill.types import Record

_LATIN_LANGUAGES = (
    "czech danish dutch english finnish french german indonesian italian polish portuguese "
    "romanian spanish swahili swedish turkish vietnamese"
).split()
_LANGUAGE_SCRIPTS = {
    "arabic": "ARABIC",
    "assamese": "BENGALI",
    "bengali": "BENGALI",
    "bulgarian": "CYRILLIC",
    "chinese": "CJK",
    "greek": "GREEK",
    "gujarati": "GUJARATI",
    "hebrew": "HEBREW",
    "hindi": "DEVANAGARI",
    "japanese": "CJK",
    "kannada": "KANNADA",
    "korean": "HANGUL",
    "malayalam": "MALAYALAM",
    "marathi": "DEVANAGARI",
    "nepali": "DEVANAGARI",
    "odia": "ORIYA",
    "persian": "ARABIC",
    "punjabi": "GURMUKHI",
    "russian": "CYRILLIC",
    "sanskrit": "DEVANAGARI",
    "sinhala": "SINHALA",
    "tamil": "TAMIL",
    "telugu": "TELUGU",
    "thai": "THAI",
    "ukrainian": "CYRILLIC",
    "urdu": "ARABIC",
    **dict.fromkeys(_LATIN_LANGUAGES, "LATIN"),
}
_TARGET_KEYS = ("target_language", "target_lang", "tgt_lang", "target", "language", "lang")
_INTO = re.compile(r"\b(?:into|to|in)\s+([a-z]+)\b", re.I)
_SENSE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}
_DENSE_SCRIPTS = ("CJK", "HANGUL")


def script_of(text: str) -> str | None:
    """The script that most letters of a text are in, such as LATIN; None without letters."""
    counts: Counter[str] = Counter()
    for character in text:
        if character.isalpha() or unicodedata.category(character) in ("Mn", "Mc"):
            name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
            counts[_SENSE.get(name, name)] += 1
    return counts.most_common(1)[0][0] if counts else None


def expected_script(record: Record) -> str | None:
    """The script of the language that is translated into; None where nothing says it.

    The known translation says it, else the row's metadata, else the prompt's own words
    ("translate into Hindi").
    """
    if record.reference:
        return script_of(record.reference)
    for key in _TARGET_KEYS:
        value = str(record.metadata.get(key, "")).lower()
        language = LANGUAGES.get(re.split(r"[-_]", value)[0], value).lower()
        if language in _LANGUAGE_SCRIPTS:
            return _LANGUAGE_SCRIPTS[language]
    for message in reversed(record.messages):
        for word in _INTO.findall(message.content):
            if word.lower() in _LANGUAGE_SCRIPTS:
                return _LANGUAGE_SCRIPTS[word.lower()]
    return None


def translation_length_fault(record: Record, text: str) -> str:
    """Why the length cannot be that of a translation; empty where it can.

    Compared with the known translation, else with the prompt, which may hold instructions
    beside the text; so only what is far off is found.
    """
    source = record.reference or record.messages[-1].content
    num_source, num_text = len(letters(source)), len(letters(text))
    if num_source < 20:
        return ""
    low, high = (1 / 3, 3.0) if record.reference else (0.1, 4.0)
    dense_source = script_of(source) in _DENSE_SCRIPTS
    dense_text = script_of(text) in _DENSE_SCRIPTS
    # A Chinese character says about what four Latin letters say.
    scale = 4.0 if dense_source and not dense_text else 0.25 if dense_text else 1.0
    scale = 1.0 if dense_source and dense_text else scale
    ratio = num_text / (num_source * scale)
    if low <= ratio <= high:
        return ""
    return f"{ratio:.2f} times the length that was to be expected"


def is_copy(record: Record, text: str, *, of_part: bool) -> bool:
    """Whether the answer repeats the prompt, where the known answer does not.

    Args:
        of_part: Whether a piece of the prompt, three words or longer, is a copy too.
    """
    prompt, answer = letters(record.messages[-1].content), letters(text)
    if not answer or (record.reference and letters(record.reference) == answer):
        return False
    if answer == prompt:
        return True
    return of_part and len(answer) >= 8 and len(text.split()) >= 3 and answer in prompt


def letters(text: str) -> str:
    """A text without case, spaces and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum() or unicodedata.category(c) in ("Mn", "Mc"))


def num_words(text: str) -> int:
    """Words between spaces; in scripts without spaces, half the characters."""
    if script_of(text) == "CJK":
        return (len(letters(text)) + 1) // 2
    return len(text.split())
