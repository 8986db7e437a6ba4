"""A server on loopback for benchmarks/asking.py, in a process of its own.

The first part of the path says how it answers: `plain` with 1.4 KB, `tiny` with a word,
`probable` with 300 tokens of 20 log-probabilities each, and `limited-R-WORD` with a word to at
most R requests a second (WORD: told says so in headers, silent does not). It does as little as it
can, so that the client is what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator

from aiohttp import web

ANSWER = "The parcel left the depot on Monday and is due on Thursday. " * 20
_LIMITED_SECONDS = 0.05


def completion(text: str, num_new_tokens: int, logprobs: object = None) -> bytes:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
        "finish_reason": "stop",
    }
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [choice],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": num_new_tokens,
                "total_tokens": 20 + num_new_tokens,
            },
        },
        separators=(",", ":"),
    ).encode()


def told_tokens(num_positions: int = 300, k: int = 20) -> dict[str, object]:
    """Log-probabilities as OpenAI tells them: text, value and bytes, without ids."""
    chance = random.Random(0)
    words = [f" {chance.randrange(16**4):x}" for _ in range(4000)]

    def entry(word: str, logprob: float) -> dict[str, object]:
        return {"token": word, "logprob": round(logprob, 6), "bytes": list(word.encode())}

    content = []
    for _ in range(num_positions):
        values = sorted((-3 * chance.expovariate(1) for _ in range(k)), reverse=True)
        top = [entry(*pair) for pair in zip(chance.sample(words, k), values, strict=True)]
        content.append({**top[0], "top_logprobs": top})
    return {"content": content, "refusal": None}


BODIES = {
    "plain": completion(ANSWER, 300),
    "tiny": completion("yes", 1),
    "probable": completion(ANSWER, 300, told_tokens()),
}


class Limit:
    """An allowance that fills evenly and holds one second's worth."""

    def __init__(self, per_second: float, *, is_told: bool):
        self.per_second, self.is_told = per_second, is_told
        self.left, self.at = per_second, time.monotonic()
        self.answered_at: list[float] = []
        self.num_refused = 0

    def take(self) -> tuple[bool, dict[str, str]]:
        """Whether one more is allowed now, and the headers of the reply."""
        now = time.monotonic()
        self.left = min(self.per_second, self.left + (now - self.at) * self.per_second)
        self.at = now
        is_allowed = self.left >= 1
        self.left -= is_allowed
        self.num_refused += not is_allowed
        if is_allowed:
            self.answered_at.append(now)
        if not self.is_told:
            return is_allowed, {}
        until_full = (self.per_second - self.left) / self.per_second
        return is_allowed, {
            "x-ratelimit-limit-requests": f"{self.per_second:g}",
            "x-ratelimit-remaining-requests": f"{int(self.left)}",
            "x-ratelimit-reset-requests": f"{int(1000 * until_full)}ms",
        }


async def serve() -> None:
    """Answers until it is ended; says its port first."""
    limits: dict[str, Limit] = {}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        body = BODIES[request.match_info["how"]]
        return web.Response(body=body, content_type="application/json")

    async def limited(request: web.Request) -> web.Response:
        await request.read()
        rate, word = request.match_info["rate"], request.match_info["word"]
        limit = limits.get(request.path)
        if limit is None:
            limit = limits[request.path] = Limit(float(rate), is_told=word == "told")
        is_allowed, headers = limit.take()
        if is_allowed:
            await asyncio.sleep(_LIMITED_SECONDS)
        body = BODIES["tiny"] if is_allowed else b'{"error": {"message": "slow down"}}'
        return web.Response(
            body=body,
            status=200 if is_allowed else 429,
            headers=headers,
            content_type="application/json",
        )

    async def counted(request: web.Request) -> web.Response:
        limit = limits[request.query["path"]]
        begin, end = (limit.answered_at[0] + float(request.query[word]) for word in ("from", "to"))
        num = sum(begin <= at < end for at in limit.answered_at)
        share = num / ((end - begin) * limit.per_second)
        return web.json_response({"share": share, "num_refused": limit.num_refused})

    app = web.Application()
    app.router.add_get("/counted", counted)
    app.router.add_post("/limited-{rate}-{word}/v1/chat/completions", limited)
    app.router.add_post("/{how}/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(serve())
