"""What the form of a translation, a summary or a reply gives away, without understanding it."""

from __future__ import annotations

import unicodedata

from potstill.tasks.languages import script_of
from potstill.types import Record

_DENSE_SCRIPTS = ("CJK", "HANGUL")
_UNSPACED_SCRIPTS = ("CJK", "THAI", "LAO", "KHMER", "MYANMAR")
_LONG_DOCUMENT = 50
"""Words of a prompt from which a summary of one or two words says too little."""

FEWEST_SUMMARY_WORDS = 3


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


def says_nothing(text: str) -> bool:
    """Whether a text has no letter or digit, or a single one that is no word: "...", "k"."""
    said = letters(text)
    return not said or (len(said) == 1 and script_of(said) == "LATIN")


def is_long(record: Record) -> bool:
    """Whether the prompt is long enough that a few words cannot sum it up."""
    return num_words(record.messages[-1].content) > _LONG_DOCUMENT


def letters(text: str) -> str:
    """A text without case, spaces and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum() or unicodedata.category(c) in ("Mn", "Mc"))


def num_words(text: str) -> int:
    """Words between spaces; in scripts without spaces, half the characters."""
    if script_of(text) in _UNSPACED_SCRIPTS:
        return (len(letters(text)) + 1) // 2
    return len(text.split())
