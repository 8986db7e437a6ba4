"""Answers that any run may use again: of the same model, to the same prompt, drawn the same way.

A baseline that many runs have in common answers a test set once. A model is known by what its
answers depend on: its weights, their number format, and the engine with its version. What an
endpoint stands for may change behind its name, so its answers are reused only on demand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from potstill.models.fingerprint import identity_of, request_fingerprint, sent_by
from potstill.protocols import ChatModel
from potstill.types import Record, Response, Sampling

log = logging.getLogger(__name__)

Reuse = Literal["weights", "all", "off"]
"""Whose answers are reused: models known by their weights, endpoints by name too, or nobody's."""

MEGABYTES = 500
"""How large the file may become by default."""

_SPARE = 0.9
"""Share of the limit that is left filled when it was reached."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,           -- hash of model, prompt and decoding
    response TEXT NOT NULL,
    size INTEGER NOT NULL,
    used_at REAL NOT NULL           -- seconds since 1970
) WITHOUT ROWID;
"""


def store_path() -> Path:
    """Where answers are kept for all runs: `$POTSTILL_HOME`, or ~/.cache/potstill."""
    home = os.environ.get("POTSTILL_HOME") or Path.home() / ".cache" / "potstill"
    return Path(home) / "answers.sqlite"


@contextlib.contextmanager
def answer_store(reuse: Reuse, *, megabytes: int = MEGABYTES) -> Iterator[AnswerStore | None]:
    """The store of this machine, or None where nothing is to be reused."""
    if reuse == "off":
        yield None
        return
    store = AnswerStore(store_path(), max_bytes=megabytes * 1_000_000, by_name=reuse == "all")
    try:
        yield store
    finally:
        store.close()


class AnswerStore:
    """One SQLite file; where it grows too large, what was not used for longest goes first.

    Several processes may use it at once. A file that cannot be used is told of once in the log,
    and then the models are asked.

    Args:
        by_name: Whether answers of models that are known by name only are reused as well.
    """

    def __init__(self, path: Path, *, max_bytes: int, by_name: bool = False):
        self.path, self._max_bytes, self._by_name = path, max_bytes, by_name
        self._used: set[str] = set()
        self._db: sqlite3.Connection | None = None
        self._num_bytes = 0
        with self._or_without():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # answers may hold what nobody else should read
            # In a notebook the asking is done by another thread, one at a time all the same.
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=10.0, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._num_bytes = self._total()

    def get(self, model: ChatModel, prompt: Record, sampling: Sampling) -> Response | None:
        """The model's answer to this very prompt, from whichever run it came."""
        key = self._key(model, prompt, sampling)
        row = None
        with self._or_without():
            if key is not None and self._db is not None:
                asked = "SELECT response FROM answers WHERE key = ?"
                row = self._db.execute(asked, (key,)).fetchone()
        if row is None or key is None:
            return None
        try:
            found = Response.model_validate_json(row[0])
        except ValueError:
            return None  # of another version of this program
        self._used.add(key)
        return found.model_copy(update={"record_id": prompt.id})

    def put(self, model: ChatModel, prompt: Record, sampling: Sampling, response: Response) -> None:
        """Keeps an answer; what did not come is not kept."""
        key = self._key(model, prompt, sampling)
        if key is None or response.error or response.finish_reason == "error":
            return
        bare = response.model_copy(update={"record_id": "", "turn": 0, "logprobs": None})
        text = bare.model_dump_json(exclude_defaults=True)
        size = len(text.encode()) + len(key)
        with self._or_without():
            if self._db is None:
                return
            row = (key, text, size, time.time())
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", row)
            self._num_bytes += size
            if self._num_bytes > self._max_bytes:
                self._shrink()

    def close(self) -> None:
        """Notes what was used, so that it stays longest."""
        with self._or_without():
            if self._db is not None:
                now = time.time()
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(
                    "UPDATE answers SET used_at = ? WHERE key = ?", [(now, k) for k in self._used]
                )
                self._db.execute("COMMIT")
        if self._db is not None:
            self._db.close()
            self._db = None

    def _key(self, model: ChatModel, prompt: Record, sampling: Sampling) -> str | None:
        known_as = getattr(model, "known_as", None)
        if known_as is None and self._by_name:
            known_as = identity_of(model)
        if known_as is None:
            return None
        return request_fingerprint(known_as, sent_by(model)(prompt), sampling)

    def _total(self) -> int:
        assert self._db is not None
        return int(self._db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()[0])

    def _shrink(self) -> None:
        """Drops what was used longest ago until a tenth of the limit is free."""
        assert self._db is not None
        self._db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM (SELECT key, sum(size) OVER "
            "(ORDER BY used_at DESC, key) AS so_far FROM answers) WHERE so_far > ?)",
            (int(_SPARE * self._max_bytes),),
        )
        self._num_bytes = self._total()

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """A broken file costs time and no run: the models are asked what it would have told."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            log.warning("%s cannot be used, so answers are not reused: %s", self.path, error)
            self._db = None
