"""What is gathered for the writer is written once, in order, and everybody is told."""

import asyncio
import threading

import pytest

from potstill.errors import PotstillError
from potstill.teach.index import State
from potstill.teach.writer import MOST_TOGETHER, Writer


class Disk:
    """Keeps what it is given, a group at a time; fails at one group on demand."""

    def __init__(self, fails_at=None):
        self.groups, self.fails_at, self.num_writes = [], fails_at, 0
        self.is_open = threading.Event()
        self.is_open.set()
        self.followed = threading.Event()
        self.followed.set()

    def follow(self, group):
        self.followed.wait()
        return ""

    def write(self, group):
        self.is_open.wait()
        self.num_writes += 1
        if self.num_writes - 1 == self.fails_at:
            return "full"
        self.groups.append([row >> 32 for row in group.wants.rows])
        return ""

    @property
    def records(self):
        return [record for group in self.groups for record in group]


def started(disk):
    writer = Writer(disk.write, disk.follow)
    writer.start()
    return writer


def add(writer, number, *, at_once=False):
    """Gathers an outcome as the ledger does; its future."""
    group = writer.group()
    group.outcomes.add(b"k" * 16, State.DONE, 0, 1, b"c" * 8)
    group.wants.add(number, 0, 0, b"k" * 16, State.DONE)
    if at_once or group.is_full:
        writer.hand_over()
    return group.written


def flush(writer):
    group = writer.group()
    group.followed.append(asyncio.get_running_loop().create_future())
    writer.hand_over()
    return group.followed[-1]


def test_all_is_written_in_order_and_many_together():
    disk = Disk()
    disk.is_open.clear()
    writer = started(disk)

    async def main():
        for n in range(1000):
            add(writer, n)

    asyncio.run(main())
    disk.is_open.set()
    writer.finish()
    assert disk.records == list(range(1000))
    assert max(map(len, disk.groups)) == MOST_TOGETHER
    assert len(disk.groups) == 4


def test_whoever_waits_is_told_once_it_is_written():
    async def main():
        disk = Disk()
        writer = started(disk)
        for n in range(20):
            await asyncio.wait_for(add(writer, n, at_once=n % 2 == 0), 5)
            assert disk.records == list(range(n + 1))
        writer.finish()

    asyncio.run(main())


def test_an_outcome_does_not_wait_for_what_follows_and_a_flush_does():
    async def main():
        disk = Disk()
        disk.followed.clear()
        writer = started(disk)
        outcome, flushed = add(writer, 0), flush(writer)
        await asyncio.wait_for(outcome, 5)
        assert disk.records == [0] and not flushed.done()
        disk.followed.set()
        await asyncio.wait_for(flushed, 5)
        writer.finish()

    asyncio.run(main())


def test_while_the_disk_is_busy_those_who_come_wait_together():
    async def main():
        disk = Disk()
        writer = started(disk)
        disk.is_open.clear()
        first = add(writer, 0)
        await asyncio.sleep(0.01)  # its time is over at once: none came before it
        others = []
        for n in range(1, 6):
            others.append(add(writer, n))
            await asyncio.sleep(0.05)
        disk.is_open.set()
        await asyncio.wait_for(asyncio.gather(first, *others), 5)
        assert disk.groups == [[0], [1, 2, 3, 4, 5]]
        writer.finish()

    asyncio.run(main())


def test_a_crowd_that_comes_while_it_writes_is_not_forgotten():
    """Nothing else is handed over later that might wake it up."""

    async def main():
        disk = Disk()
        writer = started(disk)
        for crowd in (1, MOST_TOGETHER, 3 * MOST_TOGETHER, 2):
            disk.is_open.clear()
            futures = [add(writer, n) for n in range(crowd)]
            disk.is_open.set()
            await asyncio.wait_for(asyncio.gather(*futures), 5)
        writer.finish()

    asyncio.run(main())


def test_what_a_loop_left_behind_is_written_and_the_next_loop_is_told():
    disk = Disk()
    writer = started(disk)
    disk.is_open.clear()

    async def leave():
        add(writer, 0, at_once=True)  # under way when the loop ends
        add(writer, 1)  # not even handed over

    async def go_on():
        last = add(writer, 2)
        disk.is_open.set()
        await asyncio.wait_for(last, 5)

    asyncio.run(leave())
    asyncio.run(go_on())
    writer.finish()
    assert disk.records == [0, 1, 2]


def test_after_a_failure_nothing_is_written_and_all_are_told():
    async def main():
        disk = Disk(fails_at=1)
        writer = started(disk)
        await add(writer, 0, at_once=True)
        for n in (1, 2):
            with pytest.raises(PotstillError, match="full"):
                await add(writer, n, at_once=True)
        with pytest.raises(PotstillError, match="full"):
            await flush(writer)
        writer.finish()
        assert (disk.records, writer.failure) == ([0], "full")

    asyncio.run(main())


def test_one_who_has_given_up_keeps_nobody_else_waiting():
    async def main():
        writer = started(Disk())
        given_up, other = flush(writer), flush(writer)
        given_up.cancel()
        await asyncio.wait_for(other, 5)
        writer.finish()

    asyncio.run(main())
