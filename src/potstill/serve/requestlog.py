"""The request log: exchanges as stored completions, sampled and without personal data.

`train_data` reads its rows again, so what users ask today is what the next student learns from.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

from potstill.config import PrivacyConfig
from potstill.data.privacy import Privacy
from potstill.errors import ConfigError
from potstill.serve.told import usage
from potstill.serve.watching import Exchange
from potstill.types import Record, Response, Sampling

_NUM_OLD_FILES = 9


class RequestLog:
    """Writes a share of the exchanges to a file, one line for each answer: a `Watcher`.

    A file that would grow over `most_bytes` becomes FILE.1, and so on to FILE.9; then the oldest
    goes.

    Args:
        share: Of the requests, in [0, 1].
        redact: Whether marks such as [EMAIL_1] stand for what looks like personal data.
        on_row: Told `written` or `failed`; a full disk costs the row, and no answer.
        draw: Random numbers in [0, 1).

    Raises:
        ConfigError: If the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        share: float = 1.0,
        redact: bool = True,
        most_bytes: int = 100_000_000,
        on_row: Callable[[str], None] = lambda outcome: None,
        draw: Callable[[], float] = random.random,
    ):
        self._share, self._draw, self._on_row = share, draw, on_row
        self._privacy = Privacy(PrivacyConfig(mode="redact" if redact else "off"), leaves=True)
        try:
            self._file = _File(path, most_bytes)
        except OSError as error:
            raise ConfigError(
                f"the request log {path} cannot be written: {error.strerror or error}"
            ) from None
        self._open: set[asyncio.Task[None]] = set()

    def saw(self, exchange: Exchange, seconds: float, first_seconds: float | None) -> None:
        """Writes the exchange later, in a thread, if it is one of the share."""
        if self._draw() >= self._share:
            return
        times = {"seconds": round(seconds, 4)}
        if first_seconds is not None:
            times["first_token_seconds"] = round(first_seconds, 4)
        task = asyncio.create_task(asyncio.to_thread(self._write, exchange, times))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        """Writes what is left."""
        await asyncio.gather(*self._open)
        self._file.close()

    def _write(self, exchange: Exchange, times: dict[str, float]) -> None:
        parts = exchange.asked.parts
        for place, response in sorted(exchange.responses.items()):
            record, sampling = parts[place]
            told = record.model_copy(update={"reference": response.text})
            hidden = self._privacy.hide(told).record if self._privacy.covers(told) else told
            row = _row(exchange, place, hidden, sampling, response)
            is_written = self._file.add({**row, **times})
            self._on_row("written" if is_written else "failed")


def _row(
    exchange: Exchange, place: int, record: Record, sampling: Sampling, response: Response
) -> dict[str, Any]:
    """One answer as OpenAI stores completions, which `data.logs` reads."""
    is_chat = exchange.asked.is_chat
    messages = [message.model_dump() for message in record.messages]
    asked: dict[str, Any] = {
        "model": exchange.asked.model or exchange.model,
        **({"messages": messages} if is_chat else {"prompt": messages[-1]["content"]}),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        **({"stop": list(sampling.stop)} if sampling.stop else {}),
    }
    said: dict[str, Any] = {"text": record.reference}
    if is_chat:
        said = {"message": {"role": "assistant", "content": record.reference}}
    choice = {"index": 0, **said, "finish_reason": response.finish_reason}
    answered = {"model": response.model, "choices": [choice], "usage": usage([response], 1)}
    id_ = f"{exchange.id}-{place}"
    return {"id": id_, "created": int(time.time()), "request": asked, "response": answered}


class _File(RotatingFileHandler):
    """JSON lines in a file that makes room for itself."""

    def __init__(self, path: Path, most_bytes: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, "a", most_bytes, _NUM_OLD_FILES, encoding="utf-8")
        self._failed = False

    def add(self, tree: dict[str, Any]) -> bool:
        """Writes one line; False where that did not work."""
        text = orjson.dumps(tree).decode()
        assert self.lock is not None
        with self.lock:
            self._failed = False
            self.emit(LogRecord("", 0, "", 0, text, None, None))
            return not self._failed

    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Keeps the failure, which would be written to standard error."""
        self._failed = True
