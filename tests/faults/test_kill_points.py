"""Killed at each single step of the thread that writes: before, within and behind every call."""

import asyncio
import json
import os
import signal
import threading

from seeds import chance, sizes
from teach.keeper import in_child, keep, outcome

from potstill.rundir import LedgerDir
from potstill.teach.ledger import Ledger
from potstill.teach.outcomes import key_of

NUM, OPEN, MOST_BYTES = 6, 3, 1000


def dies_at(point, say=None):
    """A profiler for new threads that kills the process at a step, counted from 0."""
    num_steps = 0

    def step(frame, event, argument):
        nonlocal num_steps
        if threading.current_thread().name != "ledger":
            return
        if num_steps == point:
            os.kill(os.getpid(), signal.SIGKILL)
        num_steps += 1

    return step


def killed_at(folder, point):
    """What was asked and acknowledged before the writer was killed at a step; and the end."""

    async def work(say):
        threading.setprofile(dies_at(point))
        await keep(folder, NUM, OPEN, say, most_bytes=MOST_BYTES)

    return in_child(work, None)


def holds_at(folder, point):
    """Whether the writer got as far as that; asserts that what was acknowledged is there."""
    said = killed_at(folder, point)
    with Ledger(folder) as ledger:
        there = {n for n in range(NUM) if ledger.answer(key_of(outcome(n))) == outcome(n)}
        assert set(said["kept"]) <= there, f"acknowledged and lost at step {point}"
        assert ledger.num_damaged == 0, f"damaged at step {point}"
    asyncio.run(keep(folder, NUM, OPEN, most_bytes=MOST_BYTES))
    with Ledger(folder) as ledger:
        assert [ledger.answer(key_of(outcome(n))) for n in range(NUM)] == [
            outcome(n) for n in range(NUM)
        ]
        inventory = ledger.verify()
        assert (inventory.num_done, inventory.num_missing, inventory.num_damaged) == (NUM, 0, 0)
    lines = [
        json.loads(line)["record_id"]
        for number in LedgerDir(folder).segments()
        for line in LedgerDir(folder).segment(number).read_text("utf-8").split("\n")[:-1]
    ]
    assert len(lines) == len(set(lines)) == NUM, f"doubled at step {point}"
    return not said["end"]


@sizes(300, 3)
def test_whatever_step_the_writer_is_killed_at_nothing_is_lost_or_doubled(tmp_path, num):
    """Every so many steps, from a random one on: calls of other seeds are of other steps."""
    point, num_killed = chance("points", num).randrange(min(num, 30)), 0
    while holds_at(tmp_path / str(point), point):
        point, num_killed = point + num, num_killed + 1
    print({"steps": point, "kills": num_killed})
    assert point > 500, "it was killed all along its way"
