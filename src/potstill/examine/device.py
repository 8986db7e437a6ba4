"""A model run as on a device: under its limit of memory, on its threads, up to its context.

A process of its own loads the weights, answers one prompt after the other, and then one that
fills the context. What it takes as a whole counts, with the interpreter around the engine
(25 to 80 MB; with torch 270 MB). Times are of this machine's processor under that limit.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, DataError, PotstillError, TeacherError
from potstill.examine.footprint import cache_bytes_per_token, longest_context
from potstill.examine.limited import MemoryLimit, refuse_untold
from potstill.examine.memory import disk_bytes
from potstill.examine.numbers import size
from potstill.examine.speed import timed
from potstill.examine.times import Call, lengths, throughput, times
from potstill.models.apart import ApartModel, open_apart
from potstill.models.catalog import ModelRef
from potstill.models.devices import Device
from potstill.models.engines import GgufModel
from potstill.models.failures import Failure
from potstill.models.machine import available_memory_bytes, num_cores, processor, work_seconds
from potstill.types import Estimate, Message, Noun, Record, Sampling

NUM_CALLS = 30
FEWEST_CALLS = 5
NUM_WARMUP = 2
CALL_SECONDS = 60.0
"""Timed calls end after this long, once there are `FEWEST_CALLS`."""

NUM_LOADS = 3
LOAD_SECONDS = 10.0
"""A model that loads slower than this is loaded once."""

BUSY_CORES = 0.3
"""From so many cores on, other processes' work is told."""

ANSWER_TOKENS = 64
LAST_TOKENS = 16
"""Length of the answer to the prompt that fills the context."""

_WORDS = "one two three four five six seven eight nine ten"
_FEW, _MORE = 20, 60
_MARGIN = 0.98

OnProgress = Callable[[int, int, str], None]


class DeviceTrial(Noun):
    """Whether a model fits a device, and how fast it is on this machine under the same limits."""

    device: str
    limit_bytes: int
    """What one app may take there."""

    threads: int
    context: int
    """Tokens there was room for: the device's, or as many as the model reads."""

    fits: bool
    why: str = ""
    """What it took the memory for, where it does not fit."""

    metrics: dict[str, Estimate] = {}
    """memory, load, latency, ttft, tpot, tokens_per_second, and ttft.full: the first token after
    a prompt that fills the context."""

    setting: dict[str, Any] = {}
    """Processor, engine, lengths of prompts and answers: what the times are only true for."""

    notes: tuple[str, ...] = ()


@dataclass
class _Seen:
    """What is known of a trial so far."""

    doing: str = "while it was started"
    peak_bytes: int = 0
    loads: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    last: Call | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    other_cores: float = 0.0
    """How many cores other processes took while it answered, in the mean."""


