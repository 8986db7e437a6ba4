"""Accepted rows that say what stands in a test set, in their prompt or in the teacher's answer.

A teacher may have learned a test set by heart, or a long prompt may hold a test question. The
split compares prompts as wholes and before anything is asked; this looks for runs of words in
what the student would be trained on.

Source of the rule:
    Brown et al. (2020), "Language models are few-shot learners", appendix C: n is the 5th
    percentile of the lengths of the test texts, but 8 at least and 13 at most, and n-grams that
    many rows share are ignored. arXiv:2005.14165. Here words of phrases that many rows share
    are taken out first, so that an instruction and the first words of a question make no n-gram.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator

from potstill.data.words import words
from potstill.tasks import references_of
from potstill.types import Record, Rejection

SHORTEST, LONGEST = 8, 13
PHRASE = 5
"""A run of so many words in many rows is a phrase: instructions, greetings, the domain's idiom."""

COMMON_ROWS = 10
COMMON_SHARE = 0.05
FEWEST_COMMON_ROWS = 2
"""Many rows are more than ten; in a small set more than 5 % of the rows, and more than two."""

_AT_ONCE = 500


class NotContaminated:
    """No run of n words of a row stands in a test row: neither in its prompt nor its answer.

    Words are as `data.words` reads them: any script, without case and punctuation.

    Args:
        database: Where the index is kept.
        test: Records of all test sets.
        typical: Records of the training side; with the test's they say what is a phrase. A
            sample will do.
        with_reasoning: Whether `metadata["reasoning"]` is learned beside the answer.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        test: Iterable[Record],
        typical: Iterable[Record],
        *,
        with_reasoning: bool = False,
    ):
        self._database = database
        self._with_reasoning = with_reasoning
        database.execute("CREATE TABLE said (row INTEGER, id TEXT, place TEXT, words TEXT)")
        database.execute(
            "CREATE TABLE own (row INTEGER, id TEXT, place TEXT, num INTEGER, words TEXT)"
        )
        database.execute(
            "CREATE TABLE phrases (gram TEXT PRIMARY KEY, num INTEGER, last INTEGER) WITHOUT ROWID"
        )
        database.execute(
            "CREATE TABLE grams (gram TEXT PRIMARY KEY, place TEXT, id TEXT) WITHOUT ROWID"
        )
        self.num_test_rows = self._keep(test)
        self._find_phrases(typical)
        self._keep_own_words()
        self.n = self._length()
        self.num_indexed_rows = self._index()

    def __call__(self, record: Record) -> Rejection | None:
        texts = list(_texts(record))
        if self._with_reasoning:
            texts.append(("reasoning", str(record.metadata.get("reasoning") or "")))
        for place, text in texts:
            found = self._first(list(dict.fromkeys(_grams(words(text), self.n))))
            if found:
                gram, where, test_id = found
                return Rejection(
                    record_id=record.id,
                    check="not_contaminated",
                    reason="contaminated",
                    detail=f'"{gram}" in the {place} stands in the {where} of test row {test_id}',
                )
        return None

    def facts(self) -> dict[str, int]:
        """What was compared: `n`, rows of the test sets, and those long enough for an n-gram."""
        return {
            "n": self.n,
            "num_test_rows": self.num_test_rows,
            "num_indexed_rows": self.num_indexed_rows,
        }

    def _keep(self, test: Iterable[Record]) -> int:
        number = 0
        for number, record in enumerate(test, start=1):
            for place, text in _texts(record, all_answers=True):
                found = words(text)
                self._database.execute(
                    "INSERT INTO said VALUES (?, ?, ?, ?)",
                    (number, record.id, place, " ".join(found)),
                )
                self._database.executemany(
                    "INSERT INTO phrases VALUES (?, 1, ?) ON CONFLICT (gram) DO UPDATE "
                    "SET num = num + (last != excluded.last), last = excluded.last",
                    ((gram, number) for gram in _grams(found, PHRASE)),
                )
        return number

    def _find_phrases(self, typical: Iterable[Record]) -> None:
        """Leaves in `phrases` what many rows say, of all that the test rows say."""
        num_rows = self.num_test_rows
        for number, record in enumerate(typical, start=1):
            num_rows += 1
            texts = [words(text) for _, text in _texts(record, all_answers=True)]
            self._database.executemany(
                "UPDATE phrases SET num = num + 1, last = ? WHERE gram = ? AND last != ?",
                ((-number, gram, -number) for text in texts for gram in _grams(text, PHRASE)),
            )
        most = min(COMMON_ROWS, max(FEWEST_COMMON_ROWS, int(COMMON_SHARE * num_rows)))
        self._database.execute("DELETE FROM phrases WHERE num <= ?", (most,))

    def _keep_own_words(self) -> None:
        """Fills `own` with the runs of words that no phrase covers."""
        texts = self._database.execute("SELECT row, id, place, words FROM said ORDER BY row")
        for row, record_id, place, text in texts:
            found = text.split(" ")
            grams = list(_grams(found, PHRASE))
            common = {gram for (gram,) in self._lookup("gram", "phrases", grams)}
            covered = {
                at + i for at, gram in enumerate(grams) if gram in common for i in range(PHRASE)
            }
            runs = itertools.groupby(range(len(found)), key=lambda at: at in covered)
            own = [[found[at] for at in run] for is_covered, run in runs if not is_covered]
            self._database.executemany(
                "INSERT INTO own VALUES (?, ?, ?, ?, ?)",
                ((row, record_id, place, len(run), " ".join(run)) for run in own),
            )

    def _length(self) -> int:
        """n by the rule above; runs shorter than any n-gram do not count."""
        (number,) = self._database.execute(
            "SELECT count(*) FROM own WHERE num >= ?", (SHORTEST,)
        ).fetchone()
        found = self._database.execute(
            "SELECT num FROM own WHERE num >= ? ORDER BY num LIMIT 1 OFFSET ?",
            (SHORTEST, number // 20),
        ).fetchone()
        return min(LONGEST, found[0]) if found else SHORTEST

    def _index(self) -> int:
        """Keeps every n-gram with the first place it stands in; how many rows have one."""
        indexed = 0
        last = None
        runs = self._database.execute(
            "SELECT row, id, place, words FROM own WHERE num >= ? ORDER BY row", (self.n,)
        )
        for row, record_id, place, text in runs:
            indexed += row != last
            last = row
            self._database.executemany(
                "INSERT OR IGNORE INTO grams VALUES (?, ?, ?)",
                ((gram, place, record_id) for gram in _grams(text.split(" "), self.n)),
            )
        return indexed

    def _first(self, grams: list[str]) -> tuple[str, str, str] | None:
        found = {row[0]: row for row in self._lookup("gram, place, id", "grams", grams)}
        return next((found[gram] for gram in grams if gram in found), None)

    def _lookup(self, columns: str, table: str, grams: list[str]) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(grams), _AT_ONCE):
            some = grams[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            yield from self._database.execute(
                f"SELECT {columns} FROM {table} WHERE gram IN ({marks})", some
            )


def _texts(record: Record, *, all_answers: bool = False) -> Iterator[tuple[str, str]]:
    """(place, text) of a record; the system prompt is shared by all and is left out."""
    for message in record.messages:
        if message.role != "system":
            yield ("prompt" if message.role == "user" else "answer"), message.content
    known = references_of(record) if all_answers else (record.reference or "",)
    yield from (("answer", text) for text in known)


def _grams(found: list[str], n: int) -> Iterator[str]:
    return (" ".join(found[i : i + n]) for i in range(len(found) - n + 1))
