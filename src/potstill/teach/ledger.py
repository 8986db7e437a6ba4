"""The ledger of the teacher's answers: one outcome for each request, kept before it counts.

A folder of append-only JSONL segments, which a person can read, and an SQLite index, which can
be made again from them. An outcome is acknowledged when its line is on the disk itself; many are
written together, so that this costs little. The index follows within a second; what a crash
kept from it is taken in from the segments by whoever opens the ledger next.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from potstill.errors import AnswersLost, PotstillError
from potstill.rundir import LedgerDir, locked
from potstill.teach.entries import Entries, Wants
from potstill.teach.index import Row, State, Want, open_index
from potstill.teach.outcomes import Inventory, key_of, line_of, response_of, state_of
from potstill.teach.segments import MOST_BYTES, Segments, checksum
from potstill.teach.spending import Spending, told, waste_of
from potstill.teach.writer import MOST_TOGETHER, Group, Writer
from potstill.types import Record, Response

_MOST_UNINDEXED = 1024
_MOST_SECONDS_UNINDEXED = 1.0
# An entry of the index costs half as much among a thousand as among a hundred: keys are hashes, so
# that few entries share a page, and every page that changes is written once for each transaction.


class Ledger:
    """A folder of outcomes, open for one process.

    Opening it looks at every byte: what a crash left unfinished is cut off, what has changed
    since it was written is set aside in a file for damaged lines, and its requests count as
    unanswered; an index that is lost or damaged is made again.

    Args:
        write, sync: What puts bytes into a file, and onto the disk itself.
        most_bytes: Size at which the next segment is begun.

    Raises:
        RunLocked: If another process has it open.
        PotstillError: If it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        write: Callable[[int, bytes], int] = os.write,
        sync: Callable[[int], None] = os.fdatasync,
        most_bytes: int = MOST_BYTES,
    ):
        self.folder = LedgerDir(folder)
        self.num_damaged = 0
        """Lines that were found damaged, and set aside, when it was opened."""

        self._segments = Segments(self.folder, write=write, sync=sync, most_bytes=most_bytes)
        self._asked: Sequence[int] = (0, 0)
        self._first = 0
        self._unindexed: list[tuple[int, Entries]] = []
        self._wanted: list[Wants] = []
        self._cost = 0.0
        self._indexed_at = 0.0
        self._writer = Writer(self._write, self._follow)

    def __enter__(self) -> Ledger:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder.path))
                stack.callback(self._segments.close)
                self._index = stack.enter_context(contextlib.closing(open_index(self.folder.index)))
                self._recover()
            except (OSError, sqlite3.Error) as error:
                raise PotstillError(self._unwritable(error)) from error
            self._writer.start()
            stack.callback(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if isinstance(error, sqlite3.Error):
            if error.sqlite_errorname.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise PotstillError(self._unwritable(error)) from error
            raise PotstillError(
                f"{self.folder.index} cannot be read: {error}; the same command makes it again "
                f"from the answers beside it"
            ) from error
        if error is None and self._writer.failure:
            raise PotstillError(self._writer.failure)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def cost(self) -> float:
        """What all answers cost that ever came, as far as it is known."""
        return self._index.cost()

    def begin(
        self, part: str, source: str = "", first: Sequence[bytes] = (), samples: int = 1
    ) -> tuple[int, int]:
        """From now on outcomes belong to this input (train, validation), asked once more.

        Returns:
            How many answers are passed over, and how many of these are cut: where source and
            first keys are what they were the last time, records behind the first ones that are
            complete need not be looked at; `passed` names them.

        Args:
            source: Hash of what the input's requests are made of; empty where it is not known.
            first: Keys of its first requests.
            samples: Answers that make a record complete, each to the same one prompt.
        """
        *self._asked, is_new = self._index.begin(part, source, first)
        self._first = len(first)
        return (0, 0) if is_new else self._index.pass_over(*self._asked, self._first, samples)

    def passed(self) -> Iterator[int]:
        """The records that need not be looked at, counted from 0, ascending."""
        return self._index.passed(*self._asked, self._first)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, State]:
        """How these requests ended, as far as they did."""
        return {key: row.state for key, row in self._index.find(keys).items()}

    def answer(self, key: bytes) -> Response | None:
        """The answer to a request; None where none came yet.

        Raises:
            AnswersLost: If its line has changed since the ledger was opened.
        """
        row = self._index.find_one(key)
        return self._read(row) if row is not None and row.state <= State.CUT else None

    def put(
        self, response: Response, record: int, key: bytes | None = None
    ) -> asyncio.Future[None]:
        """Keeps an outcome: the future is done when it is on the disk.

        Outcomes that are written together have one future together, so nobody may cancel it.

        Args:
            record: Which record of the input it is for, counted from 0.
            key: Its request's, where that is known already.

        Raises:
            PotstillError: If the ledger cannot be written any more; the future has it too.
        """
        if self._writer.failure:
            raise PotstillError(self._writer.failure)
        line, state = line_of(response), state_of(response)
        key = key or key_of(response)
        group = self._writer.group()
        # Here and not by the writer's thread: while that works, it holds up this one.
        group.outcomes.add(key, state, len(group.lines), len(line), checksum(line))
        group.wants.add(record, response.sample, response.turn, key, state)
        group.lines += line
        group.cost += response.cost or 0.0
        if group.is_full:
            self._writer.hand_over()
        return group.written

    def want(self, wants: Sequence[Want]) -> None:
        """Notes that the input wants outcomes that are there already."""
        for want in wants:
            self._writer.group().wants.add(*want)

    async def flush(self) -> None:
        """Returns when everything is on the disk, and in the index.

        Raises:
            PotstillError: If it cannot be written.
        """
        group = self._writer.group()
        future = group.loop.create_future()
        group.followed.append(future)
        self._writer.hand_over()
        await future

    def counts(self) -> dict[State, int]:
        """How many requests of the input ended how, as the index has it."""
        return self._index.counts(*self._asked)

    def rows(self, part: str) -> Iterator[Response]:
        """The outcomes that an input wants, in its order, sample by sample, turn by turn.

        Raises:
            AnswersLost: If one is not there or cannot be read any more.
        """
        return (response for _, response in self._rows(part))

    def with_records(
        self, part: str, records: Iterable[Record]
    ) -> Iterator[tuple[Record, list[Response]]]:
        """Each record of an input with the outcomes that it wants; raises as `rows`."""
        groups = itertools.groupby(self._rows(part), key=lambda row: row[0])
        number, group = next(groups, (None, ()))
        for place, record in enumerate(records):
            if place != number:
                yield record, []
                continue
            yield record, [response for _, response in group]
            number, group = next(groups, (None, ()))

    def verify(self) -> Inventory:
        """Reads every line that the index knows, and counts."""
        states, paid, unused = dict.fromkeys(State, 0), Spending(), Spending()
        for key, row in self._index.outcomes():
            line = self._segments.read(row.span)
            response = None if line is None else response_of(line)
            if response is None or key_of(response) != key:
                self.num_damaged += 1
                continue
            states[row.state] += 1
            paid.add(response)
            if waste_of(response):
                unused.add(response)
        numbers = self.folder.segments()
        files = [self.folder.damaged(number) for number in numbers]
        wanted = (row for part in self._index.parts() for _, row in self._index.wanted(part))
        return Inventory(
            num_segments=len(numbers),
            num_bytes=sum(self.folder.segment(number).stat().st_size for number in numbers),
            num_done=states[State.DONE] + states[State.CUT],
            num_dead=states[State.DEAD],
            num_cancelled=states[State.CANCELLED],
            num_stale=self._index.num_stale(),
            num_missing=sum(row is None for row in wanted),
            num_damaged=self.num_damaged,
            **told(paid, unused),
            damaged_files=tuple(str(path) for path in files if path.exists()),
        )

    def _rows(self, part: str) -> Iterator[tuple[int, Response]]:
        if part not in self._index.parts():
            raise AnswersLost(
                f"{self.path} does not say what {part} asked; the same command finds it out again, "
                f"from the answers that are there"
            )
        for want, row in self._index.wanted(part):
            if row is None:
                raise AnswersLost(
                    f"{self.path} has lost the answer to record {want.record + 1:,} of {part}; "
                    f"the same command asks for it again"
                )
            yield want.record, self._read(row)

    def _read(self, row: Row) -> Response:
        line = self._segments.read(row.span)
        if line is None:
            path = self.folder.segment(row.span.segment)
            raise AnswersLost(
                f"{path} is not what was written, at byte {row.span.start:,}; the same command "
                f"sets the damaged line aside and asks for it again"
            )
        return response_of(line)

    # Opening

    def _recover(self) -> None:
        known = self._index.segments()
        numbers = sorted({*known, *self.folder.segments()})
        for number in numbers:
            size, digest = known.get(number, (0, b""))
            end = self._segments.cut_unfinished(number)
            if number in known and digest != self._segments.digest_of(number, size):
                size = min(size, end)
                self._forget_damaged(number, size)
            if end > size:
                self._adopt(number, size, end)
        if numbers:
            self._segments.resume(numbers[-1], end)

    def _forget_damaged(self, number: int, size: int) -> None:
        """Sets aside the lines of a segment that have changed; their requests are unanswered."""
        damaged = [
            (key, row.span)
            for key, row in self._index.outcomes(number)
            if self._segments.read(row.span) is None
        ]
        self._segments.set_aside([span for _, span in damaged])
        lost = [key for key, _ in damaged]
        self._index.keep_segment(number, size, self._segments.digest_of(number, size), lost)
        self.num_damaged += len(damaged)

    def _adopt(self, number: int, start: int, end: int) -> None:
        """Takes the lines behind `start` into the index.

        A crash came between the two writes, or the index is being made again.
        """
        spans = self._segments.lines(number, start)
        while some := list(itertools.islice(spans, MOST_TOGETHER)):
            outcomes, unreadable, cost = Entries(), [], 0.0
            for span in some:
                try:
                    response = response_of(self._segments.read(span) or b"")
                except ValueError:
                    unreadable.append(span)
                    continue
                outcomes.add(
                    key_of(response), state_of(response), span.start, span.length, span.checksum
                )
                cost += response.cost or 0.0
            self._segments.set_aside(unreadable)
            self.num_damaged += len(unreadable)
            segment = (number, some[-1].start + some[-1].length, b"")
            self._index.save(
                [(0, outcomes)] if len(outcomes) else [], [], self._asked, segment, cost
            )
        self._index.keep_segment(number, end, self._segments.digest_of(number, end))

    # Writing, in the writer's thread

    def _write(self, group: Group) -> str:
        """Puts outcomes on the disk, all or none; returns why it could not."""
        with self._told() as failure:
            if group.lines:
                self._unindexed.append((self._segments.append(group.lines), group.outcomes))
            if len(group.wants):
                self._wanted.append(group.wants)
            self._cost += group.cost
        return "".join(failure)

    def _follow(self, group: Group) -> str:
        """Lets the index follow where somebody waits for it, or it is time; why it could not."""
        with self._told() as failure:
            if group.followed or self._is_due():
                self._save_index()
        return "".join(failure)

    @contextlib.contextmanager
    def _told(self) -> Iterator[list[str]]:
        """Why nothing can be written any more, as text: in this thread nobody sees an error."""
        failure: list[str] = []
        try:
            yield failure
        except (OSError, sqlite3.Error) as error:
            failure.append(self._unwritable(error))
        except Exception as error:
            # A fault of ours ends the run in the same order.
            failure.append(f"{self.path} was not written: {error!r}")

    def _is_due(self) -> bool:
        """Whether the index must follow now; it notes the size of one segment at a time."""
        return (
            self._segments.is_full
            or time.monotonic() - self._indexed_at > _MOST_SECONDS_UNINDEXED
            or sum(map(len, self._wanted)) >= _MOST_UNINDEXED
        )

    def _save_index(self) -> None:
        segment = (self._segments.number, self._segments.size, self._segments.digest)
        self._index.save(self._unindexed, self._wanted, self._asked, segment, self._cost)
        self._unindexed, self._wanted, self._cost = [], [], 0.0
        self._indexed_at = time.monotonic()

    def _finish(self) -> None:
        self._writer.finish()
        if not self._writer.failure:
            with self._told() as failure:
                self._save_index()
            self._writer.failure = "".join(failure)

    def _unwritable(self, error: Exception) -> str:
        reason = (isinstance(error, OSError) and error.strerror) or error
        return (
            f"{self.path} cannot be written: {reason}; the answers in it are safe. Make room and "
            f"run the same command again"
        )
