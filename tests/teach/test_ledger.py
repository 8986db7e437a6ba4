"""What was acknowledged is never lost, nothing is there twice, and damage is found and mended."""

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time

import pytest
from seeds import chance as chances
from teach.keeper import in_child, keep, outcome

from potstill.errors import AnswersLost, PotstillError, RunLocked
from potstill.rundir import LedgerDir
from potstill.teach.index import State, Want
from potstill.teach.ledger import Ledger
from potstill.teach.outcomes import cancelled, key_of
from potstill.types import Message, Record


def fill(folder, outcomes, *, together=1000, **options):
    """Keeps outcomes, one a record, as one run does; so many of them in one group."""

    async def work():
        with Ledger(folder, **options) as ledger:
            ledger.begin("train")
            for n, one in enumerate(outcomes):
                saved = ledger.put(one, n)
                if n % together == together - 1:
                    await ledger.flush()
            await saved

    asyncio.run(work())


def rows(folder, part="train"):
    with Ledger(folder) as ledger:
        return list(ledger.rows(part))


def found(folder, outcomes):
    """Which of the outcomes the ledger still has an answer for."""
    with Ledger(folder) as ledger:
        return [n for n, one in enumerate(outcomes) if ledger.answer(key_of(one)) is not None]


OUTCOMES = [outcome(n) for n in range(10)]


def test_what_was_put_comes_back_in_the_order_of_the_input(tmp_path):
    async def work():
        with Ledger(tmp_path) as ledger:
            ledger.begin("train")
            for n in random.Random(0).sample(range(10), 10):
                await ledger.put(OUTCOMES[n], n)

    asyncio.run(work())
    assert rows(tmp_path) == OUTCOMES


def test_answers_can_be_read_with_nothing_but_eyes(tmp_path):
    fill(tmp_path, OUTCOMES)
    lines = LedgerDir(tmp_path).segment(1).read_text(encoding="utf-8").split("\n")
    assert lines[3].startswith('{"record_id":"r3","text":"answer 3 é')


@pytest.mark.parametrize(
    "text",
    [
        "half \ud83d a pair",
        "nul \0 byte",
        "line\u2028separators\u2029\x85\r\n\x0b",
        "\ufeffmark",
        "x" * 10**7,
        "\x1b[31mred\x1b[0m",
    ],
    ids=["surrogate", "nul", "separators", "mark", "10 MB", "ansi"],
)
def test_any_text_comes_back_as_it_was(tmp_path, text):
    wanted = [outcome(0, text, record_id=text[:40]), outcome(1)]
    fill(tmp_path, wanted)
    assert rows(tmp_path) == wanted
    LedgerDir(tmp_path).index.unlink()
    with Ledger(tmp_path) as ledger:
        assert ledger.answer(key_of(wanted[0])) == wanted[0]
        assert ledger.num_damaged == 0


def test_records_come_with_their_outcomes_and_those_without_stay_alone(tmp_path):
    two = [outcome(1), outcome(1, "again", sample=1)]

    async def work():
        with Ledger(tmp_path) as ledger:
            ledger.begin("train")
            await asyncio.gather(*(ledger.put(one, 1) for one in two))

    asyncio.run(work())
    records = [Record(id=f"r{n}", messages=(Message(role="user", content="?"),)) for n in range(3)]
    with Ledger(tmp_path) as ledger:
        pairs = list(ledger.with_records("train", records))
    assert pairs == [(records[0], []), (records[1], two), (records[2], [])]


def test_an_answer_replaces_a_failure_and_never_the_other_way(tmp_path):
    failure = outcome(3, "", finish_reason="error", error="no")
    fill(tmp_path, [failure])
    assert found(tmp_path, [failure]) == []
    fill(tmp_path, [OUTCOMES[3]])
    fill(tmp_path, [failure])
    assert rows(tmp_path) == [OUTCOMES[3]]
    LedgerDir(tmp_path).index.unlink()
    assert found(tmp_path, [failure]) == [0], "also when the index is made again"


