"""Scores rows at an endpoint that tells the probabilities of given text, once, to disk.

A row's ids are sent as they are, so they must mean at the server what they mean to the student:
the server writes the row's prompt and its whole text in ids of its own, and both have to be the
row's. Rows that it writes otherwise are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from potstill.data.render import Rendered, rendered_text
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.scoring import TextScorer
from potstill.targets.store import TargetWriter
from potstill.teach.kept import Fitted, scored_targets
from potstill.types import Message

MOST_AT_ONCE = 16
"""Texts that are scored at once: a server holds logits of the whole vocabulary for each token."""

_SHARD_SECONDS = 30.0


class Unscored(NamedTuple):
    """Rows that were tried and have no targets."""

    num_other_tokens: int
    """The server writes them in other ids."""

    num_unaffordable: int
    """They would have cost more than was left."""

    failures: tuple[str, ...]
    """What the server said of each of the others."""


async def score_at_endpoint(
    writer: TargetWriter,
    scorer: TextScorer,
    rows: Mapping[bytes, Rendered],
    texts: Mapping[bytes, tuple[tuple[Message, ...], str]],
    tokenizer: Any,
    *,
    most_cost: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Unscored:
    """Asks for the probabilities of rows that a store has not, and puts them into it.

    Running it again after a crash asks only for what no shard holds: at most 30 seconds of work
    are lost.

    Args:
        rows: By their keys in the store.
        texts: Prompt and answer of each row.
        tokenizer: The student's.
        most_cost: Money that may be spent.
        on_progress: Called with rows done and rows in all.

    Raises:
        TeacherRefused: Key, URL or model; what was scored before is kept.
    """
    settings = writer.settings
    assert (settings.kind, settings.temperatures) == ("topk", (1.0,)), "what a server tells"
    state = _State(writer, most_cost)
    missing = [key for key in rows if key not in writer]
    slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def ask(key: bytes) -> None:
        async with slots:
            row, (prompt, answer) = rows[key], texts[key]
            try:
                await _score_row(state, scorer, key, row, prompt, answer, tokenizer)
            except TeacherRefused:
                raise
            except TeacherError as error:
                state.failures.append(str(error))
            state.done += 1
            if on_progress is not None:
                on_progress(len(rows) - len(missing) + state.done, len(rows))

    try:
        async with asyncio.TaskGroup() as group:
            for key in missing:
                group.create_task(ask(key))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first one cancelled the rest
    finally:
        state.write()
    return Unscored(state.num_other_tokens, state.num_unaffordable, tuple(state.failures))


class _State:
    """What came, and is not in a shard yet."""

    def __init__(self, writer: TargetWriter, most_cost: float | None):
        self.writer, self.most_cost = writer, most_cost
        self.pending: dict[bytes, Fitted] = {}
        self.reserved = 0.0
        self.done = self.num_other_tokens = self.num_unaffordable = 0
        self.failures: list[str] = []
        self._written_at = time.monotonic()

    def reserves(self, cost: float | None) -> bool:
        """Whether so much may be spent still; it is set aside then."""
        if self.most_cost is None or cost is None:
            return True
        if self.reserved + cost > self.most_cost:
            return False
        self.reserved += cost
        return True

    def add(self, key: bytes, fit: Fitted) -> None:
        self.pending[key] = fit
        if time.monotonic() - self._written_at >= _SHARD_SECONDS:
            self.write()

    def write(self) -> None:
        if self.pending:
            dropped = sum(fit.mass_dropped for fit in self.pending.values())
            rows = [fit.encoded for fit in self.pending.values()]
            self.writer.write(list(self.pending), rows, mass_dropped=dropped)
            self.pending.clear()
        self._written_at = time.monotonic()


async def _score_row(
    state: _State,
    scorer: TextScorer,
    key: bytes,
    row: Rendered,
    prompt: tuple[Message, ...],
    answer: str,
    tokenizer: Any,
) -> None:
    start = row.loss_mask.index(1)
    text = rendered_text(tokenizer, prompt, answer)
    if await scorer.tokens_of(prompt) != row.ids[:start]:
        state.num_other_tokens += 1
    elif await scorer.tokens_in(text) != row.ids:
        state.num_other_tokens += 1
    elif not state.reserves(scorer.cost_of(len(row.ids))):
        state.num_unaffordable += 1
    else:
        settings = state.writer.settings
        arrays = await scorer.score_tokens(row.ids, settings.k, start=start)
        fit = scored_targets(arrays, settings)
        if isinstance(fit, Fitted):
            state.add(key, fit)
        else:
            state.failures.append(f"it tells fewer than {settings.k} log-probabilities a token")
