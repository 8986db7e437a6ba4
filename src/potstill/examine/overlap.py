"""BLEU, chrF and ROUGE: overlap with references, by the libraries that define them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from potstill.examine.answers import answer_text
from potstill.tasks.words import words
from potstill.types import Sample

NGRAMS = 4
CHARACTERS = 6
BETA_SQUARED = 4
UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""Scripts that put no spaces between words, by the first word of their characters' names."""


def is_unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters belong to scripts without spaces between words."""
    letters = [c for text in texts for c in text if c.isalpha()][:20_000]
    return 2 * sum(unicodedata.name(c, "").startswith(UNSPACED) for c in letters) > len(letters)


class Bleu:
    """Corpus BLEU as sacrebleu computes it, 0 to 100.

    Words are cut by sacrebleu's 13a rules; where the references are in a script without
    spaces, every character is a word.
    """

    name = "bleu"
    unit = "points"
    scale = 100.0
    higher_is_better = True
    signature = "sacrebleu BLEU"

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are answer length, reference length, 4 matches, 4 totals."""
        return _segment_rows(self._scorer(samples), samples, 2 + 2 * NGRAMS)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The score of one corpus by sacrebleu itself; of resamples, all at once."""
        if sums.ndim == 1:
            from sacrebleu.metrics import BLEU

            said, wanted, *counts = np.rint(sums).astype(int).tolist()
            found = BLEU.compute_bleu(counts[:NGRAMS], counts[NGRAMS:], said, wanted, "exp")
            return np.float64(found.score)
        said, wanted = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + NGRAMS], sums[..., 2 + NGRAMS :]
        with np.errstate(divide="ignore", invalid="ignore"):
            brevity = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
            halvings = np.cumsum(matches == 0, axis=-1)  # each empty order halves again
            smoothed = np.where(matches == 0, 0.5**halvings, matches)
            score = 100 * brevity * np.exp(np.log(smoothed / totals).mean(axis=-1))
        return np.where((totals > 0).all(axis=-1) & (matches > 0).any(axis=-1), score, 0.0)

    def signature_for(self, samples: Sequence[Sample]) -> str:
        return _signed(self._scorer(samples), samples)

    def _scorer(self, samples: Sequence[Sample]) -> Any:
        from sacrebleu.metrics import BLEU

        texts = [reference for sample in samples for reference in sample.references]
        return BLEU(tokenize="char" if is_unspaced(texts) else "13a", force=True)


class Chrf:
    """Corpus chrF2 as sacrebleu computes it, 0 to 100."""

    name = "chrf"
    unit = "points"
    scale = 100.0
    higher_is_better = True
    signature = "sacrebleu chrF2"

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are (answer's, reference's, common) n-grams for 1 to 6 characters."""
        from sacrebleu.metrics import CHRF

        return _segment_rows(CHRF(), samples, 3 * CHARACTERS)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The score of one corpus by sacrebleu itself; of resamples, all at once."""
        if sums.ndim == 1:
            from sacrebleu.metrics import CHRF

            return np.float64(CHRF()._compute_f_score(np.rint(sums).astype(int).tolist()))
        said, wanted, common = (sums[..., i::3] for i in range(3))
        counted = (said > 0) & (wanted > 0)
        orders = np.maximum(counted.sum(axis=-1), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(counted, common / said, 0.0).sum(axis=-1) / orders
            recall = np.where(counted, common / wanted, 0.0).sum(axis=-1) / orders
            score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
        return np.where(precision + recall > 0, 100 * score, 0.0)

    def signature_for(self, samples: Sequence[Sample]) -> str:
        from sacrebleu.metrics import CHRF

        return _signed(CHRF(), samples)


def _segment_rows(scorer: Any, samples: Sequence[Sample], width: int) -> np.ndarray:
    rows = np.zeros((len(samples), width))
    for row, sample in zip(rows, samples, strict=True):
        if sample.references:
            references = [[reference] for reference in sample.references]
            row[:] = scorer._extract_corpus_statistics([answer_text(sample)], references)[0]
    return rows


def _signed(scorer: Any, samples: Sequence[Sample]) -> str:
    counts = {len(sample.references) for sample in samples}
    scorer.num_refs = counts.pop() if len(counts) == 1 else -1
    return f"{type(scorer).__name__}|{scorer.get_signature()}"


class UnicodeTokenizer:
    """Gives rouge-score our words; its own tokenizer drops every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@dataclass(frozen=True)
class Rouge:
    """Mean ROUGE F1 with the best reference, in [0, 1]."""

    name: str
    kind: str
    unit: str = ""
    higher_is_better: bool = True
    is_mean: bool = True

    @property
    def signature(self) -> str:
        return f"rouge-score {self.kind} F1, Unicode words, no stemming, best reference"

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self.kind], tokenizer=UnicodeTokenizer())

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        rows = np.zeros((len(samples), 2))
        for row, sample in zip(rows, samples, strict=True):
            if sample.references:
                scores = self._scorer.score_multi(sample.references, answer_text(sample))
                row[:] = (scores[self.kind].fmeasure, 1.0)
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[..., 0] / sums[..., 1]


rouge_1 = Rouge("rouge_1", "rouge1")
rouge_2 = Rouge("rouge_2", "rouge2")
rouge_l = Rouge("rouge_l", "rougeL")