def test_what_the_input_does_not_want_is_stale_until_it_wants_it_again(tmp_path):
    fill(tmp_path, OUTCOMES)

    async def take(numbers):
        with Ledger(tmp_path) as ledger:
            ledger.begin("train")
            keys = [key_of(OUTCOMES[n]) for n in numbers]
            states = ledger.find(keys)
            ledger.want([Want(i, 0, 0, key, states[key]) for i, key in enumerate(keys)])
            await ledger.flush()
            assert ledger.counts() == {State.DONE: len(numbers)}
            return ledger.verify().num_stale

    assert asyncio.run(take([7, 2])) == 8
    assert rows(tmp_path) == [OUTCOMES[7], OUTCOMES[2]]
    assert asyncio.run(take(range(10))) == 0
    assert rows(tmp_path) == OUTCOMES


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path):
    code = "import sys; from pathlib import Path; from potstill.teach.ledger import Ledger\n"
    code += "with Ledger(Path(sys.argv[1])): pass"
    with Ledger(tmp_path):
        with pytest.raises(RunLocked, match=rf"in use by process {os.getpid()}"):
            Ledger(tmp_path).__enter__()
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True)
        assert b"RunLocked" in other.stderr
    assert Ledger(tmp_path).__enter__() is not None


def test_a_changed_bit_is_set_aside_and_its_request_is_unanswered(tmp_path):
    fill(tmp_path, OUTCOMES)
    segment = LedgerDir(tmp_path).segment(1)
    data = bytearray(segment.read_bytes())
    place = data.index(b"answer 4")
    data[place + 7] ^= 1  # still JSON, and says "answer 5"
    segment.write_bytes(data)
    with Ledger(tmp_path) as ledger:
        assert ledger.num_damaged == 1
        inventory = ledger.verify()
        assert (inventory.num_done, inventory.num_damaged, inventory.num_missing) == (9, 1, 1)
        assert "1 lines are damaged, set aside in" in inventory.damage
        with pytest.raises(AnswersLost, match="record 5 of train"):
            list(ledger.rows("train"))
    assert json.loads(LedgerDir(tmp_path).damaged(1).read_bytes())["record_id"] == "r4"
    assert found(tmp_path, OUTCOMES) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    LedgerDir(tmp_path).index.unlink()
    assert len(found(tmp_path, OUTCOMES)) == 9, "what was set aside does not come back"
    fill(tmp_path, OUTCOMES[4:5])
    assert len(found(tmp_path, OUTCOMES)) == 10


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_damaged_no_wrong_answer_comes_back(tmp_path, seed):
    chance = random.Random(seed)
    fill(tmp_path, OUTCOMES, together=2, most_bytes=1500)
    folder = LedgerDir(tmp_path)
    segment = folder.segment(chance.choice(folder.segments()))
    data = bytearray(segment.read_bytes())
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data))
        if chance.random() < 0.5:
            data[place] ^= 1 << chance.randrange(8)
        else:
            data[place : place + chance.randrange(300)] = b"\0" * 5
    segment.write_bytes(data)
    with Ledger(tmp_path) as ledger:
        for one in OUTCOMES:
            assert ledger.answer(key_of(one)) in (None, one)
        assert ledger.num_damaged > 0
    fill(tmp_path, [OUTCOMES[n] for n in range(10) if n not in found(tmp_path, OUTCOMES)])
    with Ledger(tmp_path) as ledger:
        assert (ledger.num_damaged, ledger.verify().num_damaged) == (0, 0)
    assert found(tmp_path, OUTCOMES) == list(range(10))


def test_a_segment_that_is_gone_is_asked_again(tmp_path):
    fill(tmp_path, OUTCOMES, together=2, most_bytes=1500)
    LedgerDir(tmp_path).segment(1).unlink()
    kept = found(tmp_path, OUTCOMES)
    assert 0 < len(kept) < 10
    fill(tmp_path, [OUTCOMES[n] for n in range(10) if n not in kept])
    assert found(tmp_path, OUTCOMES) == list(range(10))


