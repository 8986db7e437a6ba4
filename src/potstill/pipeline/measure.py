"""Speed and memory of the compared models, under conditions that make ratios fair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.examine.memory import (
    memory_of,
    memory_of_embedded,
    memory_of_engine,
    memory_of_processes,
)
from potstill.examine.speed import Latencies, interleaved_latency
from potstill.models.catalog import ModelRef
from potstill.models.embedded import PACKAGES
from potstill.models.machine import is_elsewhere, num_cores, processor
from potstill.pipeline.context import Context, wait, weights_key
from potstill.protocols import ChatModel
from potstill.types import Estimate, Record, Sampling


@dataclass(frozen=True)
class Row:
    """One row of the report: who answers, and where its weights are."""

    role: str
    ref: ModelRef
    is_teacher: bool = False
    engine: str = ""
    """What is launched to answer for the weights."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether asking it leaves this machine; several teachers count as such."""
        return self.ref.kind == "endpoint" and (
            "://" not in self.ref.source or is_elsewhere(self.ref.source)
        )

    @property
    def key(self) -> Any:
        """What its answers depend on."""
        engine = [self.engine] if self.engine else []
        return [self.role, self.ref.kind, weights_key(self.ref.source), *engine]


Opened = Callable[[Context, Row, int], AbstractAsyncContextManager[ChatModel]]


def measure(
    ctx: Context, rows: list[Row], records: list[Record], opened: Opened, sampling: Sampling
) -> None:
    """Times single calls, the models in turn, and each one's memory in a process of its own.

    Models of one shape (same size of weights, same engine) take the same time a token, so
    one of each shape is measured, the distilled student before its variants, and the others
    carry its figures with a note.
    """
    settings = ctx.config.evaluate
    shapes = _shapes(rows)
    chosen = [row for row in rows if shapes[row.role] == row.role]

    async def ask() -> dict[str, Any]:
        async with contextlib.AsyncExitStack() as stack:
            models: dict[str, ChatModel] = {}
            for row in chosen:
                models[row.role] = await stack.enter_async_context(opened(ctx, row, 1))
            found = await interleaved_latency(
                models,
                records,
                task=ctx.task,
                sampling=sampling,
                num_calls=settings.num_latency_calls,
                over_network=[row.role for row in chosen if row.is_elsewhere],
                seed=settings.seed,
                on_progress=ctx.progress("measure"),
            )
            engines = {
                role: model.memory_bytes()
                for role, model in models.items()
                if hasattr(model, "memory_bytes")
            }
        return {"found": found, "engines": engines}

    def work() -> dict[str, Any]:
        asked = wait(ask())
        found: Latencies = asked["found"]
        memory = _memory(ctx, chosen, records, asked["engines"], found.settings)
        medians = {role: speeds["latency"].value for role, speeds in found.models.items()}
        shown = ", ".join(f"{role} {seconds:.2f} s" for role, seconds in medians.items())
        energy, machine = {"energy": found.energy_source}, {"processor": processor()}
        metrics, settings, seconds = {}, {}, {}
        for role, same in shapes.items():
            of_row = {**found.models[same], **memory.get(same, {})}
            if same in found.ratios:
                of_row["latency_ratio"] = found.ratios[same]
            metrics[role] = _dumped(of_row, role, same)
            settings[role] = {**found.settings[same], **machine, **energy}
            seconds[role] = [round(call.seconds, 6) for call in found.calls[same]]
        return {
            "metrics": metrics,
            "settings": settings,
            "times": seconds,
            "text": f"an answer takes {shown}",
        }

    keys = [row.key for row in rows]
    inputs = ("times by token", keys, ctx.run.test, sampling, settings.num_latency_calls)
    ctx.stage("measure", inputs, work)


def _shapes(rows: list[Row]) -> dict[str, str]:
    """Role -> the role that is measured for it: its own, or the first one of the same shape."""
    order = sorted(rows, key=lambda row: row.role not in ("teacher", "distilled"))
    first: dict[Any, str] = {}
    found = {}
    for row in order:
        shape: Any = row.role
        if row.ref.kind == "huggingface" and not row.engine:
            from potstill.models.weights import cached_folder

            files = cached_folder(row.ref).glob("*.safetensors")
            shape = sum(file.stat().st_size for file in files) // 100_000
        found[row.role] = first.setdefault(shape, row.role)
    return {row.role: found[row.role] for row in rows}


def _memory(
    ctx: Context,
    rows: list[Row],
    records: list[Record],
    engines: Mapping[str, int | None],
    settings: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, Estimate]]:
    """Memory of each model, in a fresh process or its engine's; a process for each core at once.

    All models fit into memory together, or their answers could not have been timed in turns.
    """

    def of(row: Row) -> dict[str, Estimate]:
        if row.role in engines and row.ref.kind == "gguf" and not row.engine:
            file, peak = Path(row.ref.source), engines[row.role]
            return memory_of_engine(file, peak, settings[row.role])
        if row.role in engines:
            return {"memory": memory_of_processes(engines[row.role])}
        if row.ref.kind == "huggingface":
            from potstill.models.weights import cached_folder

            prompt = ctx.task.turns(records[0])[0].messages[-1].content
            return memory_of(cached_folder(row.ref), prompt)
        if row.ref.kind in PACKAGES:
            prompt = ctx.task.turns(records[0])[0].messages[-1].content
            return memory_of_embedded(Path(row.ref.source), PACKAGES[row.ref.kind], prompt)
        return {}

    ctx.tell("measure", "progress", f"memory of {', '.join(row.role for row in rows)}", done=0)
    with ThreadPoolExecutor(num_cores()) as pool:
        found = dict(zip((row.role for row in rows), pool.map(of, rows), strict=True))
    return {role: estimates for role, estimates in found.items() if estimates}


def _dumped(found: Mapping[str, Estimate], role: str, measured: str) -> dict[str, Any]:
    if role != measured:
        note = f"measured on {measured}, which has the same shape"
        found = {
            name: estimate.model_copy(
                update={"note": "; ".join(part for part in (estimate.note, note) if part)}
            )
            for name, estimate in found.items()
        }
    return {name: estimate.model_dump(mode="json") for name, estimate in found.items()}
