"""What the stages share: the config, the run folder, and who is told about progress."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import SecretStr

from potstill.config import DistillConfig
from potstill.export.manifest import CARD, DEVICES
from potstill.protocols import ChatModel, Task
from potstill.rundir import RunDir, content_hash
from potstill.tasks import get_task
from potstill.types import Noun, Sampling

T = TypeVar("T")

_SECONDS_BETWEEN_FIGURES = 5.0


class Event(Noun):
    """Something that happened in a run: for the console, the log and the dashboard."""

    stage: str
    kind: Literal["start", "progress", "done", "skipped", "note"]
    done: int | None = None
    total: int | None = None
    text: str = ""
    seconds: float | None = None


OnEvent = Callable[[Event], None]


@dataclass
class Context:
    """One run in one process."""

    config: DistillConfig
    run: RunDir
    workspace: Mapping[str, Any] | None = None
    """Short names of the workspace file -> where the model is."""

    secrets: Mapping[str, SecretStr] = field(default_factory=dict)
    """Keys that were given in clear, by whom they belong to; never written anywhere."""

    on_event: OnEvent | None = None
    can_score_text: bool = False
    """Whether the teacher's endpoint tells the probabilities of given text; found out by
    `preflight`, where the loss needs them."""

    @property
    def task(self) -> Task:
        """The task of the config."""
        return get_task(self.config.task)

    def tell(self, stage: str, kind: str, text: str = "", **facts: Any) -> None:
        """Passes an event on, and keeps all but progress in the run's event file."""
        event = Event(stage=stage, kind=kind, text=text, **facts)
        if kind != "progress":
            self._keep(event.model_dump(exclude_defaults=True))
        if self.on_event:
            self.on_event(event)

    def figures(self, stage: str) -> Callable[[Noun], None]:
        """A callback that keeps figures in the event file, one of those that come in 5 seconds."""
        last = -math.inf

        def keep(found: Noun) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_FIGURES:
                last = time.monotonic()
                self.keep_figures(stage, found.model_dump(mode="json"))

        return keep

    def keep_figures(self, stage: str, found: Mapping[str, Any]) -> None:
        """Keeps figures in the event file."""
        self._keep({"stage": stage, "kind": "figures", **found})

    def _keep(self, row: Mapping[str, Any]) -> None:
        self.run.events.parent.mkdir(parents=True, exist_ok=True)
        with self.run.events.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"time": round(time.time(), 3), **row}, ensure_ascii=False) + "\n"
            )

    def progress(self, stage: str) -> Callable[..., None]:
        """A callback (done, total, text) that turns into progress events of the stage."""

        def report(done: int, total: int | None = None, text: str = "") -> None:
            self.tell(stage, "progress", text, done=done, total=total)

        return report

    def stage(
        self, name: str, inputs: tuple[Any, ...], work: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Does the work of a stage unless it is done with these very inputs.

        Args:
            inputs: Values and Paths (by content) that the stage's result depends on.
            work: Does it; returns facts for the mark, of which `text` is shown.
        """
        key = content_hash(name, *inputs)
        if self.run.is_done(name, key):
            self.tell(name, "skipped", self.run.facts(name).get("text", ""))
            return
        self.run.mark(name).unlink(missing_ok=True)
        started = time.monotonic()
        self.tell(name, "start")
        facts = dict(work())
        seconds = round(time.monotonic() - started, 2)
        self.run.mark_done(name, key, **{**facts, "seconds": seconds})
        self.tell(name, "done", str(facts.get("text", "")), seconds=seconds)


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs asynchronous work to its end from a stage, which is not asynchronous."""
    return asyncio.run(coroutine)


async def prepared(
    model: ChatModel, on_progress: Callable[..., None], *, every_seconds: float = 1.0
) -> None:
    """Waits until a model can be asked, and tells every so often what is waited for."""
    if (prepare := getattr(model, "prepare", None)) is None:
        return
    waiting, started = asyncio.ensure_future(prepare()), time.monotonic()
    try:
        while not (await asyncio.wait({waiting}, timeout=every_seconds))[0]:
            what = getattr(model, "state", f"waiting for {model.name}")
            on_progress(0, None, f"{time.monotonic() - started:.0f} s, {what}")
        waiting.result()
    finally:
        waiting.cancel()


def decoding(ctx: Context) -> Sampling:
    """How all rows answer the test set: greedy."""
    config = ctx.config
    limit = config.evaluate.max_new_tokens or config.generation.max_new_tokens
    return Sampling(temperature=0.0, max_new_tokens=limit, stop=config.generation.stop)


def weights_key(place: str | Path) -> Any:
    """What identifies a model for a stage's hash, without reading gigabytes.

    A folder or file counts by names, sizes and times of change, plus the content of its
    config; everything else (a short name, a URL) by its name. A card, and what it did on devices,
    say something about the model and are no part of it.
    """
    path = Path(place)
    if path.is_file():
        stat = path.stat()
        return [path.name, stat.st_size, stat.st_mtime_ns]
    if not path.is_dir():
        return str(place)
    there = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    files = [p for p in there if p.name not in (CARD, DEVICES)]
    sizes = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return [sizes, content_hash(path / "config.json")]