@pytest.mark.parametrize("damage", ["gone", "emptied", "overwritten", "torn", "older"])
def test_a_lost_index_is_made_again(tmp_path, damage):
    fill(tmp_path, OUTCOMES, together=2, most_bytes=1500)
    assert len(LedgerDir(tmp_path).segments()) > 2
    index = LedgerDir(tmp_path).index
    data = index.read_bytes()
    if damage == "gone":
        index.unlink()
    elif damage == "older":  # whatever it says, another version meant something else
        with contextlib.closing(sqlite3.connect(index)) as db:
            db.execute("UPDATE outcomes SET checksum = x'00'")
            db.execute("PRAGMA user_version = 1")
            db.commit()
    else:
        torn = data[: len(data) // 2] + os.urandom(len(data) // 2)
        index.write_bytes({"emptied": b"", "overwritten": b"no index " * 999, "torn": torn}[damage])
    with Ledger(tmp_path) as ledger:
        assert (ledger.num_damaged, ledger.cost) == (0, 5.0)
        with pytest.raises(AnswersLost, match="does not say what train asked"):
            list(ledger.rows("train"))
        assert ledger.verify().num_done == 10
    assert found(tmp_path, OUTCOMES) == list(range(10))


def test_whole_lines_behind_the_index_are_kept_and_half_ones_cut(tmp_path):
    """A crash came after the segment was written and before the index was."""
    fill(tmp_path, OUTCOMES[:5])
    segment = LedgerDir(tmp_path).segment(1)
    with segment.open("ab") as file:
        file.write(OUTCOMES[5].model_dump_json().encode() + b"\nnonsense\n" + b'{"record_id": "r6')
    assert found(tmp_path, OUTCOMES) == [0, 1, 2, 3, 4, 5]
    assert LedgerDir(tmp_path).damaged(1).read_bytes() == b"nonsense\n"
    fill(tmp_path, OUTCOMES[6:])
    with Ledger(tmp_path) as ledger:
        assert (ledger.verify().num_done, ledger.num_damaged) == (10, 0)


def test_cancelled_and_dead_are_told_apart_also_from_the_lines(tmp_path):
    error = {"text": "", "finish_reason": "error"}
    three = [outcome(0), outcome(1, error="no", **error), outcome(2, error=cancelled("x"), **error)]
    fill(tmp_path, three)
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            inventory = ledger.verify()
            counts = (inventory.num_done, inventory.num_dead, inventory.num_cancelled)
            assert counts == (1, 1, 1)
        LedgerDir(tmp_path).index.unlink()


@pytest.mark.parametrize("point", range(20))
def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path, point):
    """The disk fills up at one of 20 points: before, within or behind a line."""
    kind = ("write", "half", "sync")[point % 3]
    calls, acknowledged, refused = 0, [], []

    def fails():
        nonlocal calls
        calls += 1
        return calls > point

    def write(file, data):
        if kind != "sync" and fails():
            if kind == "half" and calls == point + 1:
                return os.write(file, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return os.write(file, data)

    def sync(file):
        if kind == "sync" and fails():
            raise OSError(5, "Input/output error")

    async def work():
        with Ledger(tmp_path, write=write, sync=sync) as ledger:
            ledger.begin("train")
            for n, one in enumerate(outcome(n) for n in range(30)):
                try:
                    saved = ledger.put(one, n)
                    await ledger.flush()
                    await saved
                    acknowledged.append(n)
                except PotstillError as error:
                    refused.append(n)
                    assert "cannot be written" in str(error) and "are safe" in str(error)

    with pytest.raises(PotstillError, match="cannot be written"):
        asyncio.run(work())
    assert len(acknowledged) == point
    assert acknowledged + refused == list(range(30)), "after the first failure nothing is kept"
    assert found(tmp_path, [outcome(n) for n in range(30)]) == acknowledged
    size = LedgerDir(tmp_path).segment(1).stat().st_size if point else 0
    assert size == sum(len(outcome(n).model_dump_json(exclude_defaults=True).encode()) + 1
                       for n in acknowledged)  # fmt: skip


def test_a_failing_index_ends_the_run_and_loses_no_answer(tmp_path):
    async def work():
        with Ledger(tmp_path) as ledger:
            ledger.begin("train")
            await ledger.put(OUTCOMES[0], 0)
            await ledger.flush()
            with sqlite3.connect(LedgerDir(tmp_path).index) as db:
                db.execute("DROP TABLE wanted")
            await ledger.put(OUTCOMES[1], 1)
            await ledger.flush()

    with pytest.raises(PotstillError, match="no such table: wanted"):
        asyncio.run(work())
    LedgerDir(tmp_path).index.unlink()
    assert found(tmp_path, OUTCOMES) == [0, 1]


@pytest.mark.parametrize("most_bytes", [2**20, 4_000], ids=["one segment", "many segments"])
def test_answers_and_cost_outlive_a_crash_before_the_index_followed(tmp_path, most_bytes):
    """Its entries are saved at once at first, and after that a second later or a thousand."""

    async def work(say):
        with Ledger(tmp_path, most_bytes=most_bytes) as ledger:
            ledger.begin("train")
            for n in range(40):
                await ledger.put(outcome(n), n)
                say("kept", n)
            with sqlite3.connect(LedgerDir(tmp_path).index) as db:
                (indexed,) = db.execute("SELECT count(*) FROM outcomes").fetchone()
            say("end", indexed)
            os._exit(0)

    said = in_child(work, None)
    assert len(said["kept"]) == 40 and said["end"][0] < 40
    assert found(tmp_path, [outcome(n) for n in range(41)]) == list(range(40))
    with Ledger(tmp_path) as ledger:
        assert ledger.cost == 40 * 0.5
        assert (ledger.verify().num_done, ledger.num_damaged) == (40, 0)


def test_writing_waits_for_company(tmp_path):
    """One write in 75 milliseconds, so that a thousand answers cost a few."""
    syncs = []

    async def work():
        with Ledger(tmp_path, sync=syncs.append) as ledger:
            ledger.begin("train")
            started = time.monotonic()
            for n in range(100):
                ledger.put(outcome(n), n)
                await asyncio.sleep(0.003)
            return time.monotonic() - started

    seconds = asyncio.run(work())
    assert len(syncs) <= seconds / 0.075 + 2


def die_often(folder, num_kills, num, num_open=64, *, longest=0.15):
    """Returns how many were asked more than once; nothing that was kept is."""
    chance, num_asked, kept = chances("ledger", num_kills), 0, set()
    for kill in range(num_kills + 1):
        seconds = chance.random() * longest if kill < num_kills else None
        said = in_child(lambda say: keep(folder, num, num_open, say, most_bytes=40_000), seconds)
        assert not kept & set(said["asked"]), "asked although it was kept"
        assert len(said["asked"]) <= len(said["kept"]) + num_open
        num_asked += len(said["asked"])
        kept |= set(said["kept"])
    assert said["end"] == [0]
    return num_asked - num


def same_as_without_faults(folder, num, other):
    asyncio.run(keep(other, num, 64))
    with Ledger(folder) as one, Ledger(other) as two:
        every = [one.answer(key_of(outcome(n))) for n in range(num)]
        assert every == list(two.rows("train"))
        assert (one.verify().num_done, one.num_damaged) == (num, 0)


def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path):
    assert die_often(tmp_path / "a", 5, 600) <= 5 * 64
    same_as_without_faults(tmp_path / "a", 600, tmp_path / "b")


@pytest.mark.slow
@pytest.mark.faults
def test_two_hundred_kills_lose_nothing(tmp_path):
    assert die_often(tmp_path / "a", 200, 40_000, longest=0.5) <= 200 * 64
    same_as_without_faults(tmp_path / "a", 40_000, tmp_path / "b")
