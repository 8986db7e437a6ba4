"""The SQLite file beside the segments: who is answered, where that stands, what is wanted."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from potstill.teach.entries import Entries, Wants
from potstill.teach.segments import Span

MOST_KEYS = 256
"""Keys that one question to the index holds at most."""

_VERSION = 2
_SCHEMA = """
CREATE TABLE outcomes (             -- one row for each request that has an outcome
    key BLOB PRIMARY KEY,           -- 16 bytes: record id, turn, sample, fingerprint
    state INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    checksum BLOB NOT NULL          -- 8 bytes
) WITHOUT ROWID;
CREATE TABLE wanted (               -- what an input asks, in its order; all else is stale
    part INTEGER NOT NULL,
    record INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    key BLOB NOT NULL,
    state INTEGER NOT NULL,
    ask INTEGER NOT NULL,
    PRIMARY KEY (part, record, sample, turn)
) WITHOUT ROWID;
CREATE TABLE parts (                -- the inputs: train, validation
    part INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ask INTEGER NOT NULL,           -- counts the times it was asked anew
    source TEXT NOT NULL            -- hash of what the requests are made of; empty: not known
);
CREATE TABLE segments (             -- how much of each is in this index, and its hash
    number INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE money (cost REAL NOT NULL);
INSERT INTO money VALUES (0.0);
"""
# Many rows in one statement, and all statements of a transaction in one script: the connection
# lets go of the interpreter's lock once for each. Row by row, or with values that are bound, it
# does so many times, and may wait for it each time behind everything else this process does.
# The small numbers of a row are one integer (state in 3 bits, sample in 9, turn in 20; a line's
# length in 29): reading four numbers out of JSON takes as long as all the rest.
_SAVE = """
INSERT INTO outcomes (key, state, segment, start, length, checksum)
SELECT substr(given.keys, 24 * each.key + 1, 16), each.value & 7, {number}, each.value >> 32,
       each.value >> 3 & 0x1fffffff, substr(given.keys, 24 * each.key + 17, 8)
FROM (SELECT {keys} AS keys) AS given, json_each({rows}) AS each WHERE true
ON CONFLICT (key) DO UPDATE SET state = excluded.state, segment = excluded.segment,
    start = excluded.start, length = excluded.length, checksum = excluded.checksum
WHERE excluded.state <= 2 OR outcomes.state > 2
"""
_WANT = """
INSERT OR REPLACE INTO wanted (part, ask, key, record, sample, turn, state)
SELECT {part}, {ask}, substr(given.keys, 16 * each.key + 1, 16), each.value >> 32,
       each.value >> 3 & 0x1ff, each.value >> 12 & 0xfffff, each.value & 7
FROM (SELECT {keys} AS keys) AS given, json_each({rows}) AS each
"""
_KEEP_SEGMENT = "INSERT OR REPLACE INTO segments VALUES ({number}, {size}, {digest})"
_SPEND = "UPDATE money SET cost = cost + {cost}"
_UNWANT = """
DELETE FROM wanted WHERE part = :part AND ask = :ask AND (
    record < :first OR record NOT IN (
        SELECT record FROM wanted WHERE part = :part AND ask = :ask AND state <= 2
        GROUP BY record HAVING count(*) = :samples))
"""
_COLUMNS = "state, segment, start, length, checksum"
_FIND = f"SELECT key, {_COLUMNS} FROM outcomes WHERE key IN ({', '.join('?' * MOST_KEYS)})"
_STALE = """
SELECT count(*) FROM outcomes WHERE key NOT IN
    (SELECT key FROM wanted JOIN parts USING (part) WHERE wanted.ask = parts.ask)
"""


class State(IntEnum):
    """What became of a request. Up to CUT there is an answer."""

    DONE = 1
    CUT = 2
    DEAD = 3
    CANCELLED = 4
    LOST = 5
    """It was there, and cannot be read any more."""


class Row(NamedTuple):
    """An outcome, and where it stands."""

    state: State
    span: Span


class Want(NamedTuple):
    """That an input wants an outcome, and where in the input."""

    record: int
    """Counts the records of the input."""

    sample: int
    turn: int
    key: bytes
    state: State


class Index:
    """One open index file, to be used by one thread that writes and one that reads.

    Raises:
        sqlite3.DatabaseError: If the file is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._db = _connect(path)
        self._reads = _connect(path)
        self._lock = threading.Lock()
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok" or version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"version {version}: {found}")
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; what was saved is in it."""
        self._reads.close()
        self._db.close()

    def save(
        self,
        outcomes: Sequence[tuple[int, Entries]],
        wants: Sequence[Wants],
        asked: Sequence[int],
        segment: tuple[int, int, bytes],
        cost: float,
    ) -> None:
        """Keeps outcomes and wishes, all or none; they are on the disk when it returns.

        An answer is not replaced by a failure.

        Args:
            outcomes: In order, with the byte of the segment that their places are counted from.
            asked: Part, and the how many-th time it is asked.
            segment: Number, size and hash of the segment that the outcomes are in.
            cost: What the outcomes cost.
        """
        statements = []
        if outcomes:
            keys = b"".join([entries.keys for _, entries in outcomes])
            rows = [row + (start << 32) for start, entries in outcomes for row in entries.rows]
            number, size, digest = segment
            statements.append(_spelled(_SAVE, keys=keys, rows=rows, number=number))
            statements.append(_spelled(_KEEP_SEGMENT, number=number, size=size, digest=digest))
        if cost:
            statements.append(_spelled(_SPEND, cost=cost))
        if wants:
            keys = b"".join([some.keys for some in wants])
            rows = list(itertools.chain.from_iterable(some.rows for some in wants))
            part, ask = asked
            statements.append(_spelled(_WANT, keys=keys, rows=rows, part=part, ask=ask))
        with self._lock, self._undone_on_failure():
            self._db.executescript(";\n".join(["BEGIN IMMEDIATE", *statements, "COMMIT"]))

    def keep_segment(
        self, number: int, size: int, digest: bytes, lost: Sequence[bytes] = ()
    ) -> None:
        """Notes size and hash of a segment, and which outcomes are not in it any more.

        These stay wanted.
        """
        with self._transaction() as db:
            for key in lost:
                db.execute("DELETE FROM outcomes WHERE key = ?", (key,))
                db.execute("UPDATE wanted SET state = ? WHERE key = ?", (State.LOST, key))
            db.execute(_spelled(_KEEP_SEGMENT, number=number, size=size, digest=digest))

    def begin(self, name: str, source: str, first: Sequence[bytes]) -> tuple[int, int, bool]:
        """A part is asked again, or anew. Returns its number, how many-th time, and whether anew.

        Args:
            source: Hash of what its requests are made of; anew where it has changed.
            first: Keys of its first requests; anew where one has changed.
        """
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO parts (name, ask, source) VALUES (?, 0, '')", (name,))
            part, ask, before = db.execute(
                "SELECT part, ask, source FROM parts WHERE name = ?", (name,)
            ).fetchone()
            found = db.execute(
                "SELECT key FROM wanted WHERE part = ? AND ask = ? AND sample = 0 AND turn = 0 "
                "AND record < ? ORDER BY record",
                (part, ask, len(first)),
            )
            is_new = not source or source != before or [key for (key,) in found] != list(first)
            ask += is_new
            db.execute("UPDATE parts SET ask = ?, source = ? WHERE part = ?", (ask, source, part))
            return part, ask, is_new

    def pass_over(self, part: int, ask: int, first: int, samples: int) -> tuple[int, int]:
        """What is answered from a record on, and how much of it is cut; the rest is not wanted.

        Args:
            samples: Answers that make a record complete; each is one prompt.
        """
        place = {"part": part, "ask": ask, "first": first, "samples": samples}
        with self._transaction() as db:
            db.execute(_UNWANT, place)
            found = db.execute(
                "SELECT count(*), total(state = 2) FROM wanted WHERE part = :part AND ask = :ask",
                place,
            )
            number, num_cut = found.fetchone()
            return number, int(num_cut)

    def passed(self, part: int, ask: int, first: int) -> Iterator[int]:
        """The records from `first` on that were passed over, ascending.

        Read in pieces: an open cursor would keep the log of changes from being emptied.
        """
        while some := self._reads.execute(
            "SELECT DISTINCT record FROM wanted WHERE part = ? AND ask = ? AND record >= ? "
            "ORDER BY record LIMIT 4096",
            (part, ask, first),
        ).fetchall():
            yield from (record for (record,) in some)
            first = some[-1][0] + 1

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """The outcomes of these requests, as far as there are any."""
        found = {}
        for start in range(0, len(keys), MOST_KEYS):
            some = keys[start : start + MOST_KEYS]
            padded = (*some, *[b""] * (MOST_KEYS - len(some)))
            for key, *columns in self._reads.execute(_FIND, padded):
                found[key] = _row(columns)
        return found

    def find_one(self, key: bytes) -> Row | None:
        """The outcome of one request."""
        columns = self._reads.execute(
            f"SELECT {_COLUMNS} FROM outcomes WHERE key = ?", (key,)
        ).fetchone()
        return columns and _row(columns)

    def wanted(self, name: str) -> Iterator[tuple[Want, Row | None]]:
        """What a part wants, in the order of its input, with the outcome where there is one."""
        db = _connect(self._path)  # a reader of its own, so that others may write meanwhile
        with contextlib.closing(db):
            rows = db.execute(
                f"SELECT record, sample, turn, key, w.state, o.{_COLUMNS.replace(', ', ', o.')} "
                "FROM parts JOIN wanted AS w USING (part, ask) LEFT JOIN outcomes AS o USING (key) "
                "WHERE name = ? ORDER BY w.part, record, sample, turn",
                (name,),
            )
            for record, sample, turn, key, state, *columns in rows:
                want = Want(record, sample, turn, key, State(state))
                yield want, None if columns[0] is None else _row(columns)

    def counts(self, part: int, ask: int) -> dict[State, int]:
        """How many of the requests of a part ended how."""
        rows = self._reads.execute(
            "SELECT state, count(*) FROM wanted WHERE part = ? AND ask = ? GROUP BY state",
            (part, ask),
        )
        return {State(state): number for state, number in rows}

    def parts(self) -> list[str]:
        """The names of all inputs that were ever asked."""
        return [name for (name,) in self._reads.execute("SELECT name FROM parts ORDER BY part")]

    def outcomes(self, segment: int | None = None) -> Iterator[tuple[bytes, Row]]:
        """The outcomes of a segment, or of all, in the order of the files."""
        rows = self._reads.execute(
            f"SELECT key, {_COLUMNS} FROM outcomes WHERE ?1 IS NULL OR segment = ?1 "
            "ORDER BY segment, start",
            (segment,),
        )
        for key, *columns in rows:
            yield key, _row(columns)

    def num_stale(self) -> int:
        """Outcomes that no input wants at present."""
        return self._reads.execute(_STALE).fetchone()[0]

    def segments(self) -> dict[int, tuple[int, bytes]]:
        """Number -> (size, hash) of each segment, as far as it is in this index."""
        rows = self._reads.execute("SELECT number, size, digest FROM segments")
        return {number: (size, digest) for number, size, digest in rows}

    def cost(self) -> float:
        """What all answers cost that ever came, as far as it is known."""
        return self._reads.execute("SELECT cost FROM money").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._undone_on_failure():
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def open_index(path: Path) -> Index:
    """The index at a path; an empty one where there is none or it is damaged.

    Raises:
        sqlite3.OperationalError: If it cannot be written.
    """
    try:
        return Index(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        return Index(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # Keys are hashes, so that each entry changes a page of its own; a page that changes often is
    # brought home from the log of changes once in 8,000 of them (32 MB).
    db.execute("PRAGMA wal_autocheckpoint = 8000")
    return db


def _spelled(statement: str, **values: bytes | float | Sequence[int]) -> str:
    """A statement with its values written out: bytes, numbers, and rows of them as JSON."""
    spelled = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            spelled[name] = f"x'{value.hex()}'"
        elif isinstance(value, int | float):
            spelled[name] = repr(value)
        else:
            spelled[name] = f"'{orjson.dumps(value).decode()}'"
    return statement.format(**spelled)


def _row(columns: Sequence[Any]) -> Row:
    state, *span = columns
    return Row(State(state), Span(*span))
