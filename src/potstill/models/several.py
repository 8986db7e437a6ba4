"""Several teachers as one: chosen by rule, one in reserve of the other, or all of them for a vote.

Each request goes to one of them, and is that one's: its name, its price, its fingerprint.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from potstill.config import PriceConfig, TeacherConfig, Where
from potstill.data.answers import BadRow
from potstill.data.select import holds
from potstill.errors import DataError, PotstillError, TeacherError, TeacherRefused
from potstill.models.fingerprint import identity_of
from potstill.protocols import ChatModel, Task
from potstill.tasks.agreement import agreeing
from potstill.types import Record, Response, Sampling

LOOK_SECONDS = 0.2
"""How often it is looked whether a teacher that is asked is in trouble."""

PROBE_SECONDS = 60.0
"""How often one request is let through to a teacher in trouble, to see whether it is back."""

PATIENCE_SECONDS = 30.0
"""How long that request waits for it, before the next teacher gets it."""


class PassedOver(Exception):
    """A teacher is in trouble or refuses everything, and another is asked: not an outcome."""


class Member(NamedTuple):
    """One of several teachers; or a teacher alone, whose label is empty."""

    label: str
    """Tells it from the others, in responses, counts and messages."""

    model: ChatModel
    rule: Where | None = None
    """Which records it answers, where they are routed; None is all that are left."""

    @property
    def price(self) -> PriceConfig | None:
        """What its tokens cost; None where nothing is charged, or nobody knows."""
        return getattr(self.model, "price", None)


class SeveralTeachers:
    """A `ChatModel` that is several.

        route      the first one whose rule holds for the record
        fallback   the first one, and the next where its answer will not do
        vote       all; a sample is an answer of one of them

    Asking through `order` and `ask` keeps every outcome apart; `respond` gives the one answer
    that all of this comes to, for an evaluation.

    Args:
        task: Says which answers agree.
        will_do: Whether an answer is good enough not to ask the next one.
        clock, look_seconds: Time, for tests.
    """

    def __init__(
        self,
        members: Sequence[Member],
        how: Literal["route", "fallback", "vote"],
        *,
        task: Task,
        will_do: Callable[[Record, Response], bool] = lambda record, response: True,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ):
        self.members, self.how = tuple(members), how
        self.will_do = will_do
        self.out: dict[str, str] = {}
        """Label -> why this teacher is not asked any more, in a fallback."""

        self.name = f"{', '.join(member.label for member in members)} ({how})"
        sizes = [member.model.max_in_flight for member in members]
        self.max_in_flight = max(sizes) if how == "fallback" else sum(sizes)
        self._task, self._clock, self._look_seconds = task, clock, look_seconds
        self._probed_at: dict[str, float] = {}

    @property
    def identity(self) -> str:
        """All of them, with their rules: what answers as a whole can be re-used for."""
        parts = [
            [identity_of(m.model), m.rule and m.rule.model_dump(mode="json", exclude_none=True)]
            for m in self.members
        ]
        return json.dumps([self.how, parts], sort_keys=True)

    @property
    def price(self) -> PriceConfig | None:
        """The highest price of each kind of token; None where no teacher has a price."""
        prices = [member.price for member in self.members if member.price is not None]
        if not prices:
            return None
        return PriceConfig(
            input=max(price.input for price in prices),
            output=max(price.output for price in prices),
        )

    @property
    def setting(self) -> dict[str, Any]:
        """What its speed is only true for."""
        settings = {m.label: getattr(m.model, "setting", {}) for m in self.members}
        return {"engine": self.how, "teachers": settings}

    @property
    def state(self) -> str:
        """`running`, or which of them are out, paused or still starting, and why."""
        said = [f"{label} is out: {why}" for label, why in self.out.items()]
        for member in self.members:
            state = getattr(member.model, "state", "running")
            if state != "running" and member.label not in self.out:
                said.append(f"{member.label}: {state}")
        return "; ".join(said) or "running"

    @property
    def num_retries(self) -> int:
        """Requests that were sent again."""
        return sum(getattr(member.model, "num_retries", 0) for member in self.members)

    @property
    def num_voices(self) -> int:
        """How many answers to one prompt make up its answer."""
        return len(self.members) if self.how == "vote" else 1

    def order(self, record: Record, sample: int = 0) -> tuple[Member, ...]:
        """Who is asked for a sample of a record: one, or those that stand in for each other.

        Raises:
            DataError: If no rule holds for the record, or one cannot be applied to it.
        """
        if self.how == "vote":
            return (self.members[sample],)
        if self.how == "route":
            return (self.members[route(record, [member.rule for member in self.members])],)
        return tuple(m for m in self.members if m.label not in self.out) or self.members

    def everyone(self, record: Record) -> tuple[Member, ...]:
        """Who may get to see a record."""
        return self.order(record) if self.how == "route" else self.members

    async def prepare(self) -> None:
        """Makes them ready. In a fallback one that cannot be is out, as long as another can.

        Raises:
            PotstillError: As the teacher that cannot.
        """
        asked = [
            (member, prepare)
            for member in self.members
            if member.label not in self.out
            and (prepare := getattr(member.model, "prepare", None)) is not None
        ]
        found = await asyncio.gather(*(prepare() for _, prepare in asked), return_exceptions=True)
        for (member, _), error in zip(asked, found, strict=True):
            if not isinstance(error, BaseException):
                continue
            if self.how != "fallback" or not isinstance(error, PotstillError):
                raise error
            self._leave_out(member, error)

    async def ask(
        self,
        member: Member,
        record: Record,
        sampling: Sampling,
        *,
        turn: int = 0,
        sample: int = 0,
        is_last: bool = True,
    ) -> Response:
        """What one of them says.

        Args:
            is_last: Whether nobody stands in for it: it is waited for then, whatever its trouble.

        Raises:
            PassedOver: Another is to be asked in its place.
            TeacherRefused, TeacherError: As the teacher; in a fallback it is only refused once
                all of them refuse.
        """
        call = member.model.respond(record, sampling, turn=turn, sample=sample)
        if self.how != "fallback":
            return await call
        try:
            return await (call if is_last else self._unless_in_trouble(member, call))
        except TeacherRefused as error:
            self._leave_out(member, error)
            raise PassedOver(str(error)) from None

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """The one answer of all: the routed one, the first that will do, or the most frequent.

        Where two answers are equally frequent, the one that an earlier teacher gives.

        Raises:
            DataError: As `order`.
            TeacherRefused, TeacherError: If no answer came.
        """
        if self.how == "vote":
            return await self._most_frequent(record, sampling, turn)
        last = failure = None
        members = self.order(record, sample)
        for member in members:
            is_last = member is members[-1]
            try:
                found = await self.ask(
                    member, record, sampling, turn=turn, sample=sample, is_last=is_last
                )
            except PassedOver:
                continue
            except TeacherRefused:
                raise
            except TeacherError as error:
                failure = error
                continue
            last = found.model_copy(update={"teacher": member.label})
            if self.will_do(record, last):
                return last
        if last is not None:
            return last
        if failure is not None:
            raise failure
        return await self.respond(record, sampling, turn=turn, sample=sample)

    def voice(self, record: Record, responses: Sequence[Response]) -> Response:
        """The most frequent of all answers to a prompt; the first one where none can be read."""
        whole = [response for response in responses if response.finish_reason == "stop"]
        groups = agreeing(record, [response.text for response in whole], self._task)
        return whole[groups[0][0]] if groups else (whole or responses)[0]

    async def close(self) -> None:
        """Closes all of them."""
        found = await asyncio.gather(
            *(member.model.close() for member in self.members), return_exceptions=True
        )
        for error in found:
            if isinstance(error, BaseException):
                raise error

    def _leave_out(self, member: Member, error: PotstillError) -> None:
        self.out[member.label] = str(error)
        if len(self.out) == len(self.members):
            raise error from None

    async def _unless_in_trouble(self, member: Member, call: Any) -> Response:
        """The answer, unless the teacher is paused: then only a probe waits for it, a while."""
        asking, waits_since = asyncio.ensure_future(call), math.inf
        try:
            while not (await asyncio.wait({asking}, timeout=self._look_seconds))[0]:
                state = str(getattr(member.model, "state", "running"))
                if not state.startswith("paused"):
                    continue
                now = self._clock()
                if waits_since < math.inf:
                    if now - waits_since < PATIENCE_SECONDS:
                        continue
                elif now - self._probed_at.get(member.label, -math.inf) >= PROBE_SECONDS:
                    self._probed_at[member.label] = waits_since = now
                    continue
                raise PassedOver(f"{member.label} is {state}")
            return asking.result()
        finally:
            asking.cancel()

    async def _most_frequent(self, record: Record, sampling: Sampling, turn: int) -> Response:
        found = await asyncio.gather(
            *(m.model.respond(record, sampling, turn=turn, sample=0) for m in self.members),
            return_exceptions=True,
        )
        said, failure = [], None
        for member, one in zip(self.members, found, strict=True):
            if isinstance(one, Response):
                said.append(one.model_copy(update={"teacher": member.label}))
            elif type(one) is TeacherError:
                failure = one
            else:
                raise one
        if not said:
            raise failure or TeacherError("no teacher answered")
        return self.voice(record, said)


def route(record: Record, rules: Sequence[Where | None]) -> int:
    """The number of the first rule that holds for a record; one that is None always does.

    Raises:
        DataError: If none holds, or one cannot be applied to the record.
    """
    row = {**record.metadata, "metadata": record.metadata}
    try:
        for number, rule in enumerate(rules):
            if rule is None or holds(rule, row):
                return number
    except BadRow as error:
        raise DataError(f"record {record.id} cannot be given to a teacher: {error}") from None
    fields = ", ".join(list(record.metadata)[:12]) or "nothing"
    raise DataError(
        f"no teacher's rule (teacher.when) holds for record {record.id}, whose metadata has "
        f"{fields}. Add a last teacher without a rule, which takes the rest, or leave such rows "
        f"out with data.where"
    )


def asked_in_order(model: ChatModel, record: Record, sample: int) -> tuple[Member, ...]:
    """Who is asked for a sample of a record, in order; a model alone is the only one."""
    if isinstance(model, SeveralTeachers):
        return model.order(record, sample)
    return (Member("", model),)


def with_reserve(model: ChatModel) -> SeveralTeachers | None:
    """The model where its answers are looked at before the next teacher is asked, or not."""
    return model if isinstance(model, SeveralTeachers) and model.how == "fallback" else None


def labels_of(teachers: Sequence[TeacherConfig]) -> tuple[str, ...]:
    """A name for each of several teachers: its model's or place's, numbered where two are equal."""
    found: list[str] = []
    for teacher in teachers:
        place = teacher.place.rstrip("/")
        name = teacher.model or (place if "://" in place else place.rpartition("/")[2])
        label, number = name, 2
        while label in found:
            label, number = f"{name} {number}", number + 1
        found.append(label)
    return tuple(found)
