"""Real data: every gold answer is read and scored as right by its own task."""

import itertools
import os
from pathlib import Path

import pytest

from potstill.data.load import iter_records
from potstill.tasks import get_task, is_closed, target_of

DATA = Path(os.environ.get("POTSTILL_TASK_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = sorted(DATA.glob("*/*/*.jsonl"))
CLOSED = {"nli", "classification"}


def test_there_is_real_data_to_check():
    if not FILES:
        pytest.skip(f"no task data in {DATA}; set POTSTILL_TASK_DATA to check the tasks on it")


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}-{p.stem}" for p in FILES])
def test_the_gold_answer_is_right(path):
    task = get_task(path.parts[-3])
    records = list(itertools.islice(iter_records(path), 50))
    for record in records:
        for turn in task.turns(record):
            prediction = target_of(task, turn)
            assert prediction is not None, turn.reference
            assert task.correct(prediction, turn) == 1.0, turn.reference
    if task.name in CLOSED:
        assert is_closed(records)
