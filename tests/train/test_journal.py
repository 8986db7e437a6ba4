"""Where the figures of a training go."""

import contextlib
import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys

import pytest
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig
from potstill.errors import MissingExtra
from potstill.train.journal import Journal
from potstill.train.loop import fine_tune_student
from potstill.train.trackers import open_tracker


class Listener:
    """A tracker that remembers, and fails from a step on."""

    def __init__(self, fails_at=None):
        self.told, self.fails_at, self.failed = [], fails_at, None

    def tell(self, figures):
        if figures["step"] == self.fails_at:
            raise ConnectionError("nobody answers")
        self.told.append(figures["step"])

    def close(self, *, failed):
        self.failed = failed


def test_lines_of_steps_that_will_be_done_again_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with Journal(file, 0) as journal:
        for step in (1, 2, 3):
            journal.write({"step": step})
    file.write_text(file.read_text() + '{"step": 4')
    with Journal(file, 2) as journal:
        journal.write({"step": 3, "again": 1})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": 1},
    ]


def test_trackers_are_told_what_is_written_and_how_it_ended(tmp_path):
    good, bad = Listener(), Listener()
    with Journal(tmp_path / "metrics.jsonl", 0, [good]) as journal:
        journal.write({"step": 1})
    with (
        pytest.raises(KeyboardInterrupt),
        Journal(tmp_path / "metrics.jsonl", 1, [bad]) as journal,
    ):
        journal.write({"step": 2})
        raise KeyboardInterrupt
    assert (good.told, good.failed) == ([1], False)
    assert (bad.told, bad.failed) == ([2], True)


def test_a_tracker_that_fails_is_left_alone_and_said(tmp_path, caplog):
    good, bad = Listener(), Listener(fails_at=2)
    with (
        caplog.at_level(logging.WARNING),
        Journal(tmp_path / "metrics.jsonl", 0, [bad, good]) as journal,
    ):
        for step in (1, 2, 3):
            journal.write({"step": step})
    assert (good.told, bad.told) == ([1, 2, 3], [1])
    assert caplog.text.count("Listener is not told any more: nobody answers") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", ["mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)  # as if it were not, where it is
    with pytest.raises(MissingExtra, match=f"pip install {kind}"):
        open_tracker(kind, "run", "0" * 64, {})


def test_a_training_that_goes_on_goes_on_in_the_same_run_of_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/kept")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first in (1, 3):
        tracker = open_tracker("mlflow", "run", "0" * 64, {"seed": 3})
        for step in (first, first + 1):
            tracker.tell({"step": step, "train/loss_nats": 1 / step})
        tracker.close(failed=False)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("potstill").experiment_id])
    kept = client.get_metric_history(run.info.run_id, "train/loss_nats")
    assert [(metric.step, metric.value) for metric in kept] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert run.data.params == {"seed": "3"}


TRACKED = """
import sys
from potstill.train.trackers import open_tracker
for first in (1, 3):
    tracker = open_tracker("trackio", "run", "0" * 64, {"seed": 3})
    for step in (first, first + 1):
        tracker.tell({"step": step, "train/loss_nats": 1 / step})
    tracker.close(failed=False)
"""


def test_a_training_that_goes_on_goes_on_in_the_same_run_of_trackio(tmp_path):
    """In a process of its own: what it says on standard output would stand in a command's JSON."""
    pytest.importorskip("trackio")
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", TRACKED], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "potstill.db")) as kept:
        told = kept.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in told] == [("run-00000000", n) for n in (1, 2, 3, 4)]
    assert [json.loads(figures) for *_, figures in told] == [
        {"train/loss_nats": 1 / n} for n in (1, 2, 3, 4)
    ]


def test_only_trackers_that_are_asked_for_are_loaded(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    settings = {"loss": LossConfig(), "targets": None, "out": run_dir(tmp_path / "run")}
    fine_tune_student(model, tokenizer, rows(tokenizer), (), train=quick(max_steps=1), **settings)
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(MissingExtra):
            fine_tune_student(
                model, tokenizer, rows(tokenizer), (), train=quick(track=["mlflow"]), **settings
            )