async def try_on_device(
    ref: ModelRef,
    device: Device,
    prompts: Sequence[Sequence[Message]],
    *,
    only_memory: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> DeviceTrial:
    """Runs a model in a process that is ended when it takes more than the device has for it.

    Args:
        ref: Weights on this machine: a GGUF file, or a folder.
        prompts: What it is asked while it is timed.
        only_memory: Whether it fits, without times.

    Raises:
        ConfigError: If a prompt is longer than the device's context, this system does not tell
            what a process takes, or this machine has less memory free than the trial took.
        DataError, TeacherError: If the engine cannot read the model, or ends for another reason.
        MissingExtra: If the engine is not installed.
    """
    refuse_untold()
    if ref.kind == "huggingface":
        from potstill.models.weights import cached_folder

        ref = ref.model_copy(update={"source": str(cached_folder(ref))})
    context = min(device.context, longest_context(Path(ref.source)) or device.context)
    free = available_memory_bytes() or device.memory_bytes
    limit_bytes, seen = min(device.memory_bytes, free), _Seen()
    device = device.model_copy(update={"context": context})
    try:
        async with _started(ref, device, limit_bytes, seen) as model:
            if not only_memory:
                seen.doing = "while it answered"
                await _ask(model, prompts, device, seen, on_progress)
            seen.doing = "with a prompt that fills its context"
            seen.last = await _fill(model, context)
        while not only_memory and len(seen.loads) < NUM_LOADS and seen.loads[0] < LOAD_SECONDS:
            async with _started(ref, device, limit_bytes, seen):
                pass
    except PotstillError:
        if seen.peak_bytes <= limit_bytes:
            raise
    if seen.peak_bytes > limit_bytes and limit_bytes < device.memory_bytes:
        raise ConfigError(
            f"{ref.name} took the {size(free)} that this machine has free, and {device.name} has "
            f"{size(device.memory_bytes)} for it: whether it fits is not known; try it on a "
            f"machine with more memory"
        )
    return _trial(ref, device, seen, seed)


@contextlib.asynccontextmanager
async def _started(
    ref: ModelRef, device: Device, limit_bytes: int, seen: _Seen
) -> AsyncIterator[GgufModel | ApartModel]:
    """The model in its process, loaded; afterwards the process is gone and its peak known."""
    began = time.perf_counter()
    model = open_apart(ref, threads=device.threads, context=device.context)
    try:
        with MemoryLimit(model.process, limit_bytes) as limit:
            try:
                await model.prepare()
                seen.loads.append(time.perf_counter() - began)
                seen.setting = dict(model.setting)
                yield model
            finally:
                limit.look()
                seen.peak_bytes = max(seen.peak_bytes, limit.peak_bytes)
    finally:
        await model.close()


async def _ask(
    model: GgufModel | ApartModel,
    prompts: Sequence[Sequence[Message]],
    device: Device,
    seen: _Seen,
    on_progress: OnProgress | None,
) -> None:
    sampling, began = Sampling(max_new_tokens=ANSWER_TOKENS), time.perf_counter()
    others = _others_seconds(model.process.pid)
    for i in range(NUM_WARMUP + NUM_CALLS):
        prompt = Record(id=f"prompt-{i}", messages=tuple(prompts[i % len(prompts)]))
        try:
            call = await timed(model, prompt, sampling)
        except TeacherError as error:
            if error.reason != Failure.TOO_LONG:
                raise
            raise _too_long(device) from error
        if call.num_prompt_tokens + ANSWER_TOKENS > device.context:
            raise _too_long(device)
        if i >= NUM_WARMUP:
            seen.calls.append(call)
        if on_progress:
            on_progress(len(seen.calls), NUM_CALLS, "answers")
        if len(seen.calls) >= FEWEST_CALLS and time.perf_counter() - began > CALL_SECONDS:
            break
    taken = _others_seconds(model.process.pid) - others
    seen.other_cores = taken / (time.perf_counter() - began)


def _too_long(device: Device) -> ConfigError:
    more = f"{device.name.partition(':')[0]}:{device.threads}:{4 * device.context}"
    return ConfigError(
        f"a prompt and an answer of {ANSWER_TOKENS} tokens need more than the "
        f"{device.context:,} tokens that {device.name} plans for, or the model reads; plan for "
        f"more, as in --device {more}, or give shorter prompts"
    )


def _others_seconds(pid: int) -> float:
    """Processor seconds of all processes but one and ours."""
    return (work_seconds() or 0) - (work_seconds(pid) or 0) - time.process_time()


async def _fill(model: GgufModel | ApartModel, context: int) -> Call:
    """The answer to a prompt that fills the context but for a few tokens.

    How many tokens a word takes is read from two short prompts, so no tokenizer is needed here.
    """

    def ask(num_words: int, first: str, tokens: int) -> Any:
        words = (_WORDS.split() * (num_words // 10 + 1))[:num_words]
        message = Message(role="user", content=" ".join((first, *words)))
        return timed(model, Record(id=first, messages=(message,)), Sampling(max_new_tokens=tokens))

    few, more = [(await ask(n, "Read:", 1)).num_prompt_tokens for n in (_FEW, _MORE)]
    per_word = (more - few) / (_MORE - _FEW)
    if per_word <= 0:
        raise DataError(f"{model.name}: its engine does not tell how many tokens a prompt has")
    room = _MARGIN * (context - LAST_TOKENS) - few
    # Another beginning: what an engine kept of the short prompts must not save it work.
    return await ask(max(1, _FEW + int(room / per_word)), "Now read:", LAST_TOKENS)


def _trial(ref: ModelRef, device: Device, seen: _Seen, seed: int) -> DeviceTrial:
    fits = seen.peak_bytes <= device.memory_bytes
    metrics = {"memory": _peak(seen, fits)}
    if seen.loads:
        metrics["load"] = _load(seen.loads)
    if seen.calls and fits:
        found = times(seen.calls, seed=seed) | throughput(seen.calls, seed=seed)
        metrics |= {name: one for name, one in found.items() if one.value is not None}
    if seen.last is not None and seen.last.first_seconds is not None and fits:
        metrics["ttft.full"] = _single(
            seen.last.first_seconds,
            "seconds",
            f"first token after a prompt of {seen.last.num_prompt_tokens:,} tokens, asked once",
        )
    setting = {**seen.setting, **lengths(seen.calls), "processor": processor()}
    setting |= {
        "other_cores": round(seen.other_cores, 2),
        "timed_calls": len(seen.calls),
        "warm_up_calls": NUM_WARMUP,
    }
    return DeviceTrial(
        device=device.name,
        limit_bytes=device.memory_bytes,
        threads=device.threads,
        context=device.context,
        fits=fits,
        why="" if fits else _why(ref, device, seen),
        metrics=metrics,
        setting=setting,
        notes=notes_of(device, seen.other_cores),
    )


def notes_of(device: Device, other_cores: float = 0.0) -> tuple[str, ...]:
    """What the times of a trial are, and what this machine's cores had to do besides."""
    cores, name = num_cores(), processor()["name"]
    plural = "core" if cores == 1 else "cores"
    notes = [f"times are of this machine ({name}) under {device.name}'s limits, not the device's"]
    if device.threads > cores:
        notes.append(
            f"{device.threads} threads on {cores} {plural}: slower here than where each has its own"
        )
    if other_cores >= BUSY_CORES:
        notes.append(
            f"other processes took {other_cores:.1f} of {cores} {plural} meanwhile: slower than on "
            f"a machine at rest"
        )
    return tuple(notes)


def _why(ref: ModelRef, device: Device, seen: _Seen) -> str:
    """What took the memory, as far as the files tell it."""
    parts = [f"its files are {size(disk_bytes(Path(ref.source)))}"]
    with contextlib.suppress(DataError):
        dtype = seen.setting.get("dtype", "float16")
        cache = cache_bytes_per_token(Path(ref.source), dtype=dtype).value or 0
        parts.append(f"a context of {device.context:,} tokens is {size(cache * device.context)}")
    return f"it took more than {size(device.memory_bytes)} {seen.doing}; {', '.join(parts)}"


def _peak(seen: _Seen, fits: bool) -> Estimate:
    what = "peak resident memory of the engine's process, its interpreter and mapped files included"
    note = "" if fits else "ended there; it would have taken more"
    return _single(float(seen.peak_bytes), "bytes", what, note)


def _load(loads: Sequence[float]) -> Estimate:
    ends = f"from {min(loads):.2f} to {max(loads):.2f} s; " if len(loads) > 1 else ""
    found = _single(
        statistics.median(loads),
        "seconds",
        "from the start of the process until it can be asked, the interpreter's own start included",
        f"{ends}files may be in this machine's memory already, as after their export",
    )
    return found.model_copy(update={"n": len(loads)})


def _single(value: float, unit: str, signature: str, note: str = "") -> Estimate:
    return Estimate(
        value=value,
        n=1,
        unit=unit,
        method="none",
        signature=signature,
        higher_is_better=False,
        note=note,
    )
