"""Models and an endpoint whose answers come piece by piece, at known times."""

import asyncio
import json

from aiohttp import web
from fake_endpoint import FakeEndpoint, completion

from potstill.types import Response


def chunk(finish=None, **delta) -> dict:
    """A chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "model": "fake", "choices": [choice]}


def usage(prompt: int, answer: int) -> dict:
    """The last chunk, which counts tokens."""
    counted = {"prompt_tokens": prompt, "completion_tokens": answer}
    return {**chunk(), "choices": [], "usage": {**counted, "total_tokens": prompt + answer}}


def spoken(*pieces, finish="stop", prompt=7) -> list[dict]:
    """All chunks of an answer that comes in these pieces, a token each."""
    said = [chunk(content=piece) for piece in pieces]
    return [chunk(role="assistant", content=""), *said, chunk(finish), usage(prompt, len(pieces))]


class StreamingEndpoint(FakeEndpoint):
    """Streams where it is asked to, with pauses before the first piece and between pieces.

    Args:
        events: What is sent; (seconds, event) pairs wait first.
        slots: Requests that are answered at once; others wait for their turn.
        knows_options: Whether it takes `stream_options`.
        end: Bytes between events, and how they are cut in two on their way.
    """

    def __init__(self, events=None, *, slots=100, knows_options=True, cuts=False, key=None):
        super().__init__()
        self.events = events or [(0.0, event) for event in spoken("Yes", ".")]
        self.slots, self.knows_options, self.cuts = asyncio.Semaphore(slots), knows_options, cuts
        self.open, self.most_open = 0, 0

    def refuses(self, request, body):
        if "stream_options" in body and not self.knows_options:
            return 400, {"error": {"message": "Unknown field: stream_options"}}
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if not body.get("stream") or self.script or self.refuses(request, body):
            return await super().handle(request)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        async with self.slots:
            await reply.prepare(request)
            for seconds, event in self.events:
                if seconds:
                    await asyncio.sleep(seconds)
                data = f"data: {json.dumps(event)}\n\n".encode()
                if self.cuts:
                    await reply.write(data[:9])
                    await asyncio.sleep(0)
                    data = data[9:]
                await reply.write(data)
            await reply.write(b": a comment\n\ndata: [DONE]\n\n")
        self.open -= 1
        return reply


class OnePiece(FakeEndpoint):
    """A server that never heard of streams and answers as always."""

    def __init__(self):
        super().__init__(answer=lambda body: completion("Yes."))


class Speaking:
    """A model that streams: the first token after `first`, the others every `gap` seconds.

    Args:
        slots: Answers made at once; others wait.
        num_tokens: Of each answer, or a function of how many were asked before.
    """

    def __init__(self, *, first=0.0, gap=0.0, num_tokens=3, slots=100, fails=(), name="speaking"):
        self.name, self.max_in_flight = name, 100
        self.first, self.gap, self.num_tokens = first, gap, num_tokens
        self.fails, self.asked, self.open, self.most_open = fails, [], 0, 0
        self.slots = asyncio.Semaphore(slots)
        self.setting = {"engine": "fake", "threads": 1}

    async def stream(self, record, sampling, on_token):
        number = len(self.asked)
        self.asked.append(record.id)
        if number in self.fails:
            raise self.fails[number]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        async with self.slots:
            await asyncio.sleep(self.first)
            on_token()
            for _ in range(self.num_tokens - 1):
                await asyncio.sleep(self.gap)
                on_token()
        self.open -= 1
        return Response(
            record_id=record.id, text="a", finish_reason="stop",
            num_prompt_tokens=11, num_new_tokens=self.num_tokens,
        )  # fmt: skip

    async def respond(self, record, sampling, *, turn=0, sample=0):
        raise AssertionError("a model that streams is timed by its stream")

    async def close(self):
        pass
