"""Accepted rows that say what another accepted row says already.

The index is on disk, so memory stays flat however many rows there are.

Source of the near ones:
    Broder (1997), "On the resemblance and containment of documents" (min-wise hashing), with
    bands as in Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from potstill.data.ngrams import FEWEST_NGRAMS, NEAR, jaccard, ngrams, template_ngrams, without
from potstill.data.words import fold
from potstill.protocols import Task
from potstill.tasks.agreement import same_answer
from potstill.types import Record, Rejection

_POINT = """[.,;:!?'"“”‘’„«»…।。，；：！？]"""
_POINTS = re.compile(rf"(?<!\d){_POINT}|{_POINT}(?!\d)")

NUM_BANDS = 25
ROWS_PER_BAND = 5
"""Two texts of Jaccard similarity s share a band with 1 - (1 - s^5)^25: 0.9999 at 0.8."""

_OPEN_TASKS = ("conversation", "summarization", "translation")
_MOST_A_BAND = 64
"""Rows that are looked at in one band: rows of one mould would make the search quadratic."""

_MOST_CANDIDATES = 16
_CHUNK = 4096


def duplicate_checks(
    names: Sequence[str],
    database: sqlite3.Connection,
    task: Task,
    prompts: Iterable[Record],
) -> list[Callable[[Record], Rejection | None]]:
    """Those of these names that look for duplicates, ready to be called with accepted records.

    Args:
        database: Where their index is kept.
        prompts: Some that the teacher is asked, or all; what many of them share is a template.
    """
    checks: list[Callable[[Record], Rejection | None]] = []
    if "no_duplicates" in names:
        checks.append(NoDuplicates(database))
    if "no_near_duplicates" in names:
        templates = template_ngrams(_folded(task.turns(record)[-1]) for record in prompts)
        checks.append(NoNearDuplicates(database, task, templates))
    return checks


class NoDuplicates:
    """The same answer to the same prompt was not there before; case and points do not count."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        database.execute("CREATE TABLE exact (key BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID")

    def __call__(self, record: Record) -> Rejection | None:
        prompt = [f"{message.role}:{_said(message.content)}" for message in record.messages]
        text = "\0".join([*prompt, _said(record.reference or "")])
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        found = self._database.execute("SELECT id FROM exact WHERE key = ?", (key,)).fetchone()
        if found:
            return _rejection(record, "no_duplicates", "duplicate", f"same as record {found[0]}")
        self._database.execute("INSERT INTO exact VALUES (?, ?)", (key, record.id))
        return None


class NoNearDuplicates:
    """No accepted row before has a Jaccard similarity of 0.8 or more.

    Character 5-grams of all turns but the system's are compared, prompt and answer together,
    without those of the template. Where answers can be read as the same or not (labels,
    options, numbers, short answers) they must be the same: two prompts that differ in a word
    and have different answers teach more than either alone.

    What the hashes find is compared exactly, so nothing is rejected by chance.

    Args:
        templates: N-grams that many prompts share, from `data.ngrams.template_ngrams`.
    """

    def __init__(self, database: sqlite3.Connection, task: Task, templates: np.ndarray):
        self._database = database
        self._task = task
        self._templates = templates
        database.execute("CREATE TABLE texts (row INTEGER PRIMARY KEY, id TEXT, text BLOB)")
        database.execute(
            "CREATE TABLE bands (key INTEGER, row INTEGER, PRIMARY KEY (key, row)) WITHOUT ROWID"
        )
        self._num_rows = 0

    def __call__(self, record: Record) -> Rejection | None:
        text = _folded(record, record.reference or "")
        own = without(ngrams(text), self._templates)
        if len(own) < FEWEST_NGRAMS:
            return None
        keys = band_keys(own, self._answer_of(record))
        for row in self._candidates(keys):
            found, packed = self._database.execute(
                "SELECT id, text FROM texts WHERE row = ?", (row,)
            ).fetchone()
            theirs = without(ngrams(zlib.decompress(packed).decode("utf-8")), self._templates)
            similarity = jaccard(own, theirs)
            if similarity >= NEAR:
                detail = f"{similarity:.2f} similar to record {found}"
                return _rejection(record, "no_near_duplicates", "near_duplicate", detail)
        self._add(record.id, text, keys)
        return None

    def _answer_of(self, record: Record) -> str:
        if self._task.name in _OPEN_TASKS:
            return ""
        return same_answer(record, record.reference or "", self._task)

    def _candidates(self, keys: list[int]) -> list[int]:
        counts: Counter[int] = Counter()
        for key in keys:
            rows = self._database.execute(
                "SELECT row FROM bands WHERE key = ? LIMIT ?", (key, _MOST_A_BAND)
            )
            counts.update(row for (row,) in rows)
        return [row for row, _ in counts.most_common(_MOST_CANDIDATES)]

    def _add(self, record_id: str, text: str, keys: list[int]) -> None:
        packed = zlib.compress(text.encode("utf-8", "replace"), 1)
        row = self._num_rows
        self._num_rows += 1
        self._database.execute("INSERT INTO texts VALUES (?, ?, ?)", (row, record_id, packed))
        self._database.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)", ((key, row) for key in keys)
        )


def band_keys(own: np.ndarray, answer: str = "") -> list[int]:
    """One signed 64-bit key for each band of a text's MinHash signature.

    Args:
        own: Its n-grams, at least one.
        answer: Part of every key, so that rows with different answers never meet.
    """
    lowest = np.full((len(_FACTORS), 1), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(own), _CHUNK):  # a text of a million letters must not take gigabytes
        mixed = own[start : start + _CHUNK]
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = mixed * _FACTORS + _TERMS
        lowest = np.minimum(lowest, hashes.min(axis=1, keepdims=True))
    bands = (lowest >> np.uint64(32)).astype("<u8").reshape(NUM_BANDS, ROWS_PER_BAND)
    keys = []
    for number, band in enumerate(bands):
        band_of = bytes([number]) + band.tobytes() + answer.encode("utf-8", "replace")
        digest = hashlib.blake2b(band_of, digest_size=8).digest()
        keys.append(int.from_bytes(digest, "big", signed=True))
    return keys


def _random_numbers(seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    shape = (NUM_BANDS * ROWS_PER_BAND, 1)
    return generator.integers(0, 2**64, size=shape, dtype=np.uint64, endpoint=False)


_FACTORS = _random_numbers(1) | np.uint64(1)
_TERMS = _random_numbers(2)


def _folded(record: Record, *more: str) -> str:
    turns = [message.content for message in record.messages if message.role != "system"]
    return fold("\n".join([*turns, *more]))


def _said(text: str) -> str:
    """A text as two rows are compared exactly: "3.5" stays, "Yes." and "yes" are the same."""
    return " ".join(_POINTS.sub(" ", fold(text)).split())


def _rejection(record: Record, check: str, reason: str, detail: str) -> Rejection:
    return Rejection(record_id=record.id, check=check, reason=reason, detail=detail)
