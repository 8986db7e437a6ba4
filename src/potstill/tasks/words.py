"""How much two texts have in common, counted in words of any script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from potstill.data.words import fold, words

__all__ = ["fold", "normal_answer", "rouge_l", "rouge_n", "token_f1", "words"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normal_answer(text: str) -> str:
    """A short answer as exact match compares it: folded, no punctuation, no English article."""
    kept = "".join(" " if _is_punctuation(char) else char for char in fold(text))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall of two short answers, order ignored."""
    ours, theirs = words(normal_answer(answer)), words(normal_answer(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def rouge_n(answer: str, reference: str, n: int) -> float:
    """ROUGE-N F1, in [0, 1]: overlap of n-grams of words.

    Source:
        Lin (2004), "ROUGE: a package for automatic evaluation of summaries", section 2.
    """
    ours, theirs = _grams(words(answer), n), _grams(words(reference), n)
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1, in [0, 1]: the longest common subsequence of words.

    Source:
        Lin (2004), section 3; sentence level, beta = 1.
    """
    ours, theirs = words(answer), words(reference)
    return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One bit per word of `a`, a whole row of the usual table in one addition: Hyyrö (2004),
    "Bit-parallel LCS-length computation revisited".
    """
    at: dict[str, int] = {}
    for index, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & at.get(word, 0)
        row = (row + matched) | (row - matched)
        row &= full
    return len(a) - row.bit_count()


def _grams(found: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))


def _f1(overlap: int, num_ours: int, num_theirs: int) -> float:
    return 2 * overlap / (num_ours + num_theirs) if overlap else 0.0
