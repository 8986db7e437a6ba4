"""A teacher that is asked through its provider's batches: half the price, within a day."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, TeacherError, TeacherRefused
from potstill.models.batch_api import Batch
from potstill.models.batch_table import BatchTable, Intent, Place, Spool
from potstill.models.chat_format import Answer, NotAnAnswer, read_json
from potstill.models.endpoint import EndpointModel
from potstill.models.failures import Failure, gave_up, named, reason_of
from potstill.models.fingerprint import request_fingerprint
from potstill.protocols import ChatModel
from potstill.rundir import LedgerDir
from potstill.types import Record, Response, Sampling

_FIRST_SECONDS, _GROWTH, _LONGEST_SECONDS = 5.0, 1.5, 600.0
_CREATE_TRIES = 3
_CLOCKS_APART = 86_400.0
"""Our clock and the provider's differ by so much at most, the making of a batch included."""

_KEPT_SECONDS = 28 * 86_400.0
"""How long results can be fetched; the providers say 29 and 30 days."""


class Postponed(Exception):
    """The answer comes with a batch, in another round: not an outcome, and no error."""


class Batches:
    """The batches of one teacher in one run: makes them, waits for them, knows what they brought.

    Args:
        most_requests, most_bytes: Limits of one batch, where they are lower than the provider's.
        wall_clock, sleep: Time, for tests.
    """

    def __init__(
        self,
        endpoint: EndpointModel,
        *,
        most_requests: int | None = None,
        most_bytes: int | None = None,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._endpoint, self._api = endpoint, endpoint.open_batches()
        self._most_requests = most_requests or self._api.most_requests
        self._most_bytes = most_bytes or self._api.most_bytes
        self._wall_clock, self._sleep = wall_clock, sleep
        self._table: BatchTable | None = None
        self.reset()

    def reset(self) -> None:
        """From now on requests are answered at once, without batches."""
        self.mode = "online"
        self.num_waiting = 0
        self.admits: Callable[[Record, Sampling], bool] = lambda record, sampling: True
        self.given_up = ""
        """Why what is missing will not come in this run; empty while it may."""

        self._first_missing: Sampling | None = None
        self._spools: list[Spool] = []
        self._foreign: set[str] = set()
        self._num_submitted = 0
        self._has_asked = False

    def open(self, folder: LedgerDir, part: str) -> None:
        """Takes up what is known of the batches beside a ledger, for one part of the input."""
        self.reset()
        self._folder, self._asker = folder, f"{part} {self._endpoint.identity}"
        self._table = BatchTable(folder)

    def close(self) -> None:
        """Lets go of the files; batches that are under way go on."""
        for spool in self._spools:
            with contextlib.suppress(OSError):  # a full disk; the file is removed anyway
                spool.file.close()
        if self._table is not None:
            self._table.close()
            self._table = None
        self.reset()

    def collect(self) -> None:
        """From now on what came is given out, and the rest counted."""
        self.mode, self.num_waiting, self._first_missing = "collect", 0, None

    async def post(self, admits: Callable[[Record, Sampling], bool]) -> None:
        """From now on what has not come is written into new batches, as far as it is admitted."""
        if not self._has_asked and self._first_missing is not None:
            # What a model refuses of a request's fields is learned from one, not from all.
            sampling = self._first_missing
            await self._endpoint.dry_call(sampling, top_logprobs=sampling.top_logprobs)
            self._has_asked = True
        self.mode, self.admits = "post", admits

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int, sample: int
    ) -> Response:
        """The answer of a batch, or at once where none is open; raises Postponed until it came."""
        if self.mode == "online":
            self._has_asked = True
            return await self._endpoint.respond(record, sampling, turn=turn, sample=sample)
        self._endpoint.refuse_what_it_cannot(sampling)
        fingerprint = request_fingerprint(self._endpoint.identity, record.messages, sampling)
        custom_id = self._known.custom_id(record.id, turn, sample, fingerprint)
        place = self._known.find(custom_id)
        if self.mode == "post":
            if place is None and self.admits(record, sampling):
                self._write(custom_id, record, sampling)
            raise Postponed
        if place is not None:
            answer = self._answer_at(place, sampling)
            share = self._endpoint.price.batch if self._endpoint.price else 1.0
            response = self._endpoint.response_to(
                record, sampling, answer, turn=turn, sample=sample, price_share=share
            )
            is_unread = reason_of(answer.error) == Failure.UNREADABLE
            return response.model_copy(update={"num_unread": int(is_unread)})
        if self.given_up:
            raise gave_up(Failure.NOT_IN_BATCH, self.given_up)
        self.num_waiting += 1
        self._first_missing = self._first_missing or sampling
        raise Postponed

    async def gather(self, tell: Callable[[str], None]) -> None:
        """Waits for every batch of this part that is under way, and fetches its results.

        Stopping it leaves the batches as they are; the next run finds them.

        Args:
            tell: Is told now and then how far they are, in a few words.

        Raises:
            TeacherRefused, TeacherError: The provider does not tell.
        """
        for intent in self._known.open_ones(self._asker):
            if intent.intended_at < self._wall_clock() - _KEPT_SECONDS:
                self._known.end(intent.id, "settled")
        waiting = [await self._made(intent) for intent in self._known.open_ones(self._asker)]
        waiting = [intent for intent in waiting if intent is not None]
        seconds, num_came, problems = _FIRST_SECONDS, 0, set()
        while waiting:
            found = [await self._api.find(intent.batch) for intent in waiting]
            still = []
            for intent, batch in zip(waiting, found, strict=True):
                if not batch.is_ended:
                    still.append(intent)
                elif (number := await self._fetch(intent, batch)) is None:
                    self._foreign.add(batch.id)
                    other = await self._made(intent._replace(batch=""))
                    still += [other] if other else []
                else:
                    num_came += number
                    problems.add(batch.problem)
            if still:
                num_done = sum(batch.num_done for batch in found)
                num_requests = sum(intent.num_requests for intent in waiting)
                which = "a batch" if len(waiting) == 1 else f"{len(waiting)} batches"
                tell(f"waiting for {which}: {num_done:,} of {num_requests:,} requests done")
                await self._sleep(seconds)
                seconds = min(_LONGEST_SECONDS, seconds * _GROWTH)
            waiting = still
        if self._num_submitted and not num_came:
            reasons = ", ".join(sorted(problems - {""})) or "no reason was given"
            self.given_up = f"a batch ended without any result ({reasons})"
        self._num_submitted = 0

    def settle(self) -> None:
        """What was gathered is in the ledger: nothing more is awaited of these batches."""
        for intent in self._known.open_ones(self._asker):
            self._known.end(intent.id, "settled")

    async def submit(self) -> int:
        """Makes batches of all that was posted; returns of how many requests.

        Raises:
            TeacherRefused: The provider takes none.
            TeacherError: It does not say whether it took one. The next run finds that out.
        """
        spools, self._spools = self._spools, []
        for spool in spools:
            if not spool.file.closed:
                spool.seal(self._api.tail(spool.intent))
        for spool in spools:
            self._known.intend(spool.intent, self._asker, spool.num_requests, self._wall_clock())
            batch, is_adopted = await self._create(spool)
            self._known.made(spool.intent, batch.id, is_adopted=is_adopted)
            self._num_submitted += spool.num_requests
        return self._num_submitted

    async def check(self) -> None:
        """Raises TeacherRefused where the endpoint has no batches."""
        await self._api.made_since(self._wall_clock())

    # Making

    @property
    def _known(self) -> BatchTable:
        assert self._table is not None, "open it first"
        return self._table

    def _write(self, custom_id: str, record: Record, sampling: Sampling) -> None:
        body = self._endpoint.body_of(record.messages, sampling)
        line, joint = self._api.line(custom_id, body), self._api.joint
        spool = self._spools[-1] if self._spools else None
        if spool is not None:
            tail = self._api.tail(spool.intent)
            num_bytes = spool.num_bytes + len(joint) + len(line) + len(tail)
            if spool.num_requests >= self._most_requests or num_bytes > self._most_bytes:
                spool.seal(tail)
                spool = None
        if spool is None:
            spool = Spool(self._folder, self._api.head)
            self._spools.append(spool)
        spool.add(line, joint)

    async def _create(self, spool: Spool) -> tuple[Batch, bool]:
        """Makes the batch once: where nobody knows whether it was made, the list is asked.

        Returns:
            The batch, and whether it was found in the list.
        """
        seconds, tries = _FIRST_SECONDS, 0
        while True:
            try:
                return await self._api.create(spool.path, spool.intent), False
            except TeacherRefused:
                raise
            except TeacherError:
                tries += 1
                await self._sleep(seconds)
                seconds *= 2
                (intent,) = [i for i in self._known.open_ones(self._asker) if i.id == spool.intent]
                batch = await self._orphan(intent)
                if batch is not None:
                    return batch, True
                if tries >= _CREATE_TRIES:
                    raise

    async def _made(self, intent: Intent) -> Intent | None:
        """The intent with the provider's name of its batch; None where there never was one."""
        if intent.batch:
            return intent
        batch = await self._orphan(intent)
        if batch is None:
            self._known.end(intent.id, "never_made")
            return None
        self._known.made(intent.id, batch.id, is_adopted=True)
        return intent._replace(batch=batch.id, is_adopted=True)

    async def _orphan(self, intent: Intent) -> Batch | None:
        """The batch that was made for an intent and not remembered.

        Where the provider keeps no note of ours it is one of so many requests that is not known
        yet, made nearest to that time; its results say later whether it is ours indeed.
        """
        known, since = self._known.batches() | self._foreign, intent.intended_at - _CLOCKS_APART
        near: list[tuple[float, str, Batch]] = []
        for batch in await self._api.made_since(since):
            if batch.intent is not None:
                if batch.intent == intent.id:
                    return batch
                continue
            apart = abs(batch.created_at - intent.intended_at)
            is_alike = batch.id not in known and batch.num_requests == intent.num_requests
            if is_alike and apart <= _CLOCKS_APART:
                near.append((apart, batch.id, batch))
        return min(near)[2] if near else None

    # Results

    async def _fetch(self, intent: Intent, batch: Batch) -> int | None:
        """Fetches what a batch brought; returns how many results, None where it is not ours."""
        for number, output in enumerate(batch.outputs):
            file = self._folder.batch_output(intent.id, number)
            await self._api.fetch(output, file)
            self._known.keep(self._results(file, intent.id, number))
        if intent.is_adopted and batch.intent is None and not self._is_ours(intent):
            self._known.forget(intent.id)
            return None
        return self._known.num_results(intent.id)

    def _results(self, file: Path, intent: str, number: int) -> Iterator[tuple[str, Place]]:
        start = 0
        with file.open("rb") as lines:
            for line in lines:
                place, start = Place(intent, number, start, len(line)), start + len(line)
                try:
                    row = self._api.read(read_json(line))
                except NotAnAnswer:
                    continue  # its request has no result then, and is asked again
                if not row.is_unasked:
                    yield str(row.custom_id), place

    def _is_ours(self, intent: Intent) -> bool:
        """Whether a result is of a request that was written down for the intent."""
        with self._folder.batch_input(intent.id).open("rb") as lines:
            for line in lines:
                try:
                    custom_id = str(read_json(line.rstrip(b",\r\n"))["custom_id"])
                except (NotAnAnswer, LookupError, TypeError):
                    continue  # the file's first and last lines
                if (place := self._known.find(custom_id)) and place.intent == intent.id:
                    return True
        return False

    def _answer_at(self, place: Place, sampling: Sampling) -> Answer:
        with self._folder.batch_output(place.intent, place.output).open("rb") as file:
            file.seek(place.start)
            row = self._api.read(read_json(file.read(place.length)))
        if row.failed is not None:
            return row.failed
        try:
            return self._endpoint.answer_in(row.reply, sampling)
        except NotAnAnswer as error:
            text = named(Failure.UNREADABLE, str(error))[:500]
            return Answer(finish_reason="error", error=text)


