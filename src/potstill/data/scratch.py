"""A database on disk for one pass over the data: memory stays flat, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

CACHE_BYTES = 32 << 20


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[sqlite3.Connection]:
    """An empty SQLite database in the folder, which the system frees when the process ends.

    It is never read again, so it has no journal and is never flushed: all in one transaction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, prefix=".scratch.")
    os.close(handle)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN EXCLUSIVE")
        # Without a name it is freed even after a kill; the open file stays.
        os.unlink(path)
        yield database
    finally:
        database.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
