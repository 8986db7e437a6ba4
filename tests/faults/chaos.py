"""An endpoint in a process of its own that spoils one reply in eleven, and writes down the others.

    python chaos.py SEED FILE      its URL is the first line on standard output

FILE gets one line for each answer that went out whole: what a provider would charge for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fake_endpoint import completion
from fault_server import FaultServer, Step, cuts, hangs, resets, says, serving

SHARE = 1 / 11


def answer_to(question: str) -> str:
    """What the model says: it depends on the question alone."""
    return hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=40).hexdigest()


class Chaos(FaultServer):
    """Answers what it is asked, now and then with a fault instead."""

    def __init__(self, seed: str, file: Path):
        super().__init__()
        self._chance = random.Random(seed)
        self._file = file.open("a", buffering=1)

    def step_for(self, body: bytes) -> Step:
        question = json.loads(body)["messages"][-1]["content"]
        data = json.dumps(completion(answer_to(question))).encode()
        if self._chance.random() < SHARE:
            return self._fault(data)
        self._file.write(json.dumps(question) + "\n")
        return says(data)

    def _fault(self, data: bytes) -> Step:
        chance = self._chance
        busy = ["1", "Fri, 09 Jan 2099 00:00:00 GMT", "-1", "NaN", "1e9", "soon"]
        return chance.choice(
            [
                says(b"busy", "429 Too Many Requests", **{"Retry-After": chance.choice(busy)}),
                says(b"oops", "503 Service Unavailable"),
                says(b"<html>It works!</html>", **{"Content-Type": "text/html"}),
                says(b""),
                says(data[: chance.randrange(1, len(data))]),
                cuts(data[: chance.randrange(1, len(data))]),
                resets(),
                resets(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
                hangs(b"HTTP/1.1 200 OK\r\nContent-Le"),
            ]
        )


async def main() -> None:
    async with serving(Chaos(sys.argv[1], Path(sys.argv[2]))) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
