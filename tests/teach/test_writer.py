"""What is handed to the writer is written once, in order, and everybody is told."""

import asyncio
import threading

import pytest

from potstill.errors import PotstillError
from potstill.teach.index import State, Want
from potstill.teach.writer import MOST_TOGETHER, Item, Writer


class Disk:
    """Keeps what it is given, a group at a time; fails at one group on demand."""

    def __init__(self, fails_at=None):
        self.groups, self.fails_at, self.num_writes = [], fails_at, 0
        self.is_open = threading.Event()
        self.is_open.set()
        self.followed = threading.Event()
        self.followed.set()

    def follow(self, items):
        self.followed.wait()
        return ""

    def write(self, items):
        self.is_open.wait()
        self.num_writes += 1
        if self.num_writes - 1 == self.fails_at:
            return "full"
        self.groups.append([item.want.record for item in items if item.want])
        return ""

    @property
    def records(self):
        return [record for group in self.groups for record in group]


def want(number):
    return Want(number, 0, 0, b"k" * 16, State.DONE)


def test_all_is_written_in_order_and_many_together():
    disk = Disk()
    disk.is_open.clear()
    writer = Writer(disk.write, disk.follow)
    writer.start()
    for n in range(1000):
        writer.add(Item(None, want=want(n)))
    disk.is_open.set()
    writer.finish()
    assert disk.records == list(range(1000))
    assert max(map(len, disk.groups)) == MOST_TOGETHER
    assert len(disk.groups) <= 2 * 1000 / MOST_TOGETHER + 2


def test_whoever_waits_is_told_once_it_is_written():
    async def main():
        disk = Disk()
        writer = Writer(disk.write, disk.follow)
        writer.start()
        for n in range(20):
            future = asyncio.get_running_loop().create_future()
            writer.add(Item(future, want=want(n)), at_once=n % 2 == 0)
            await future
            assert disk.records == list(range(n + 1))
        writer.finish()

    asyncio.run(main())


def test_an_outcome_does_not_wait_for_what_follows_and_a_flush_does():
    async def main():
        disk = Disk()
        disk.followed.clear()
        writer = Writer(disk.write, disk.follow)
        writer.start()
        outcome, flushed = (asyncio.get_running_loop().create_future() for _ in range(2))
        writer.add(Item(outcome, want=want(0)))
        writer.add(Item(flushed), at_once=True)
        await asyncio.wait_for(outcome, 5)
        assert disk.records == [0] and not flushed.done()
        disk.followed.set()
        await asyncio.wait_for(flushed, 5)
        writer.finish()

    asyncio.run(main())


def test_a_crowd_that_comes_while_it_writes_is_not_forgotten():
    """Nothing else is handed over later that might wake it up."""

    async def main():
        disk = Disk()
        writer = Writer(disk.write, disk.follow)
        writer.start()
        loop = asyncio.get_running_loop()
        for crowd in (1, MOST_TOGETHER, 3 * MOST_TOGETHER, 2):
            disk.is_open.clear()
            futures = [loop.create_future() for _ in range(crowd)]
            for future in futures:
                writer.add(Item(future))
            disk.is_open.set()
            await asyncio.wait_for(asyncio.gather(*futures), 5)
        writer.finish()

    asyncio.run(main())


def test_after_a_failure_nothing_is_written_and_all_are_told():
    async def main():
        disk = Disk(fails_at=1)
        writer = Writer(disk.write, disk.follow)
        writer.start()
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        writer.add(Item(futures[0], want=want(0)), at_once=True)
        await futures[0]
        for n in (1, 2):
            writer.add(Item(futures[n], want=want(n)), at_once=True)
            with pytest.raises(PotstillError, match="full"):
                await futures[n]
        writer.finish()
        assert (disk.records, writer.failure) == ([0], "full")

    asyncio.run(main())


def test_one_who_has_given_up_keeps_nobody_else_waiting():
    async def main():
        writer = Writer(Disk().write, Disk().follow)
        writer.start()
        futures = [asyncio.get_running_loop().create_future() for _ in range(2)]
        futures[0].cancel()
        for future in futures:
            writer.add(Item(future), at_once=True)
        await asyncio.wait_for(futures[1], 5)
        writer.finish()

    asyncio.run(main())
