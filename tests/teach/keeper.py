"""Keeps answers in a ledger, and says which of them were acknowledged: in a process to kill."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from potstill.teach.ledger import Ledger
from potstill.teach.outcomes import key_of
from potstill.types import Response

Say = Callable[[str, int], None]


def outcome(number: int, text: str | None = None, **changes) -> Response:
    """The answer to request `number`."""
    return Response(
        **{
            "record_id": f"r{number}",
            "text": f"answer {number} é\u2028" * 20 if text is None else text,
            "finish_reason": "stop",
            "fingerprint": f"{number:032x}",
            "cost": 0.5,
            **changes,
        }
    )


async def keep(folder: Path, num: int, num_open: int, say=None, **options) -> None:
    """Keeps what is missing of `num` outcomes, so many at a time."""
    say = say or (lambda word, number: None)
    with Ledger(folder, **options) as ledger:
        ledger.begin("train")
        numbers = iter(range(num))

        async def work() -> None:
            for number in numbers:
                if ledger.answer(key_of(outcome(number))) is None:
                    say("asked", number)
                    await asyncio.sleep(0)
                    await ledger.put(outcome(number), number)
                    say("kept", number)

        await asyncio.gather(*(work() for _ in range(num_open)))


def in_child(
    work: Callable[[Say], Coroutine[None, None, None]],
    seconds: float | None,
    has_begun: Callable[[], bool] = lambda: True,
) -> dict[str, list[int]]:
    """Does some work in a child, which is killed so many seconds after it has begun.

    Returns:
        What it said, by word.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)

            def say(word: str, number: int) -> None:
                os.write(write, f"{word} {number}\n".encode())

            asyncio.run(work(say))
            say("end", 0)
        finally:
            os._exit(0)
    os.close(write)
    texts = []
    with os.fdopen(read, "rb") as pipe:
        reader = threading.Thread(target=lambda: texts.append(pipe.read().decode()))
        reader.start()
        if seconds is not None:
            while not has_begun() and reader.is_alive():
                time.sleep(0.002)
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        reader.join()
    os.waitpid(child, 0)
    said: dict[str, list[int]] = {"asked": [], "kept": [], "end": []}
    for line in texts[0].split("\n")[:-1]:
        word, number = line.split()
        said[word].append(int(number))
    return said
