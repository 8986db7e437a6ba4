"""Plain functions on what a model takes: time, memory, load and money."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import CostConfig, LoadConfig, PriceConfig, TeacherConfig
from potstill.errors import ConfigError
from potstill.library.inputs import Data, Named, opened_model, records_of, ref_of, task_of, wait
from potstill.models.machine import is_elsewhere, processor
from potstill.protocols import Task
from potstill.types import Estimate, Message, Noun, Record, Sampling

if TYPE_CHECKING:
    from potstill.examine.measured import Load
    from potstill.examine.times import Call
    from potstill.protocols import ChatModel

MEASURED = (
    *(f"{name}{end}" for name in ("latency", "ttft", "tpot") for end in ("", ".p95", ".p99")),
    *("tokens_per_second", "energy"),
    *("memory", "memory.weights", "memory.cache_token"),
)
"""Metrics that are measured on single calls, not read from answers."""

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about rain.",
    "How many days does a leap year have?",
    "Name three colours.",
    "Why is the sea salty?",
    "Which month comes after May?",
    "What do bees make?",
    "How do you boil an egg?",
)
"""What a model is asked when only its speed is of interest."""

OnProgress = Callable[[int, int, str], None]
"""Called with (done, wanted, what)."""


@dataclass(frozen=True)
class Speed:
    """Times of one model, and what they are only true for."""

    metrics: dict[str, Estimate]
    setting: dict[str, Any]
    calls: tuple[Call, ...]
    peak_bytes: int | None = None
    """Most resident memory of the engine that answered; None where there was none of its own."""


class Bench(Noun):
    """What one model takes on this machine, or at its endpoint."""

    model: str
    format: str
    """huggingface, gguf, endpoint; empty for an object with a `respond`."""

    setting: dict[str, Any]
    """Engine, processor, lengths of prompts and answers: what the figures are only true for."""

    metrics: dict[str, Estimate]
    """latency, ttft and tpot with their slow ends, tokens_per_second, energy, memory."""

    load: dict[str, Any] | None = None
    """More and more requests at once, where that was asked for (`examine.measured.Load`)."""

    cost: Estimate | None = None
    """Price of a thousand requests, where a price is known."""

    currency: str = "USD"
    notes: tuple[str, ...] = ()


def bench(
    model: Named,
    prompts: Data = (),
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    sampling: Sampling | None = None,
    num_calls: int = 30,
    load: LoadConfig | None = None,
    cost: CostConfig | None = None,
    memory: bool = True,
    workspace: Mapping[str, Any] | None = None,
    key: str | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Bench:
    """Measures a model: one request at a time, then under load, and its memory.

    Args:
        prompts: Records to ask; a few of ours by default.
        sampling: How it answers; greedily, with 64 tokens at most, by default.
        load: Levels and objective; no load by default.
        cost: What this machine costs; an endpoint's price is in its `price`.
        memory: Whether memory is measured, where the weights are on this machine.

    Raises:
        ConfigError: If the model is unknown.
        TeacherError: If it does not answer.
    """
    records = records_of(prompts, task, columns) or own_prompts()
    judge, sampling = task_of(task, records), sampling or Sampling(max_new_tokens=64)
    settings: dict[str, Any] = {"workspace": workspace, "key": key, "seed": seed}
    speed = speed_of(
        model, records, judge, sampling, num_calls=num_calls, on_progress=on_progress, **settings
    )
    found: Load | None = None
    if load is not None:
        found = _load_of(model, records, judge, sampling, load, on_progress=on_progress, **settings)
    metrics = dict(speed.metrics)
    if isinstance(model, TeacherConfig) and model.launch:
        from potstill.examine.memory import memory_of_processes

        metrics["memory"] = memory_of_processes(speed.peak_bytes)
    elif memory and _is_here(model, workspace):
        if on_progress:
            on_progress(0, 1, "memory")
        metrics |= memory_of_model(model, records, workspace)
    ref = None if hasattr(model, "respond") else ref_of(model, workspace)
    return Bench(
        model=model.name if ref is None else ref.name,  # type: ignore[union-attr]
        format="" if ref is None else ref.kind,
        setting=speed.setting,
        metrics=metrics,
        load=None if found is None else found.model_dump(mode="json"),
        cost=_cost_of(model, speed, found, cost or CostConfig(), workspace, seed),
        currency=(cost or CostConfig()).currency,
        notes=_notes(len(records), num_calls),
    )


def _notes(num_prompts: int, num_calls: int) -> tuple[str, ...]:
    if num_prompts >= num_calls:
        return ()
    return (
        f"{num_prompts} prompts for {num_calls} calls: an engine that remembers prompts answers "
        f"those it has seen sooner; give as many of your own as there are calls",
    )


def speed_of(
    model: Named,
    records: Sequence[Record],
    task: Task,
    sampling: Sampling,
    *,
    num_calls: int,
    workspace: Mapping[str, Any] | None,
    key: str | None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Speed:
    """Times of single calls, and what they are only true for."""
    from potstill.examine.speed import interleaved_latency

    async def ask() -> Speed:
        async with opened_model(model, 1, workspace, key) as opened:
            await _prepared(opened)
            found = await interleaved_latency(
                {"it": opened},
                records,
                task=task,
                sampling=sampling,
                num_calls=num_calls,
                over_network=["it"] if _leaves(model, workspace) else [],
                seed=seed,
                on_progress=_named(on_progress, "one at a time"),
            )
            peak = opened.memory_bytes() if hasattr(opened, "memory_bytes") else None
        setting = {
            **found.settings["it"],
            "processor": processor(),
            "energy": found.energy_source,
            "max_new_tokens": sampling.max_new_tokens,
        }
        return Speed(found.models["it"], setting, tuple(found.calls["it"]), peak)

    return wait(ask())


def _load_of(
    model: Named,
    records: Sequence[Record],
    task: Task,
    sampling: Sampling,
    config: LoadConfig,
    *,
    workspace: Mapping[str, Any] | None,
    key: str | None,
    seed: int,
    on_progress: OnProgress | None,
) -> Load:
    from potstill.examine.load import measure_load

    async def ask() -> Load:
        async with opened_model(model, max(config.concurrency), workspace, key) as opened:
            await _prepared(opened)
            return await measure_load(
                opened,
                records,
                task=task,
                sampling=sampling,
                config=config,
                seed=seed,
                setting={
                    "processor": processor(),
                    "includes_network": _leaves(model, workspace),
                },
                on_level=on_progress,
            )

    return wait(ask())


def memory_of_model(
    model: Named, records: Sequence[Record], workspace: Mapping[str, Any] | None
) -> dict[str, Estimate]:
    """What weights on this machine take in a process of their own that answers one prompt.

    Raises:
        ConfigError: If the weights are not on this machine.
    """
    if not _is_here(model, workspace):
        raise ConfigError("memory is measured for weights on this machine: a folder or a file")
    from potstill.examine.memory import memory_of, memory_of_engine
    from potstill.models.engines import GgufModel, has_llama_cpp
    from potstill.models.weights import cached_folder

    ref = ref_of(model, workspace)
    if ref.kind == "gguf" and has_llama_cpp():

        async def ask() -> tuple[int | None, dict[str, Any]]:
            engine = GgufModel(ref.source, slots=1)
            try:
                await engine.respond(records[0], Sampling(max_new_tokens=32))
                return engine.memory_bytes(), engine.setting
            finally:
                await engine.close()

        peak, setting = wait(ask())
        return memory_of_engine(Path(ref.source), peak, setting)
    return memory_of(cached_folder(ref), records[0].messages[-1].content)


def _cost_of(
    model: Named,
    speed: Speed,
    load: Load | None,
    cost: CostConfig,
    workspace: Mapping[str, Any] | None,
    seed: int,
) -> Estimate | None:
    from potstill.examine.cost import by_machine, by_tokens, one_at_a_time

    price = _price_of(model, workspace)
    if price is not None:
        tokens = [(call.num_prompt_tokens, call.num_new_tokens) for call in speed.calls]
        return by_tokens(tokens, price, seed=seed)
    if cost.machine_price is None or _leaves(model, workspace):
        return None
    rate = one_at_a_time([call.seconds for call in speed.calls], latency=speed.metrics["latency"])
    how = "one request at a time, and several at once cost less each"
    if load is not None:
        level = load.carried or load.levels[0]
        rate = level.metrics["goodput"]
        how = f"goodput with {level.concurrency} at once"
    return by_machine(cost.machine_price, rate, how=how, as_of=cost.as_of)


def _price_of(model: Named, workspace: Mapping[str, Any] | None) -> PriceConfig | None:
    if hasattr(model, "respond"):
        return getattr(model, "price", None)
    if isinstance(model, TeacherConfig) and model.price is not None:
        return model.price
    return ref_of(model, workspace).price


def own_prompts() -> list[Record]:
    """The prompts that a model is asked when nobody gave any."""
    return [
        Record(id=f"prompt-{i}", messages=(Message(role="user", content=text),))
        for i, text in enumerate(PROMPTS)
    ]


def is_memory(name: str) -> bool:
    """Whether a measured metric is one of memory, and not of time."""
    return name.partition(".")[0] == "memory"


async def _prepared(model: ChatModel) -> None:
    """Waits for an engine that starts, so that its start is in nobody's time."""
    if (prepare := getattr(model, "prepare", None)) is not None:
        await prepare()


def _is_here(model: Named, workspace: Mapping[str, Any] | None) -> bool:
    return not hasattr(model, "respond") and ref_of(model, workspace).kind != "endpoint"


def _leaves(model: Named, workspace: Mapping[str, Any] | None) -> bool:
    return not hasattr(model, "respond") and is_elsewhere(ref_of(model, workspace).source)


def _named(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, what)
