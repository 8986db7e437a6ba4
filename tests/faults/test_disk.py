"""A disk that fills up, at many points: the run stops in order, and goes on where it stopped."""

import asyncio
import contextlib
import json
import resource

import pytest
from seeds import chance, sizes
from teach.fakes import FakeTeacher, prompts

from potstill.config import GenerationConfig, parse_config
from potstill.errors import PotstillError
from potstill.pipeline.story import distill
from potstill.rundir import RunDir
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger

NUM_ROWS = 120


@contextlib.contextmanager
def room_for(num_bytes):
    """No file can grow beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def asked(out):
    teacher = FakeTeacher(lambda record, sampling: f"{record.id} " * 50)
    config = GenerationConfig(pilot=0)
    work = generate(teacher, prompts(NUM_ROWS), out, task=get_task("qa"), config=config)
    return teacher, asyncio.run(work)


@sizes(4, 20)
def test_asking_stops_when_the_disk_is_full_and_pays_for_no_kept_answer_again(tmp_path, num):
    random, num_stopped = chance("disk", num), 0
    for point in range(num):
        out, kept = tmp_path / str(point), 0
        with room_for(random.randrange(1000, 60_000)):
            try:
                asked(out)
            except PotstillError as error:
                assert "cannot be written" in str(error)
                num_stopped += 1
        with contextlib.suppress(PotstillError), Ledger(out) as ledger:
            kept = sum(1 for _ in ledger.rows("train"))
        teacher, counts = asked(out)
        assert counts.reused >= kept
        assert len(teacher.asked) == NUM_ROWS - counts.reused
        with Ledger(out) as ledger:
            assert [row.record_id for row in ledger.rows("train")] == [
                record.id for record in prompts(NUM_ROWS)
            ]
            assert ledger.num_damaged == 0
    assert num_stopped >= num // 2


def run_of(tmp_path, folder):
    """A whole pipeline up to the checked answers, without a model: they come from a log."""
    rows = []
    for n in range(60):
        asked = {"role": "user", "content": f"Question {n}? " + "word " * (n % 40)}
        answer = {"role": "assistant", "content": f"Answer {n}."}
        choice = {"message": answer, "finish_reason": "stop"}
        rows.append({"id": f"c{n}", "model": "m", "messages": [asked], "choices": [choice]})
    log = tmp_path / "log.jsonl"
    if not log.exists():
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "disk", "task": "conversation", "student": "smollm2-135m", "train_data": str(log),
        "teacher": {"url": "http://127.0.0.1:9/v1", "model": "nobody"}, "checks": ["finished"],
        "data": {"logged_answers": "reuse"},
    }  # fmt: skip
    distill(parse_config(tree), RunDir(folder), stop_after="check")
    run = RunDir(folder)
    return run.accepted.read_bytes(), run.accepted_validation.read_bytes()


@pytest.mark.journey
@sizes(3, 20)
def test_every_stage_stops_when_the_disk_is_full_and_ends_as_without_it(tmp_path, num):
    whole = run_of(tmp_path, tmp_path / "whole")
    random, num_stopped = chance("stages", num), 0
    for point in range(num):
        folder = tmp_path / str(point)
        with room_for(random.randrange(100, 40_000)):
            try:
                run_of(tmp_path, folder)
            except (PotstillError, OSError):  # the command line explains both
                num_stopped += 1
        assert run_of(tmp_path, folder) == whole
    assert num_stopped >= num // 2
