"""How long an answer takes, one request at a time.

Times are read from the monotonic clock of whoever asks:

    e2e    from the call to the whole answer
    ttft   from the call to the first piece of the answer, where the model streams
    tpot   (e2e - ttft) / (n_out - 1): what each token after the first one takes. vLLM's
           definition; n_out is the number of answer tokens as the engine counts them, and an
           answer of one token has none

The first calls warm up caches and are not counted. Several models are measured in alternation,
so that a machine that is busy for a minute is busy for all of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.times import Call, energy, lengths, ratio_of_medians, throughput, times
from potstill.models.energy import EnergyMeter
from potstill.models.failures import gave_up, reason_of
from potstill.protocols import ChatModel, Task
from potstill.types import Estimate, Record, Response, Sampling

NUM_CALLS = 30
NUM_WARMUP = 3
MOST_FAILURES = 2
"""How often one timed call may fail before the measurement does."""

NETWORK = "includes_network: true"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Latencies:
    """Speeds of several models measured in alternation, and each one's time over the first's."""

    models: dict[str, dict[str, Estimate]]
    ratios: dict[str, Estimate]
    calls: dict[str, list[Call]]
    settings: dict[str, dict[str, Any]]
    """What each one's speed is only true for: lengths of prompts and answers, numbers of calls."""

    energy_source: str
    """What tells the energy; `not measured` where nothing does."""


async def measure_latency(
    model: ChatModel, records: Sequence[Record], *, includes_network: bool = False, **settings: Any
) -> dict[str, Estimate]:
    """One model's times, their slow ends, and `tokens_per_second`.

    Args:
        includes_network: Whether the model is asked over a network; noted beside the numbers.
        settings: As `interleaved_latency` has them.

    Raises:
        DataError: If there are no records or fewer than two calls.
        TeacherError: If an answer fails: a time without an answer is no latency.
    """
    over = (model.name,) if includes_network else ()
    found = await interleaved_latency({model.name: model}, records, over_network=over, **settings)
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
    failures: dict[str, list[str]] = {role: [] for role in roles}
    meter = EnergyMeter()
    for i in range(num_warmup + num_calls):
        prompt = prompts[i % len(prompts)]
        for j in range(len(roles)):
            role = roles[(i + j) % len(roles)]
            # What another machine draws is in nobody's counter here.
            counts = None if role in over_network else meter
            call = await _timed_at_last(models[role], prompt, sampling, counts, failures[role])
            if i >= num_warmup:
                calls[role].append(call)
        if on_progress and i >= num_warmup:
            on_progress(i + 1 - num_warmup, num_calls)
    about = {
        "timed_calls": num_calls,
        "warm_up_calls": num_warmup,
        "different_prompts": min(len(prompts), num_warmup + num_calls),
    }
    settings = {
        role: {
            **getattr(models[role], "setting", {}),
            **lengths(calls[role]),
            **about,
            "failed_calls": len(failures[role]),
            "failures": dict(Counter(failures[role])),
            "includes_network": role in over_network,
        }
        for role in roles
    }
    return _latencies(calls, settings, meter.source, seed)


def _latencies(
    calls: dict[str, list[Call]], settings: dict[str, dict[str, Any]], source: str, seed: int
) -> Latencies:
    first, *others = calls
    seconds = {role: [call.seconds for call in of_role] for role, of_role in calls.items()}
    notes = {role: NETWORK if settings[role]["includes_network"] else "" for role in calls}
    return Latencies(
        models={
            role: times(of_role, seed=seed, note=notes[role])
            | throughput(of_role, seed=seed, note=notes[role])
            | energy(of_role, seed=seed, source=source)
            for role, of_role in calls.items()
        },
        ratios={
            role: ratio_of_medians(seconds[role], seconds[first], reference=first, seed=seed)
            for role in others
        },
        calls=calls,
        settings=settings,
        energy_source=source,
    )


async def timed(
    model: ChatModel, prompt: Record, sampling: Sampling, meter: EnergyMeter | None = None
) -> Call:
    """One answer with its times; the time to the first piece where the model streams.

    Args:
        meter: Counts the energy of this one answer, so nothing else may be asked meanwhile.

    Raises:
        TeacherError: If no answer came.
    """
    arrived: list[float] = []

    def on_token() -> None:
        if not arrived:
            arrived.append(time.perf_counter())

    if meter is not None:
        meter.restart()
    stream = getattr(model, "stream", None)
    start = time.perf_counter()
    response: Response = await (
        stream(prompt, sampling, on_token) if stream else model.respond(prompt, sampling)
    )
    seconds = time.perf_counter() - start
    if response.finish_reason == "error":
        raise gave_up(
            reason_of(response.error or ""),
            f"{model.name} gave no answer while its speed was measured: {response.error}",
        )
    first = arrived[0] - start if arrived else None
    joules = None if meter is None else meter.joules()
    return Call(seconds, response.num_new_tokens, first, response.num_prompt_tokens, joules)


async def _timed_at_last(
    model: ChatModel,
    prompt: Record,
    sampling: Sampling,
    meter: EnergyMeter | None,
    failures: list[str],
) -> Call:
    """A timed answer, after others that failed; those are counted and have no time.

    A stream is one attempt. Between two of them the model is asked as usual, which waits as long
    as an endpoint in trouble wants.

    Args:
        failures: Reasons of those that failed; added to.
    """
    for _ in range(MOST_FAILURES):
        try:
            return await timed(model, prompt, sampling, meter)
        except TeacherRefused:
            raise
        except TeacherError as error:
            if not hasattr(model, "stream"):
                raise
            failures.append(error.reason)
            await model.respond(prompt, sampling)
    return await timed(model, prompt, sampling, meter)
