"""What is known of a run's batches: each is written down before it is made."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from potstill.errors import PotstillError
from potstill.rundir import LedgerDir

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    intent TEXT PRIMARY KEY,        -- made up here before the provider hears of it
    asker TEXT NOT NULL,            -- which part of the input, and which teacher
    state TEXT NOT NULL,            -- intended, made, settled, never_made
    batch TEXT NOT NULL,            -- what the provider calls it; empty until that is known
    num_requests INTEGER NOT NULL,
    intended_at REAL NOT NULL,      -- seconds since 1970
    adopted INTEGER NOT NULL        -- found in the provider's list, and not seen being made
);
CREATE TABLE IF NOT EXISTS salt (value BLOB NOT NULL);
DROP TABLE IF EXISTS results;
CREATE TABLE results (              -- what came, for as long as this process collects it
    custom_id TEXT PRIMARY KEY,
    intent TEXT NOT NULL,
    output INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Intent(NamedTuple):
    """One batch that is to be made, or was."""

    id: str
    batch: str
    num_requests: int
    intended_at: float
    is_adopted: bool


class Place(NamedTuple):
    """Where a result stands in the files of a batch."""

    intent: str
    output: int
    start: int
    length: int


class Spool:
    """The file of a batch while it is written, line by line.

    Its methods raise PotstillError where it cannot be written.
    """

    def __init__(self, folder: LedgerDir, head: Callable[[str], bytes]):
        self.intent = uuid.uuid4().hex
        self.path = folder.batch_input(self.intent)
        self.num_requests = 0
        with _kept(self.path):
            self.file: BinaryIO = self.path.open("wb")
            self.num_bytes = self.file.write(head(self.intent))

    def add(self, line: bytes, joint: bytes) -> None:
        """One request more."""
        with _kept(self.path):
            self.num_bytes += self.file.write((joint if self.num_requests else b"") + line)
        self.num_requests += 1

    def seal(self, tail: bytes) -> None:
        """Ends the file, and puts it onto the disk itself."""
        with _kept(self.path):
            self.file.write(tail)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


class BatchTable:
    """The SQLite file beside the ledger that remembers batches. Each change is on the disk itself
    when its method returns.

    Raises:
        PotstillError: If it cannot be read or written.
    """

    def __init__(self, folder: LedgerDir):
        self._folder = folder
        with _kept(self._folder.batches):
            self._db = sqlite3.connect(folder.batches, isolation_level=None)
            self._db.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; " + _SCHEMA
            )
            if self._db.execute("SELECT count(*) FROM salt").fetchone() == (0,):
                self._db.execute("INSERT INTO salt VALUES (?)", (os.urandom(32),))
            (self._salt,) = self._db.execute("SELECT value FROM salt").fetchone()

    def close(self) -> None:
        """Closes the file, and removes those of batches that nobody waits for any more."""
        with _kept(self._folder.batches):
            rows = self._db.execute(
                "SELECT intent FROM batches WHERE state IN ('intended', 'made')"
            )
            open_ones = {intent for (intent,) in rows}
            self._db.close()
            for path in self._folder.batch_files():
                if not any(path == self._folder.batch_input(intent) for intent in open_ones):
                    path.unlink()

    def custom_id(self, *parts: object) -> str:
        """Names a request to the provider; without this file nobody can tell what it names."""
        text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=self._salt).hexdigest()

    def intend(self, intent: str, asker: str, num_requests: int, now: float) -> None:
        """A batch is going to be made."""
        with _kept(self._folder.batches):
            row = (intent, asker, "intended", "", num_requests, now, 0)
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def made(self, intent: str, batch: str, *, is_adopted: bool = False) -> None:
        """The provider has it, and calls it so."""
        with _kept(self._folder.batches):
            self._db.execute(
                "UPDATE batches SET state = 'made', batch = ?, adopted = ? WHERE intent = ?",
                (batch, is_adopted, intent),
            )

    def end(self, intent: str, state: str) -> None:
        """Nothing more is awaited of it."""
        with _kept(self._folder.batches):
            self._db.execute("UPDATE batches SET state = ? WHERE intent = ?", (state, intent))

    def open_ones(self, asker: str) -> list[Intent]:
        """Those that may still bring something."""
        with _kept(self._folder.batches):
            rows = self._db.execute(
                "SELECT intent, batch, num_requests, intended_at, adopted FROM batches "
                "WHERE asker = ? AND state IN ('intended', 'made') ORDER BY intended_at",
                (asker,),
            )
            return [Intent(*row[:-1], bool(row[-1])) for row in rows]

    def batches(self) -> set[str]:
        """What the provider calls those that it was seen to have."""
        with _kept(self._folder.batches):
            return {batch for (batch,) in self._db.execute("SELECT batch FROM batches")} - {""}

    def keep(self, rows: Iterable[tuple[str, Place]]) -> None:
        """Notes where results are; the first of one id counts."""
        with _kept(self._folder.batches):
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?)",
                ((custom_id, *place) for custom_id, place in rows),
            )
            self._db.execute("COMMIT")

    def forget(self, intent: str) -> None:
        """The results of a batch were somebody else's."""
        with _kept(self._folder.batches):
            self._db.execute("DELETE FROM results WHERE intent = ?", (intent,))

    def num_results(self, intent: str) -> int:
        """How many are there of a batch."""
        with _kept(self._folder.batches):
            text = "SELECT count(*) FROM results WHERE intent = ?"
            (number,) = self._db.execute(text, (intent,)).fetchone()
            return number

    def find(self, custom_id: str) -> Place | None:
        """Where a request's result is; None where there is none."""
        with _kept(self._folder.batches):
            row = self._db.execute(
                "SELECT intent, output, start, length FROM results WHERE custom_id = ?",
                (custom_id,),
            ).fetchone()
            return row and Place(*row)


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise PotstillError(
            f"{path} cannot be read or written: {error}; it belongs to batches that may be under "
            f"way, so keep it, make room and run the same command again"
        ) from error
