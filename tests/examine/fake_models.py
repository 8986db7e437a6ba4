"""Models and tasks made of a function, for tests of the examiner."""

import asyncio

from potstill.errors import TeacherError
from potstill.types import Message, Record, Response, Sample


def sample(i, *, text="x", prompt="a question", **facts) -> Sample:
    """A sample with only what a test is about."""
    facts.setdefault("prediction", text)
    return Sample(
        record_id=str(i), text=text, prompt=(Message(role="user", content=prompt),), **facts
    )


def record(i, question: str = "q", reference: str | None = None, **metadata) -> Record:
    message = Message(role="user", content=f"{question} {i}")
    return Record(id=f"r{i}", messages=(message,), reference=reference, metadata=metadata)


class Answering:
    """Says what a function of the record says; an exception class is raised."""

    def __init__(self, answer, *, name="fake", max_in_flight=4, seconds=0.0):
        self.name, self.max_in_flight, self.seconds = name, max_in_flight, seconds
        self.answer, self.asked, self.open, self.most_open = answer, [], 0, 0

    async def respond(self, record, sampling, *, turn=0, sample=0) -> Response:
        self.asked.append((record.id, turn))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(self.seconds)
        self.open -= 1
        said = self.answer(record)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Response):
            return said
        return Response(
            record_id=record.id, turn=turn, text=said, finish_reason="stop", num_new_tokens=3
        )

    async def close(self) -> None:
        pass


class Topics:
    """A closed task: the answer is the last word."""

    name = "topics"
    default_metrics = ("accuracy", "macro_f1")
    closed = True

    def turns(self, record):
        return (record,)

    def parse(self, text, record):
        return text.split()[-1].strip(".") if text.split() else None

    def correct(self, prediction, record):
        """the last word is the reference."""
        return None if record.reference is None else float(prediction == record.reference)


class Talk(Topics):
    """Two assistant turns a record."""

    name = "talk"
    default_metrics = ("accuracy",)
    closed = False

    def turns(self, record):
        return (record, record)


def failing(message="no answer after 3 tries") -> TeacherError:
    return TeacherError(message)
