"""The answers on disk: append-only files of one JSON object a line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from potstill.rundir import LedgerDir

MOST_BYTES = 64 * 2**20
"""A segment that has grown to this gets a successor."""

_BLOCK = 2**20


class Span(NamedTuple):
    """Where a line stands, and the hash that tells whether it is still what was written."""

    segment: int
    start: int
    length: int
    checksum: bytes


def checksum(line: bytes | memoryview) -> bytes:
    """Eight bytes that change when any bit of the line does."""
    return hashlib.sha256(line).digest()[:8]


class Segments:
    """The segment files of a ledger.

    Args:
        write, sync: What puts bytes into a file, and onto the disk itself.
        most_bytes: Size at which the next segment is begun.
    """

    def __init__(
        self,
        folder: LedgerDir,
        *,
        write: Callable[[int, bytes], int] = os.write,
        sync: Callable[[int], None] = os.fdatasync,
        most_bytes: int = MOST_BYTES,
    ):
        self.folder = folder
        self.number = 1
        """The segment that is being written."""

        self.size = 0
        self._hash = hashlib.sha256()  # processors compute it twice as fast as BLAKE2
        self._write, self._sync, self._most_bytes = write, sync, most_bytes
        self._file: int | None = None
        self._readers: dict[int, int] = {}

    def close(self) -> None:
        """Closes all files."""
        for file in self._readers.values():
            os.close(file)
        self._readers.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def digest(self) -> bytes:
        """Hash of the segment that is being written."""
        return self._hash.digest()

    @property
    def is_full(self) -> bool:
        """Whether the next lines begin another segment."""
        return self.size >= self._most_bytes

    def resume(self, number: int, size: int) -> None:
        """Goes on writing behind the first `size` bytes of a segment."""
        self.number, self.size = number, size
        self._hash = self._hashed(number, size)

    def append(self, lines: bytes | bytearray) -> int:
        """Puts lines on the disk itself: all of them, or none where it raises OSError.

        Returns:
            Where in the segment the first one begins.
        """
        if self.is_full:
            self._end_segment()
        if self._file is None:
            self._file = self._open_for_writing()
        start, data = self.size, memoryview(lines)
        try:
            while data:
                data = data[self._write(self._file, data) :]
            self._sync(self._file)
        except OSError:
            os.ftruncate(self._file, start)
            raise
        self.size += len(lines)
        self._hash.update(lines)
        return start

    def read(self, span: Span) -> bytes | None:
        """The line as it was written; None where it is not there any more."""
        if span.segment not in self._readers:
            try:
                path = self.folder.segment(span.segment)
                self._readers[span.segment] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
        line = os.pread(self._readers[span.segment], span.length, span.start)
        return line if checksum(line) == span.checksum else None

    def lines(self, number: int, start: int = 0) -> Iterator[Span]:
        """The lines of a segment from a place on, as they are now; blank ones are left out."""
        path = self.folder.segment(number)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if line.strip():
                    yield Span(number, start, len(line), checksum(line))
                start += len(line)

    def cut_unfinished(self, number: int) -> int:
        """Cuts off a last line that has no end. Returns the size."""
        path = self.folder.segment(number)
        if not path.exists():
            return 0
        with path.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BLOCK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
        return end

    def digest_of(self, number: int, size: int) -> bytes:
        """Hash of the first bytes of a segment; of fewer where it is shorter."""
        return self._hashed(number, size).digest()

    def set_aside(self, spans: Sequence[Span]) -> None:
        """Moves lines out of their segment into the file of damaged ones; blanks stay behind.

        The lines after them stay where they are, so their places stay true.
        """
        for span in spans:
            path = self.folder.segment(span.segment)
            if not path.exists():
                continue
            with path.open("rb+") as file, self.folder.damaged(span.segment).open("ab") as aside:
                file.seek(span.start)
                found = file.read(span.length)
                if found.strip():
                    aside.write(found.rstrip(b"\n") + b"\n")
                    aside.flush()
                    os.fsync(aside.fileno())
                file.seek(span.start)
                file.write(b" " * (len(found) - 1) + b"\n" if found else b"")
                file.flush()
                os.fsync(file.fileno())

    def _hashed(self, number: int, size: int) -> Any:
        digest = hashlib.sha256()
        path = self.folder.segment(number)
        if not path.exists():
            return digest
        with path.open("rb") as file:
            while size > 0 and (block := file.read(min(size, _BLOCK))):
                digest.update(block)
                size -= len(block)
        return digest

    def _end_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.resume(self.number + 1, 0)

    def _open_for_writing(self) -> int:
        path = self.folder.segment(self.number)
        is_new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if is_new:
            folder = os.open(self.folder.path, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name of the file, not only what is in it
            finally:
                os.close(folder)
        return file
