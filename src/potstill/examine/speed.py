"""How long an answer takes, one request at a time.

Time is read from the monotonic clock around the whole call: prompt in, last token out
(`e2e`). The first calls warm up caches and are not counted. Several models are measured in
alternation, so that a machine that is busy for a minute is busy for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.errors import DataError, TeacherError
from potstill.examine.resample import NUM_RESAMPLES, percentile_interval
from potstill.protocols import ChatModel, Task
from potstill.types import Estimate, Record, Response, Sampling

NUM_CALLS = 30
NUM_WARMUP = 3
ENOUGH_FOR = {"latency.p95": (0.95, 100), "latency.p99": (0.99, 1000)}
"""Quantile, and how many calls it takes to know it."""

E2E = "e2e, single stream, monotonic clock"
NETWORK = "includes_network: true"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Call:
    """One timed answer."""

    seconds: float
    num_new_tokens: int


@dataclass(frozen=True)
class Latencies:
    """Speeds of several models measured in alternation, and each one's time over the first's."""

    models: dict[str, dict[str, Estimate]]
    ratios: dict[str, Estimate]


async def measure_latency(
    model: ChatModel,
    records: Sequence[Record],
    *,
    task: Task,
    sampling: Sampling,
    num_calls: int = NUM_CALLS,
    num_warmup: int = NUM_WARMUP,
    includes_network: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Estimate]:
    """One model's `latency` (median seconds), its slow end, and `tokens_per_second`.

    Args:
        includes_network: Whether the model is asked over a network; noted beside the numbers.

    Raises:
        DataError: If there are no records or fewer than two calls.
        TeacherError: If an answer fails: a time without an answer is no latency.
    """
    found = await interleaved_latency(
        {model.name: model},
        records,
        task=task,
        sampling=sampling,
        num_calls=num_calls,
        num_warmup=num_warmup,
        over_network=(model.name,) if includes_network else (),
        seed=seed,
        on_progress=on_progress,
    )
    return found.models[model.name]


async def interleaved_latency(
    models: Mapping[str, ChatModel],
    records: Sequence[Record],
    *,
    task: Task,
    sampling: Sampling,
    num_calls: int = NUM_CALLS,
    num_warmup: int = NUM_WARMUP,
    over_network: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Latencies:
    """Asks all models the same prompts in turn, in an order that rotates.

    Args:
        models: Role -> model. Ratios are each model's time over the first one's.
        over_network: Roles whose time includes a network.

    Raises: As `measure_latency`.
    """
    if not records or not models:
        raise DataError("latency needs at least one model and one record")
    if num_calls < 2:
        raise DataError(f"latency needs at least two timed calls, got {num_calls}")
    prompts = [turn for record in records[: num_calls + num_warmup] for turn in task.turns(record)]
    roles = list(models)
    calls: dict[str, list[Call]] = {role: [] for role in roles}
    for i in range(num_warmup + num_calls):
        prompt = prompts[i % len(prompts)]
        for j in range(len(roles)):
            role = roles[(i + j) % len(roles)]
            call = await _timed(models[role], prompt, sampling)
            if i >= num_warmup:
                calls[role].append(call)
        if on_progress and i >= num_warmup:
            on_progress(i + 1 - num_warmup, num_calls)
    seconds = {role: np.array([call.seconds for call in calls[role]]) for role in roles}
    return Latencies(
        models={
            role: _estimates(calls[role], seconds[role], role in over_network, seed)
            for role in roles
        },
        ratios={
            role: _ratio(seconds[role], seconds[roles[0]], roles[0], seed) for role in roles[1:]
        },
    )


async def _timed(model: ChatModel, prompt: Record, sampling: Sampling) -> Call:
    start = time.perf_counter()
    response: Response = await model.respond(prompt, sampling)
    seconds = time.perf_counter() - start
    if response.finish_reason == "error":
        raise TeacherError(
            f"{model.name} gave no answer while its speed was measured: {response.error}"
        )
    return Call(seconds, response.num_new_tokens)


def median_seconds(seconds: Sequence[float], *, note: str, seed: int) -> Estimate:
    """The median of answers that were timed while others were on their way."""
    times = np.array(seconds, dtype=np.float64)
    about = {"n": len(times), "unit": "seconds", "higher_is_better": False}
    about |= {"signature": "e2e of one request, monotonic clock", "method": _method(seed)}
    return _quantile(times, _drawn(len(times), seed), 0.5, note, about)


def _estimates(
    calls: Sequence[Call], seconds: np.ndarray, network: bool, seed: int
) -> dict[str, Estimate]:
    drawn = _drawn(len(seconds), seed)
    note = NETWORK if network else ""
    about: dict[str, Any] = {"n": len(seconds), "signature": E2E, "method": _method(seed)}
    slow: dict[str, Any] = {"unit": "seconds", "higher_is_better": False}
    found = {"latency": _quantile(seconds, drawn, 0.5, note, about | slow)}
    for name, (quantile, enough) in ENOUGH_FOR.items():
        if len(seconds) >= enough:
            found[name] = _quantile(seconds, drawn, quantile, note, about | slow)
        else:
            reason = f"needs {enough:,} calls, there are {len(seconds)}"
            if name == "latency.p95":
                found[name] = Estimate(
                    value=None, note=reason, **(about | slow | {"method": "none"})
                )
    tokens = np.array([call.num_new_tokens for call in calls], dtype=np.float64)
    if tokens.sum() > 0:
        rates = tokens[drawn].sum(axis=1) / seconds[drawn].sum(axis=1)
        low, high = percentile_interval(rates)
        found["tokens_per_second"] = Estimate(
            value=float(tokens.sum() / seconds.sum()),
            low=low,
            high=high,
            unit="tokens/s",
            note=note,
            **(about | {"signature": "answer tokens / e2e seconds, prompt included in the time"}),
        )
    return found


def _quantile(
    seconds: np.ndarray, drawn: np.ndarray, quantile: float, note: str, about: dict[str, Any]
) -> Estimate:
    low, high = percentile_interval(np.quantile(seconds[drawn], quantile, axis=1))
    value = float(np.quantile(seconds, quantile))
    return Estimate(value=value, low=low, high=high, note=note, **about)


def _ratio(ours: np.ndarray, theirs: np.ndarray, reference: str, seed: int) -> Estimate:
    """Median time over median time; both are drawn together, since they were measured together."""
    drawn = _drawn(len(ours), seed)
    ratios = np.median(ours[drawn], axis=1) / np.median(theirs[drawn], axis=1)
    low, high = percentile_interval(ratios)
    return Estimate(
        value=float(np.median(ours) / np.median(theirs)),
        low=low,
        high=high,
        n=len(ours),
        unit="x",
        method=_method(seed),
        higher_is_better=False,
        note=f"median time / median time of {reference}, measured in alternation",
    )


def _drawn(n: int, seed: int) -> np.ndarray:
    """Which calls each resample holds, [R, n]; fewer resamples of long series."""
    num_resamples = max(500, min(NUM_RESAMPLES, 2_000_000 // n))
    return np.random.default_rng(seed).integers(0, n, size=(num_resamples, n))


def _method(seed: int) -> str:
    return f"bootstrap-percentile, seed {seed}"
