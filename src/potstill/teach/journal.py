"""The file of the teacher's answers while it is being written: append, find again, tidy up."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from potstill.errors import DataError, PotstillError
from potstill.types import Response

_SYNC_EVERY = 128
"""Answers between two flushes to the disk itself; the process's death loses none."""


class Journal:
    """An append-only JSONL file of `Response`, with an index of who is answered.

    The index holds a hash and a place in the file for each answer, not the answer. Answers
    that no longer belong to any prompt are kept in a file beside (`.stale`), because they
    were paid for and the next edit of the input may want them back.

    Raises:
        DataError: If a line inside the file cannot be read. A last line that a crash cut off
            is dropped.
        PotstillError: If the file cannot be written; no half answer is left in it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.stale_path = path.with_name(f"{path.stem}.stale{path.suffix}")
        self.cost = 0.0
        """What all answers in the file cost, as far as it is known."""

        self._places: dict[bytes, int] = {}
        self._used: set[int] = set()
        self._num_lines = 0
        self._since_sync = 0

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_unfinished(self.path)
            self._absorb_stale()
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        for place, response in self._rows():
            self._num_lines += 1
            self.cost += response.cost or 0.0
            if response.finish_reason != "error":
                self._places[_key_of(response)] = place
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as failure:
            if error is None:
                raise self._unwritable(failure) from failure
        finally:
            self._file.close()

    def find(self, record_id: str, turn: int, sample: int, fingerprint: str) -> Response | None:
        """The answer to this very request, if there is one that is not an error."""
        place = self._places.get(_key(record_id, turn, sample, fingerprint))
        if place is None:
            return None
        self._used.add(place)
        with self.path.open("rb") as file:
            file.seek(place)
            return Response.model_validate_json(file.readline())

    def append(self, response: Response) -> None:
        """Puts an answer into the file before it returns."""
        place = os.fstat(self._file.fileno()).st_size
        line = response.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                written += self._file.write(line[written:])
            self._since_sync += 1
            if self._since_sync >= _SYNC_EVERY:
                os.fdatasync(self._file.fileno())
                self._since_sync = 0
        except OSError as error:
            os.ftruncate(self._file.fileno(), place)
            raise self._unwritable(error) from error
        self._num_lines += 1
        self._used.add(place)
        self.cost += response.cost or 0.0

    def tidy(self) -> None:
        """Leaves exactly the answers found or appended by this call; others are set aside.

        Old errors are dropped, because their prompts have a later outcome, and so are doubles.
        """
        if len(self._used) == self._num_lines:
            return
        kept, stale = _temporary(self.path), _temporary(self.stale_path)
        try:
            with kept.open("wb") as current, stale.open("wb") as aside:
                for place, response in self._rows():
                    line = response.model_dump_json(exclude_defaults=True).encode() + b"\n"
                    if place in self._used:
                        current.write(line)
                    elif self._places.get(_key_of(response)) == place:
                        aside.write(line)
                for file in (current, aside):
                    file.flush()
                    os.fsync(file.fileno())
            # Set aside first: a crash between the two leaves an answer twice, never nowhere.
            os.replace(stale, self.stale_path)
            os.replace(kept, self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            kept.unlink(missing_ok=True)
            stale.unlink(missing_ok=True)

    def _rows(self) -> Iterator[tuple[int, Response]]:
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield place, Response.model_validate_json(line)
                except ValueError as error:
                    raise DataError(
                        f"{self.path}:{number}: not a Response: {str(error).splitlines()[0]}; "
                        f"delete the line to have it asked again"
                    ) from None
                place += len(line)

    def _absorb_stale(self) -> None:
        """Brings answers that were set aside back in front, so that they can be found."""
        if not self.stale_path.exists():
            return
        _cut_unfinished(self.stale_path)
        merged = _temporary(self.path)
        try:
            with merged.open("wb") as file:
                for path in (self.stale_path, self.path):
                    if path.exists():
                        file.write(path.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(merged, self.path)
            self.stale_path.unlink()
        finally:
            merged.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> PotstillError:
        return PotstillError(
            f"{self.path} cannot be written: {error.strerror or error}; the {self._num_lines:,} "
            f"answers in it are safe. Make room and run the same command again"
        )


def _key(record_id: str, turn: int, sample: int, fingerprint: str) -> bytes:
    text = f"{record_id}\0{turn}\0{sample}\0{fingerprint}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _key_of(response: Response) -> bytes:
    return _key(response.record_id, response.turn, response.sample, response.fingerprint)


def _cut_unfinished(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _temporary(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    os.chmod(name, 0o644)
    return Path(name)