class BatchModel:
    """An endpoint that is asked through batches: a `ChatModel` with `batches`.

    Until `Batches.open` and `collect` it answers at once, as the endpoint does.

    Raises:
        ConfigError: If the endpoint's API has no batches.
    """

    def __init__(self, endpoint: EndpointModel, **settings: Any):
        self._endpoint = endpoint
        self.batches = Batches(endpoint, **settings)
        self.max_in_flight = endpoint.max_in_flight

    @property
    def name(self) -> str:
        """The endpoint's own, as all that follows."""
        return self._endpoint.name

    identity = property(lambda self: self._endpoint.identity)
    price = property(lambda self: self._endpoint.price)
    setting = property(lambda self: self._endpoint.setting)
    state = property(lambda self: self._endpoint.state)
    num_retries = property(lambda self: self._endpoint.num_retries)
    num_in_flight = property(lambda self: self._endpoint.num_in_flight)

    async def prepare(self) -> None:
        """Finds the model's name out where it is not given."""
        await self._endpoint.prepare()

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`; raises Postponed where that takes a batch."""
        return await self.batches.respond(record, sampling, turn=turn, sample=sample)

    async def close(self) -> None:
        """Closes the endpoint; batches that are under way go on."""
        self.batches.close()
        await self._endpoint.close()


def in_batches(model: ChatModel) -> BatchModel:
    """The model, asked through its provider's batches.

    Raises:
        ConfigError: If it has none.
    """
    if not isinstance(model, EndpointModel):
        raise ConfigError(
            f"teacher.batch is for the batch interfaces of OpenAI and Anthropic, and {model.name} "
            f"is asked on this machine; use teacher.batch: false"
        )
    return BatchModel(model)
