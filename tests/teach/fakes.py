"""Teachers that answer from a table, fail on demand and remember what they were asked."""

from __future__ import annotations

import asyncio

from potstill.config import PriceConfig
from potstill.errors import TeacherError
from potstill.types import Message, Record, Response


class FakeTeacher:
    """Answers `say(record, sampling)`; a TeacherError or a Response from it is passed on."""

    def __init__(self, say=None, *, name="fake", max_in_flight=4, price=None, delay=0.0):
        self.say = say or (lambda record, sampling: f"to {record.messages[-1].content}")
        self.name, self.max_in_flight, self.delay = name, max_in_flight, delay
        self.price: PriceConfig | None = price
        self.asked: list[Record] = []
        self.samplings = []
        self.open = self.most_open = 0

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.asked.append(record)
        self.samplings.append(sampling)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.delay)
            said = self.say(record, sampling)
        finally:
            self.open -= 1
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Response):
            return said
        cost = 0.001 if self.price else None
        return Response(
            record_id=record.id, turn=turn, sample=sample, text=said, finish_reason="stop",
            num_prompt_tokens=5, num_new_tokens=2, cost=cost,
        )  # fmt: skip

    async def close(self):
        return None


def prompts(number, start=0):
    return [
        Record(id=f"r{n}", messages=(Message(role="user", content=f"question {n}"),))
        for n in range(start, start + number)
    ]


def failing_on(*ids):
    def say(record, sampling):
        return TeacherError(f"no luck with {record.id}") if record.id in ids else "fine"

    return say
