"""What one machine carries: a model asked by more and more users at once.

A closed loop: so many users, each of whom asks again as soon as the answer is there. At each
level every user first gets one answer that is not counted; from the moment the last of these is
there, answers are counted as they come, until there are enough. What is still on its way then is
waited for and not counted, so no request of one level disturbs the next.

    throughput    answers that came in the counted time, a second
    goodput       those of them that met the objective, a second
    carried       a level at which a stated share of the requests met the objective

Whoever asks runs on the same machine as a model of this machine does, and takes some of it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from potstill.config import LoadConfig
from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.measured import Level, Load, failures_text, objective_text
from potstill.examine.resample import wilson
from potstill.examine.speed import timed
from potstill.examine.times import Call, lengths, times
from potstill.protocols import ChatModel, Task
from potstill.types import Estimate, Record, Sampling

NUM_SLICES = 10
"""Parts of the counted time whose rates the interval of a rate is made of."""

_Outcome = Call | TeacherError

OnLevel = Callable[[int, int, str], None]
"""Called with (answers at this level, answers wanted, the level in words)."""


async def measure_load(
    model: ChatModel,
    records: Sequence[Record],
    *,
    task: Task,
    sampling: Sampling,
    config: LoadConfig,
    seed: int = 0,
    setting: Mapping[str, Any] | None = None,
    on_level: OnLevel | None = None,
) -> Load:
    """Asks a model with more and more users, until goodput falls or the objective is missed.

    Args:
        setting: What the figures are only true for, beside what the model says.

    Raises:
        DataError: If there are no records.
        TeacherRefused: If the model will never answer as asked.
        TeacherError: If at the first level no answer comes at all.
    """
    prompts = [turn for record in records for turn in task.turns(record)]
    if not prompts:
        raise DataError("a load needs at least one record to ask")
    turns = itertools.cycle(prompts)
    levels: list[Level] = []
    calls: list[Call] = []
    ended = "the last level was reached"
    for users in config.concurrency:
        crowd = _Crowd(model, turns, sampling, config, users, on_level)
        found, seconds = await crowd.run()
        level = _level(users, found, seconds, config, seed)
        if level.num_failed == level.n and not levels:
            raise TeacherError(f"{model.name} answered nobody under load: {found[-1][0]}")
        calls += [call for call, _ in found if isinstance(call, Call)]
        falls = bool(levels) and _goodput(level) < max(map(_goodput, levels))
        levels.append(level)
        if not _is_carried(level, config):
            ended = f"with {users} users at once the objective is missed"
            if level.failures:
                reasons = failures_text(level.failures)
                ended += f": {level.num_failed:,} of {level.n:,} requests failed ({reasons})"
            break
        if falls:
            ended = f"with {users} users at once goodput falls"
            break
    about = {**getattr(model, "setting", {}), **(setting or {}), **lengths(calls)}
    carried = _users(levels, config, ended)
    return Load(
        model=model.name,
        objective=_objective(config),
        levels=tuple(levels),
        best=max(levels, key=_goodput).concurrency,
        users=carried,
        think_seconds=config.think_seconds,
        users_with_pauses=_with_pauses(levels, carried, config),
        ended=ended,
        setting={**about, "different_prompts": len(prompts)},
    )


class _Crowd:
    """So many users who ask again and again, at one level."""

    def __init__(
        self,
        model: ChatModel,
        turns: itertools.cycle[Record],
        sampling: Sampling,
        config: LoadConfig,
        users: int,
        on_level: OnLevel | None,
    ):
        self._model, self._turns, self._sampling = model, turns, sampling
        self._users, self._config, self._on_level = users, config, on_level
        self._num_warm = 0
        self._started = math.inf
        self._ended = math.inf
        self._answers: list[tuple[_Outcome, float]] = []

    async def run(self) -> tuple[list[tuple[_Outcome, float]], float]:
        """Answers and failures of the counted time, with the moment each came."""
        tasks = [asyncio.create_task(self._ask_on()) for _ in range(self._users)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._answers, self._ended - self._started

    async def _ask_on(self) -> None:
        await self._one()
        self._num_warm += 1
        if self._num_warm == self._users:
            self._started = time.perf_counter()
        while self._ended == math.inf:
            outcome = await self._one()
            now = time.perf_counter()
            if self._started <= now and self._ended == math.inf:
                self._answers.append((outcome, now - self._started))
                self._tell()
                if len(self._answers) >= self._config.num_requests or (
                    now - self._started >= self._config.seconds
                ):
                    self._ended = now

    async def _one(self) -> _Outcome:
        try:
            return await timed(self._model, next(self._turns), self._sampling)
        except TeacherRefused:
            raise
        except TeacherError as error:
            return error

    def _tell(self) -> None:
        if self._on_level:
            text = f"{self._users} at once"
            self._on_level(len(self._answers), self._config.num_requests, text)


def meets(call: Call, config: LoadConfig) -> bool:
    """Whether one answer came within every limit of the objective.

    A limit on what cannot be timed is not met; an answer of one token has no tpot to limit.
    """
    limits = (
        (config.e2e_seconds, call.seconds),
        (config.ttft_seconds, call.first_seconds),
    )
    for limit, seconds in limits:
        if limit is not None and (seconds is None or seconds > limit):
            return False
    if config.tpot_seconds is None or call.num_new_tokens == 1:
        return True
    return call.token_seconds is not None and call.token_seconds <= config.tpot_seconds


def _level(
    users: int,
    found: Sequence[tuple[_Outcome, float]],
    seconds: float,
    config: LoadConfig,
    seed: int,
) -> Level:
    came = [(call, at) for call, at in found if isinstance(call, Call)]
    failures = Counter(error.reason for error, _ in found if isinstance(error, TeacherError))
    met = [(call, at) for call, at in came if meets(call, config)]
    low, high = wilson(len(met), len(found))
    rates = {
        "requests_per_second": _rate([(1.0, at) for _, at in came], seconds, "answers/s"),
        "goodput": _rate([(1.0, at) for _, at in met], seconds, "answers/s"),
        "tokens_per_second": _rate(
            [(float(call.num_new_tokens), at) for call, at in came], seconds, "tokens/s"
        ),
    }
    return Level(
        concurrency=users,
        seconds=seconds,
        n=len(found),
        num_failed=len(found) - len(came),
        failures=dict(failures),
        share_met=Estimate(
            value=len(met) / len(found), low=low, high=high, n=len(found), method="wilson",
            n_error=len(found) - len(came), signature=objective_text(_objective(config)),
        ),
        metrics={
            **rates,
            **times([call for call, _ in came], seed=seed, how=f"{users} users at once"),
        },
    )  # fmt: skip


def _rate(amounts: Sequence[tuple[float, float]], seconds: float, unit: str) -> Estimate:
    """Amount a second, with an interval from the rates of ten equal parts of the time."""
    total = sum(amount for amount, _ in amounts)
    edges = np.linspace(0.0, seconds, NUM_SLICES + 1)
    sums, _ = np.histogram(
        [at for _, at in amounts], bins=edges, weights=[amount for amount, _ in amounts]
    )
    rates = sums / (seconds / NUM_SLICES)
    from scipy import stats  # takes a second, which those who only read a report need not wait

    half = float(stats.t.ppf(0.975, NUM_SLICES - 1) * rates.std(ddof=1) / math.sqrt(NUM_SLICES))
    value = total / seconds
    return Estimate(
        value=value,
        low=max(0.0, value - half),
        high=value + half,
        n=len(amounts),
        unit=unit,
        method=f"batch means, {NUM_SLICES} parts of {seconds / NUM_SLICES:.3g} s, Student's t",
    )


def _goodput(level: Level) -> float:
    return level.metrics["goodput"].value or 0.0


def _is_carried(level: Level, config: LoadConfig) -> bool:
    return (level.share_met.value or 0.0) >= config.share


def _users(levels: Sequence[Level], config: LoadConfig, ended: str) -> Estimate:
    """Most users with which the objective holds; the ends are where that is surely so, and may be.

    Only levels that were tried are known; the truth is between one level and the next.
    """
    if not any((config.e2e_seconds, config.ttft_seconds, config.tpot_seconds)):
        return Estimate(value=None, n=0, method="none", note="no objective was asked for")

    def most(end: str) -> float:
        found = 0
        for level in levels:
            share = getattr(level.share_met, end)
            if share is None or share < config.share:
                break
            found = level.concurrency
        return float(found)

    value = most("value")
    tried = ", ".join(str(level.concurrency) for level in levels)
    note = f"levels tried: {tried}; {ended}"
    if value == levels[-1].concurrency:
        note += "; with more users it may hold as well"
    return Estimate(
        value=value, low=min(value, most("low")), high=max(value, most("high")),
        n=sum(level.n for level in levels), unit="users", method="wilson, level by level",
        signature=objective_text(_objective(config)), note=note,
        n_error=sum(level.num_failed for level in levels),
    )  # fmt: skip


def _with_pauses(levels: Sequence[Level], carried: Estimate, config: LoadConfig) -> float | None:
    """Users at once and those who pause: N = X (R + Z), the interactive law of queueing."""
    level = next((at for at in levels if at.concurrency == carried.value), None)
    if level is None or not config.think_seconds:
        return None
    per_second = level.metrics["requests_per_second"].value or 0.0
    return level.concurrency + per_second * config.think_seconds


def _objective(config: LoadConfig) -> dict[str, float]:
    names = ("e2e_seconds", "ttft_seconds", "tpot_seconds")
    limits = {name: value for name in names if (value := getattr(config, name)) is not None}
    return {**limits, "share": config.share}
