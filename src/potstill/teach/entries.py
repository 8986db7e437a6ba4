"""Outcomes and wishes on their way into the index, in the form that it takes in fastest.

They are gathered by the thread that asks, one number and a few bytes each: whatever the writer's
thread would have to do for every one of them, that thread would wait for.
"""

from __future__ import annotations


class Entries:
    """Outcomes: keys, and where their lines stand."""

    def __init__(self) -> None:
        self.keys = bytearray()
        """16 bytes of key and 8 of checksum each."""

        self.rows: list[int] = []
        """Start, length and state of each."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, key: bytes, state: int, start: int, length: int, checksum: bytes) -> None:
        """One outcome (its `State`); its line's place is counted from where all of them begin."""
        self.keys += key
        self.keys += checksum
        self.rows.append(start << 32 | length << 3 | state)


class Wants:
    """What an input wants, and where in the input."""

    def __init__(self) -> None:
        self.keys = bytearray()
        self.rows: list[int] = []
        """Record, turn, sample and state of each."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, record: int, sample: int, turn: int, key: bytes, state: int) -> None:
        """One outcome; records of the input are counted from 0."""
        self.keys += key
        self.rows.append(record << 32 | turn << 12 | sample << 3 | state)
