"""Metrics on a model's own probabilities: of known answers, of the teacher, of what it said.

They need numbers that only some models give: weights on this machine give all of them. Where
there are none, the metric has no value and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.models.logprobs import logprob_arrays
from potstill.types import Logprobs, Sample

NUM_BINS = 10
OF_REFERENCES = ("perplexity", "bits_per_byte", "divergence")
"""Metrics for which known answers are put through the model."""


def answer_confidence(logprobs: Logprobs | None) -> float | None:
    """Probability of all tokens of an answer together; None where one of them is not known."""
    if logprobs is None:
        return None
    arrays = logprob_arrays(logprobs)
    is_said_NK = arrays.ids_NK == arrays.sampled_N[:, None]
    if len(is_said_NK) == 0 or not is_said_NK.any(axis=1).all():
        return None
    return float(np.exp(arrays.logprobs_NK[is_said_NK].astype(np.float64).sum()))


@dataclass(frozen=True)
class LikelihoodMetric:
    """A ratio of two sums over the tokens of known answers, on a scale of its own."""

    name: str
    needs: str
    signature: str
    top: str
    """Fields of `Sample.likelihood`: what is added up, and what it is divided by."""

    bottom: str
    scale: Callable[[np.ndarray], np.ndarray]
    unit: str = ""
    higher_is_better: bool = False

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are both sums' terms."""
        return _likelihood_rows(samples, self.top, self.bottom)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return self.scale(_ratio(sums))


perplexity = LikelihoodMetric(
    name="perplexity",
    needs="the model's probabilities of known answers",
    signature=(
        "exp(nats per token of the first reference, end token included); tokens are the model's "
        "own, so only models with one tokenizer can be compared"
    ),
    top="nats",
    bottom="num_tokens",
    scale=np.exp,
)
bits_per_byte = LikelihoodMetric(
    name="bits_per_byte",
    needs="the model's probabilities of known answers",
    signature="bits of the first reference and its end / its bytes in UTF-8",
    top="nats",
    bottom="num_bytes",
    scale=lambda nats: nats / np.log(2),
)
divergence = LikelihoodMetric(
    name="divergence",
    needs="teacher and model as weights on this machine, with one tokenizer",
    signature="KL(teacher || model) in nats a token of the first reference, temperature 1",
    top="divergence_nats",
    bottom="num_tokens",
    scale=np.asarray,
)


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error: mean distance of confidence and share right, over bins.

    The confidence is the probability of the whole answer, so it means something for short
    answers. With few answers the error is too large by chance alone.
    """

    name: str = "ece"
    unit: str = ""
    higher_is_better: bool = False
    needs: str = "the probabilities of the model's answers"
    signature: str = (
        f"{NUM_BINS} equal bins of confidence (probability of all tokens of the answer); sum over "
        "bins of share of answers * |mean confidence - share right|"
    )

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """Columns are confidence, right and count for each bin."""
        rows = np.zeros((len(samples), 3 * NUM_BINS))
        for row, sample in zip(rows, samples, strict=True):
            if sample.confidence is not None and sample.correct is not None:
                place = min(NUM_BINS - 1, int(sample.confidence * NUM_BINS))
                row[3 * place : 3 * place + 3] = (sample.confidence, sample.correct, 1.0)
        return rows

    def value(self, sums: np.ndarray) -> np.ndarray:
        confidence, right, count = (sums[..., i::3] for i in range(3))
        total = count.sum(axis=-1)
        distance = np.abs(confidence - right).sum(axis=-1)
        return np.divide(distance, total, out=np.full(total.shape, np.nan), where=total > 0)


def _likelihood_rows(samples: Sequence[Sample], top: str, bottom: str) -> np.ndarray:
    rows = np.zeros((len(samples), 2))
    for row, sample in zip(rows, samples, strict=True):
        found = sample.likelihood
        if found is not None and getattr(found, top) is not None:
            row[:] = (getattr(found, top), getattr(found, bottom))
    return rows


def _ratio(sums: np.ndarray) -> np.ndarray:
    top, bottom = np.asarray(sums[..., 0]), np.asarray(sums[..., 1])
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)
