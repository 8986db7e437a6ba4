"""What the server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from potstill.types import Response

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("kept", "fell_back", "teacher_failed")
SHADOWS = ("agreed", "disagreed", "failed", "skipped")


class Metrics:
    """The counts of one server; each server has its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "potstill_requests",
            "Requests that ended, by status; 499 where the client went away.",
            ["endpoint", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "potstill_request_seconds",
            "Seconds from a request to the end of its answer; refused requests are not in it.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_seconds = Histogram(
            "potstill_first_token_seconds",
            "Seconds from a streamed request to the first text of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "potstill_tokens", "Tokens of prompts and of answers.", ["kind"], registry=registry
        )
        self.open = Gauge(
            "potstill_open_requests", "Requests that are on their way.", registry=registry
        )
        self.fallbacks = Counter(
            "potstill_fallbacks",
            "Answers by who gave them in the end: kept, fell_back to the teacher, teacher_failed.",
            ["outcome"],
            registry=registry,
        )
        self.shadows = Counter(
            "potstill_shadows",
            "Requests that the teacher was asked too: agreed, disagreed, failed, skipped.",
            ["outcome"],
            registry=registry,
        )
        self.log_rows = Counter(
            "potstill_log_rows",
            "Rows of the request log: written, failed.",
            ["outcome"],
            registry=registry,
        )
        # What never happened is a zero, and not nothing.
        for kind in ("prompt", "answer"):
            self.tokens.labels(kind)
        for counter, names in ((self.fallbacks, OUTCOMES), (self.shadows, SHADOWS)):
            for name in names:
                counter.labels(name)

    def text(self) -> bytes:
        """All counts, as Prometheus reads them."""
        return generate_latest(self._registry)

    def num_shadows(self, outcome: str) -> int:
        """How many of the teacher's second answers had an outcome."""
        found = self._registry.get_sample_value("potstill_shadows_total", {"outcome": outcome})
        return int(found or 0)


class Timer:
    """One request from its arrival to its end."""

    def __init__(self, metrics: Metrics, endpoint: str):
        self._metrics, self._endpoint = metrics, endpoint
        self._started = time.perf_counter()
        self._is_over = False
        self.first_seconds: float | None = None
        metrics.open.inc()

    @property
    def seconds(self) -> float:
        """Since the arrival."""
        return time.perf_counter() - self._started

    def saw_text(self) -> None:
        """Notes the first text of a stream; later ones change nothing."""
        if self.first_seconds is None:
            self.first_seconds = self.seconds
            self._metrics.first_seconds.labels(self._endpoint).observe(self.first_seconds)

    def end(self, status: int, responses: Sequence[Response] = (), num_each: int = 1) -> None:
        """Notes how the request ended; once."""
        if self._is_over:
            return
        self._is_over = True
        self._metrics.open.dec()
        self._metrics.requests.labels(self._endpoint, str(status)).inc()
        if status == 200:
            self._metrics.seconds.labels(self._endpoint).observe(self.seconds)
            prompt = sum(response.num_prompt_tokens for response in responses[::num_each])
            self._metrics.tokens.labels("prompt").inc(prompt)
            new = sum(response.num_new_tokens for response in responses)
            self._metrics.tokens.labels("answer").inc(new)
