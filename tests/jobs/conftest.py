"""A workspace whose jobs are run by `fake_worker`, in processes of their own."""

import functools
import json
import sys
from pathlib import Path

import pytest

from potstill.entities import DistillationJob
from potstill.jobs.client import MLClient
from potstill.jobs.executor import LocalExecutor

WORKER = (sys.executable, str(Path(__file__).parent / "fake_worker.py"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a workspace file, two names for models, and validation data."""
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "potstill.yaml").write_text(
        "home: jobs\nmodels: {deepseek-v3: ./teacher, phi-4-mini: {source: ./student}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(folder):
    client = MLClient(folder, executor=functools.partial(LocalExecutor, worker=WORKER))
    yield client
    for job in client.jobs.list():
        if not job.status.is_over:
            client.jobs.cancel(job.name)
    client.close()


@pytest.fixture
def job_that(folder):
    """Makes the job whose fake pipeline follows these orders."""

    def make(name=None, student="phi-4-mini", key=None, hyperparameters=None, **orders):
        data = folder / f"{abs(hash(json.dumps(orders)))}.jsonl"
        data.write_text(json.dumps(orders) + "\n")
        return DistillationJob(
            teacher_model="deepseek-v3",
            student_model=student,
            training_data=str(data),
            task_type="conversation",
            hyperparameters=hyperparameters or {},
            teacher_key=key,
            name=name,
        )

    return make
