"""Going on with a file that has not changed passes over what is answered, and only that."""

import asyncio

import pytest
from teach.fakes import FakeTeacher, prompts
from teach.test_generate import answers

from potstill.config import GenerationConfig
from potstill.errors import TeacherError, TeacherRefused
from potstill.rundir import JsonLines, LedgerDir, content_hash, write_jsonl
from potstill.teach.generate import generate
from potstill.types import Record


class Looks:
    """A task of one prompt a record that counts how often it is asked for one."""

    name, num = "qa", 0

    def turns(self, record):
        self.num += 1
        return (record,)


def ask(teacher, records, folder, **config):
    """Asks for the records as lines of a file; returns the counts and how many were looked at."""
    path, task = folder / "records.jsonl", Looks()
    write_jsonl(path, records)
    settings = GenerationConfig(**{"pilot": 0, "min_success_ratio": 0.0, **config})
    lines = JsonLines(path, Record)
    work = generate(
        teacher, lines, folder / "ledger", task=task, config=settings,
        requested=lines.num_lines() * settings.num_responses, source=content_hash(path),
    )  # fmt: skip
    return asyncio.run(work), task.num


def interrupted(folder, **config):
    """A run over 300 records that ended at the 200th, and what it kept."""

    def say(record, sampling):
        return TeacherRefused("no more") if record.id == "r200" else "fine"

    with pytest.raises(TeacherRefused):
        ask(FakeTeacher(say), prompts(300), folder, **config)
    return answers(folder / "ledger")


def test_what_is_answered_is_not_even_looked_at(tmp_path):
    kept = len(interrupted(tmp_path))
    teacher = FakeTeacher()
    counts, num_looks = ask(teacher, prompts(300), tmp_path)
    assert (counts.answered, counts.reused, len(teacher.asked)) == (300, kept, 300 - kept)
    assert num_looks <= 300 - kept + 2 * 16
    assert sorted(answers(tmp_path / "ledger")) == sorted((f"r{n}", 0, 0) for n in range(300))
    again = FakeTeacher()
    counts, num_looks = ask(again, prompts(300), tmp_path)
    assert (counts.reused, len(again.asked), num_looks) == (300, 0, 2 * 16)


@pytest.mark.parametrize("change", ["temperature", "teacher", "file", "row"])
def test_a_change_is_seen_although_rows_are_passed_over(tmp_path, change):
    interrupted(tmp_path)
    records, teacher, config = prompts(300), FakeTeacher(), {}
    if change == "temperature":
        config = {"temperature": 0.1}
    elif change == "teacher":
        teacher = FakeTeacher(name="other")
    elif change == "row":
        records[150] = prompts(1, start=900)[0]
    else:
        records = [records[250], *records[:100]]
    kept = len(answers(tmp_path / "ledger"))
    counts, _ = ask(teacher, records, tmp_path, **config)
    assert counts.reused == {"file": 100, "row": kept - 1}.get(change, 0)
    assert [r[0] for r in answers(tmp_path / "ledger")] == [record.id for record in records]


def test_failures_and_incomplete_records_are_asked_again(tmp_path):
    seen = []

    def fails(record, sampling):
        seen.append(record.id)
        is_first = seen.count(record.id) == 1
        return TeacherError("no luck") if is_first and int(record.id[1:]) % 7 == 3 else "fine"

    ask(FakeTeacher(fails), prompts(100), tmp_path, num_responses=2)
    counts, num_looks = ask(FakeTeacher(), prompts(100), tmp_path, num_responses=2)
    assert (counts.requested, counts.answered, counts.reused) == (200, 200, 186)
    assert num_looks <= 2 * 14 + 3 * 16
    assert len(answers(tmp_path / "ledger")) == 200


def test_a_damaged_answer_is_not_passed_over(tmp_path):
    interrupted(tmp_path)
    segment = LedgerDir(tmp_path / "ledger").segment(1)
    before = b'"record_id":"r77","text":"fine"'
    segment.write_bytes(segment.read_bytes().replace(before, before.replace(b"fine", b"find")))
    teacher = FakeTeacher()
    counts, _ = ask(teacher, prompts(300), tmp_path)
    assert counts.damaged == 1
    assert "r77" in [record.id for record in teacher.asked]
    assert answers(tmp_path / "ledger")["r77", 0, 0].text == "to question 77"


def test_a_pilot_that_went_wrong_still_stops_the_next_run(tmp_path):
    for _ in range(2):
        with pytest.raises(TeacherError, match="4 of the first 4 prompts"):
            ask(FakeTeacher(lambda *_: ""), prompts(50), tmp_path, pilot=4)
    counts, _ = ask(FakeTeacher(), prompts(50), tmp_path)
    assert (counts.answered, counts.reused) == (50, 4)


def test_lines_can_be_left_out_and_read_again(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", prompts(6))
    lines = JsonLines(tmp_path / "a.jsonl", Record)
    assert (
        [record.id for record in lines]
        == [record.id for record in lines]
        == [f"r{n}" for n in range(6)]
    )
    assert [(n, record.id) for n, record in lines.without([0, 3, 5])] == [
        (1, "r1"),
        (2, "r2"),
        (4, "r4"),
    ]
    assert lines.num_lines() == 6
