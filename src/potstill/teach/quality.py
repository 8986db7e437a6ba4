"""What the accepted set is like: answers and their balance, quotas, and how varied the text is."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from potstill.data.words import words
from potstill.protocols import Task
from potstill.tasks import is_closed
from potstill.types import Record, Rejection

NUM_SAMPLED = 1000
"""Answers that the diversity figures are taken from: they fall with the number of answers, so
two runs are only comparable over equally many."""

_LONGEST_SAMPLED = 20_000
"""Characters of an answer that the figures look at."""


class LabelQuota:
    """Not more accepted rows for one answer than its quota; the first ones are kept.

    Args:
        quota: The same for every answer, or answer -> quota; an answer not named has none.
    """

    def __init__(self, task: Task, quota: int | Mapping[str, int]):
        self._task = task
        self._quota = quota
        self._counts: Counter[str] = Counter()

    def __call__(self, record: Record) -> Rejection | None:
        label = label_of(record, self._task)
        if label is None:
            return None
        quota = self._quota if isinstance(self._quota, int) else self._quota.get(label)
        if quota is not None and self._counts[label] >= quota:
            return Rejection(
                record_id=record.id,
                check="label_quota",
                reason="over_quota",
                detail=f"{quota:,} rows answer {label!r} already",
            )
        self._counts[label] += 1
        return None


def label_of(record: Record, task: Task) -> str | None:
    """The label or option that an accepted record answers; None where answers are open."""
    if not is_closed([record], task):
        return None
    return task.parse(record.reference or "", record)


class Quality:
    """Counts accepted records as they pass; memory does not grow with their number."""

    def __init__(self, task: Task):
        self._task = task
        self._labels: Counter[str] = Counter()
        self._num_records = 0
        self._num_real = 0
        self._num_synthetic = 0
        self._sample: list[tuple[int, str]] = []

    def add(self, record: Record) -> None:
        """Counts one accepted record."""
        self._num_records += 1
        self._num_real += "gold" in record.metadata
        self._num_synthetic += bool(record.metadata.get("synthetic"))
        label = label_of(record, self._task)
        if label is not None:
            self._labels[label] += 1
        digest = hashlib.blake2b(record.id.encode("utf-8", "replace"), digest_size=8).digest()
        # The lowest hashes are a fair sample that does not depend on the order of the rows.
        one = (-int.from_bytes(digest, "big"), (record.reference or "")[:_LONGEST_SAMPLED])
        if len(self._sample) < NUM_SAMPLED:
            heapq.heappush(self._sample, one)
        else:
            heapq.heappushpop(self._sample, one)

    def figures(self) -> dict[str, Any]:
        """Counts and figures, as they are written beside the data."""
        answers = [text for _, text in self._sample]
        spoken = [words(text) for text in answers]
        return {
            "num_accepted": self._num_records,
            "num_with_known_answer": self._num_real,
            **self._origin(),
            **balance(self._labels),
            "num_sampled": len(answers),
            "num_distinct_answers": len(set(answers)),
            "mean_words": round(sum(map(len, spoken)) / max(1, len(spoken)), 2),
            "distinct_1": distinct(spoken, 1),
            "distinct_2": distinct(spoken, 2),
        }

    def _origin(self) -> dict[str, Any]:
        """How many of the prompts a person wrote; empty where all are real."""
        if not self._num_synthetic:
            return {}
        share = 1 - self._num_synthetic / self._num_records
        return {"num_synthetic": self._num_synthetic, "share_real": round(share, 4)}


def balance(labels: Mapping[str, int]) -> dict[str, Any]:
    """Counts of labels, their entropy, and how many equally frequent labels would have it.

    Entropy is in bits, of the observed shares; the effective number is 2 to its power: 1 where
    one label is all there is, the number of labels where they are balanced. Empty without labels.
    """
    total = sum(labels.values())
    if not total:
        return {}
    shares = [count / total for count in labels.values() if count]
    entropy = -sum(share * math.log2(share) for share in shares)
    return {
        "labels": dict(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        "label_entropy_bits": round(entropy + 0.0, 4),
        "effective_labels": round(2**entropy, 3),
    }


def distinct(texts: Iterable[list[str]], n: int) -> float | None:
    """Different n-grams of words over all n-grams, in (0, 1]; None where there is no n-gram.

    Source:
        Li et al. (2016), "A diversity-promoting objective function for neural conversation
        models", section 5.1. arXiv:1510.03055.
    """
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return round(len(set(grams)) / len(grams), 4) if grams else None
