"""The real lm-eval, where POTSTILL_LM_EVAL names its command, on a task of our own."""

import json
import os
from pathlib import Path

import pytest
from tiny import tiny_llama

from potstill.errors import PotstillError
from potstill.examine.general import ask_lm_eval
from potstill.examine.general_pairs import marks_of
from potstill.examine.resample import wilson

COMMAND = os.environ.get("POTSTILL_LM_EVAL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(COMMAND).is_file(),
        reason='python -m venv lm-eval && lm-eval/bin/pip install "lm-eval[hf]", and then '
        "POTSTILL_LM_EVAL=lm-eval/bin/lm_eval",
    ),
]
TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {test: rows.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{answer}}"
metadata: {version: 3.0}
"""


@pytest.fixture
def own_tasks(tmp_path):
    """A folder with one task and its rows, of which the first 20 are to be asked."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(TASK)
    rows = [
        {"question": f"question {i}", "options": [" red", " green"], "answer": i % 2}
        for i in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ask(tmp_path, own_tasks, task):
    return ask_lm_eval(
        Path(COMMAND), tiny_llama(tmp_path / "model"), [task],
        limit=20, batch_size=4, out=tmp_path / "out", include=own_tasks,
    )  # fmt: skip


def test_what_it_writes_is_read_with_n_and_interval(tmp_path, own_tasks):
    found = ask(tmp_path, own_tasks, "colours")
    assert set(found) == {"general.colours.acc", "general.colours.acc_norm"}
    accuracy = found["general.colours.acc"]
    assert (accuracy.n, accuracy.method) == (20, "wilson")
    right = round(accuracy.value * 20)
    assert accuracy.value == pytest.approx(right / 20)
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson(right, 20))
    marks = marks_of(tmp_path / "out")
    assert set(marks) == set(found) and len(marks["general.colours.acc"]) == 20
    assert sum(marks["general.colours.acc"].values()) == right
    assert accuracy.signature.startswith("lm-eval 0.")
    assert accuracy.signature.endswith("filter none, 0-shot, task version 3.0")


def test_a_task_that_it_does_not_know_is_told(tmp_path, own_tasks):
    with pytest.raises(PotstillError, match=r"last words: .*Tasks? not found: .*smells"):
        ask(tmp_path, own_tasks, "smells")
