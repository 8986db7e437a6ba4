"""Rows change only where they may, also when many want it at once."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from potstill.entities import RESUMABLE, Job, JobStatus
from potstill.errors import ConfigError, JobError
from potstill.jobs.store import Store, split_version

S = JobStatus


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "jobs.db")
    yield store
    store.close()


def add(store, name="faq", **facts):
    job = Job(
        name=name,
        status=S.NOT_STARTED,
        run=Path("/runs") / name,
        model="phi-distilled",
        baseline="phi-baseline",
        created_at=time.time(),
        **facts,
    )
    return store.add_job(job, workspace={}, fingerprint="f", wants_key=False)


def advance(store, name, *states):
    for before, after in itertools.pairwise(states):
        assert store.move(name, after, out_of=[before])


def test_a_name_is_added_once(store):
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: add(store), range(8))) == [False] * 7 + [True]
    assert len(store.models()) == 2


def test_of_many_who_start_a_job_one_succeeds(store):
    add(store)
    with ThreadPoolExecutor(8) as pool:
        moved = list(
            pool.map(lambda _: store.move("faq", S.QUEUED, out_of=[S.NOT_STARTED]), range(8))
        )
    assert sum(moved) == 1


def test_versions_count_up_without_holes_for_many_jobs_at_once(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add(store, f"job-{i}"), range(8)))
    assert [model.version for model in store.models("phi-distilled")] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_cancelled_job_cannot_publish(store):
    add(store)
    advance(store, "faq", S.NOT_STARTED, S.QUEUED, S.RUNNING, S.FINALIZING, S.CANCEL_REQUESTED)
    assert not store.publish("faq", distilled=Path("d"), untouched=Path("u"))
    advance(store, "faq", S.CANCEL_REQUESTED, S.CANCELED)
    assert {model.status for model in store.models()} == {"failed"}


def test_publishing_completes_the_job_and_its_models_together(store):
    add(store)
    advance(store, "faq", S.NOT_STARTED, S.QUEUED, S.RUNNING, S.FINALIZING)
    assert store.publish("faq", distilled=Path("d"), untouched=Path("u"))
    assert store.job("faq").status is S.COMPLETED
    assert {(m.kind, str(m.path), m.status) for m in store.models()} == {
        ("distilled", "d", "ready"),
        ("untouched", "u", "ready"),
    }


def test_a_new_start_promises_the_models_again(store):
    add(store)
    advance(store, "faq", S.NOT_STARTED, S.QUEUED, S.RUNNING)
    store.move("faq", S.FAILED, out_of=[S.RUNNING], error="away", error_kind="TeacherError")
    store.move("faq", S.QUEUED, out_of=RESUMABLE)
    job = store.job("faq")
    assert (job.error, job.error_kind, job.ended_at, job.attempt) == ("", "", None, 2)
    assert {model.status for model in store.models()} == {"pending"}


def test_a_heart_beat_brings_back_a_job_that_was_given_up(store):
    add(store)
    store.move("faq", S.QUEUED, out_of=[S.NOT_STARTED])
    store.note_process("faq", "1:2")
    advance(store, "faq", S.QUEUED, S.RUNNING, S.NOT_RESPONDING)
    store.beat("faq", "3:4")
    assert store.job("faq").status is S.NOT_RESPONDING
    store.beat("faq", "1:2")
    assert store.job("faq").status is S.RUNNING
    assert {model.status for model in store.models()} == {"pending"}


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    store = Store(tmp_path / "jobs.db")
    with store._engine.begin() as connection:
        connection.execute(sa.text("update facts set value = '99'"))
    store.close()
    with pytest.raises(JobError, match=r"version 99.*update potstill"):
        Store(tmp_path / "jobs.db")


def test_several_connections_write_ahead(store):
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_version_is_a_number():
    assert split_version("phi:2") == ("phi", 2) and split_version("phi") == ("phi", None)
    with pytest.raises(ConfigError, match="a version is a number"):
        split_version("phi:latest")
