"""Asks the teacher: records in, responses out, each kept in the ledger before it counts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from potstill.config import GenerationConfig
from potstill.errors import ConfigError
from potstill.models.several import SeveralTeachers
from potstill.models.sweeping import seldom_swept
from potstill.protocols import ChatModel, Task
from potstill.rundir import JsonLines
from potstill.teach.asker import Asker
from potstill.teach.ledger import Ledger
from potstill.teach.progress import Asking
from potstill.teach.requests import Place
from potstill.teach.rounds import ask_in_batches
from potstill.teach.spending import total
from potstill.types import Noun, Record

OnProgress = Callable[[int, int, str], None]
"""Called with answers so far, answers wanted, and a few words."""

Which = Literal["pilot", "rest", "all"]

_NUM_COMPARED = 16
"""First records whose requests must be what they were, before others are passed over."""

OnAsking = Callable[[Asking], None]


class Counts(Noun):
    """What became of the requests of one call of `generate`."""

    requested: int = 0
    """Answers wanted: prompts, times turns, times samples."""

    answered: int = 0
    """Answers that are there, cut ones counted, errors not."""

    reused: int = 0
    """Of the answered: found in the ledger, not asked again."""

    failed: int = 0
    """No answer came; asked again by the next run of the same command."""

    cut: int = 0
    """Of the answered: ended by max_new_tokens."""

    damaged: int = 0
    """Answers that were found damaged in the ledger, and set aside."""

    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    """Tokens of the answers that this call asked for."""

    num_unused: int = 0
    """Asked for in this call, and of no use: cut, withheld, empty, failed or cancelled."""

    num_unused_tokens: int = 0
    """Of prompts and answers of these, as the provider counted them."""

    num_unread: int = 0
    """Attempts that brought nothing to read and may have been paid for, retried ones among them."""

    cost: float | None = None
    """What this call cost; None where no price is known."""

    unused_cost: float | None = None
    """Of that: for the unused."""


async def generate(
    teacher: ChatModel,
    records: Iterable[Record],
    out: Path,
    *,
    task: Task,
    config: GenerationConfig,
    part: str = "train",
    requested: int | None = None,
    source: str = "",
    on_progress: OnProgress | None = None,
    on_asking: OnAsking | None = None,
    required_logprobs: int = 0,
    first_sample: int = 0,
    earlier: tuple[int, int] = (0, 0),
) -> Counts:
    """Puts the teacher's answer to every prompt into the ledger at `out`, where it is not yet.

    Running it again after a crash, a kill or Ctrl-C asks only for what is missing. An answer
    belongs to the exact request, so an edited input re-uses what still fits. A prompt that
    failed has an outcome that says why, and is asked again by the next call.

    A teacher with `batches` (`BatchModel`) is asked through these, in rounds, but for the pilot.

    In a conversation the teacher sees its own earlier answers, not the given ones. To stop it,
    cancel it, or send SIGTERM: answers on their way are waited for up to 30 seconds.

    Args:
        records: Read once from front to back, and once more before that to count the prompts.
        out: Folder of the ledger. Made if absent, else continued.
        part: Name of this input in the ledger; each has its own rows there.
        requested: How many answers are wanted, where that is known: `records` may be an
            iterator then.
        source: Hash of the records, and of what else makes their messages what they are. Where
            it is what it was the last time, answered rows of a file of lines are passed over
            unread. Not for tasks with several prompts a record.
        on_asking: Told about ten times a second how far it is.
        required_logprobs: Log-probabilities per token that a later loss needs; raises
            config.logprobs to at least this.
        first_sample: Number of the first wanted answer to each prompt; no pilot or source above 0.
        earlier: Requested and failed in earlier calls of the same asking: both count here too.

    Raises:
        TeacherRefused: The teacher will never answer: key, URL, model name, quota.
        TeacherError: More than one of the first config.pilot prompts failed, was empty or was
            cut; min_success_ratio or max_failures cannot be met any more; or max_cost is
            reached. All answers that came are kept.
        ConfigError: If max_cost is set and the teacher has no price.
        RunLocked: If another process has the ledger open.
        PotstillError: If the ledger cannot be written.
    """
    await _ready(teacher, config)
    if requested is None:
        requested = _num_prompts(records, task) * config.num_responses
    with _ended_softly(), seldom_swept(), Ledger(out) as ledger:
        make = functools.partial(
            Asker, teacher, task, ledger=ledger, requested=requested, earlier=earlier,
            required_logprobs=required_logprobs, tell=_teller(on_progress, on_asking),
        )  # fmt: skip
        return _counts(await _ask(make, records, config, part, source, first_sample))


async def _ready(teacher: ChatModel, config: GenerationConfig) -> None:
    if config.max_cost is not None and getattr(teacher, "price", None) is None:
        raise ConfigError("generation.max_cost needs teacher.price: {input: ..., output: ...}")
    if (prepare := getattr(teacher, "prepare", None)) is not None:
        await prepare()  # an endpoint may have to be asked who it is


def _source_of(teacher: ChatModel, source: str) -> str:
    """The hash of the records; with several teachers also of who they are, or none.

    The first requests, which tell whether the others are what they were, may all be one teacher's.
    And answers are looked at again where another teacher may have to mend them.
    """
    if not source or not isinstance(teacher, SeveralTeachers):
        return source
    return "" if teacher.how == "fallback" else f"{source} {teacher.identity}"


async def _ask(
    make: Callable[[GenerationConfig], Asker],
    records: Iterable[Record],
    config: GenerationConfig,
    part: str,
    source: str,
    first_sample: int,
) -> list[Asker]:
    """Goes through the input, once or in rounds; the last asker has counted all of it."""

    async def ask(settings: GenerationConfig, which: Which) -> Asker:
        asker = make(settings)
        await _ask_in_order(asker, records, config, part, source, first_sample, which)
        return asker

    asker = make(config)
    source = _source_of(asker.teacher, source)
    batches = getattr(asker.teacher, "batches", None)
    if batches is None:
        return [await ask(config, "all")]
    assert iter(records) is not records, "an iterator can be read once: batches take rounds"
    price = getattr(asker.teacher, "price", None)
    return await ask_in_batches(
        batches, asker.ledger, part=part, config=config, price=price, ask=ask
    )


def _teller(on_progress: OnProgress | None, on_asking: OnAsking | None) -> OnAsking:
    def tell(state: Asking) -> None:
        if on_asking:
            on_asking(state)
        if on_progress:
            on_progress(state.answered + state.failed, state.requested, state.text)

    return tell


def _num_prompts(records: Iterable[Record], task: Task) -> int:
    assert iter(records) is not records, "an iterator can be read once: say how many it gives"
    return sum(len(task.turns(record)) for record in records)


async def _ask_in_order(
    asker: Asker,
    records: Iterable[Record],
    config: GenerationConfig,
    part: str,
    source: str,
    first_sample: int,
    which: Which,
) -> None:
    """The pilot's prompts, then all others as they come, every sample of a record together.

    Args:
        which: The pilot alone, or all without a pilot, or all.
    """
    stream = enumerate(records)
    samples = range(first_sample, first_sample + config.num_responses)
    assert not first_sample or not (config.pilot or source), "these look at the first samples"
    first = list(itertools.islice(stream, max(config.pilot, _NUM_COMPARED)))
    asker.begin(part, source, first)
    num_pilots = 0 if which == "rest" else config.pilot
    pilots, rest = first[:num_pilots], itertools.chain(first[num_pilots:], stream)
    if source:
        assert isinstance(records, JsonLines), "only lines can be passed over"
        left_out = itertools.chain(range(len(pilots)), asker.ledger.passed())
        rest = records.without(left_out)
    await asker.ask_pilot(pilots)
    if which == "pilot":
        return
    more = (Place(n, record, sample) for n, record in pilots for sample in samples[1:])
    every = (Place(n, record, sample) for n, record in rest for sample in samples)
    await asker.ask_all(itertools.chain(more, every))
    asker.refuse_too_few()
    num_accounted = asker.tally.taken + asker.tally.postponed
    assert num_accounted == asker.requested, (vars(asker.tally), asker.requested)


def _counts(askers: Sequence[Asker]) -> Counts:
    """The last one has counted the whole input; what came before that is reused by it."""
    asker, tallies = askers[-1], [asker.tally for asker in askers]
    unused = total(tally.unused for tally in tallies)
    tally = asker.tally
    return Counts(
        requested=asker.requested,
        answered=tally.answered,
        reused=tally.answered - sum(each.answered - each.reused for each in tallies),
        failed=tally.failed,
        cut=tally.cut,
        damaged=asker.ledger.num_damaged,
        num_prompt_tokens=sum(each.num_prompt_tokens for each in tallies),
        num_new_tokens=sum(each.num_new_tokens for each in tallies),
        num_unused=unused.num,
        num_unused_tokens=unused.num_tokens,
        num_unread=sum(each.num_unread for each in tallies),
        cost=sum(a.purse.spent_now for a in askers) if asker.purse.price is not None else None,
        unused_cost=unused.cost,
    )


@contextlib.contextmanager
def _ended_softly() -> Iterator[None]:
    """SIGTERM cancels the work inside, and has its own effect once that has ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    before, came = signal.getsignal(signal.SIGTERM), False

    def stop() -> None:
        nonlocal came
        came = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGTERM)
