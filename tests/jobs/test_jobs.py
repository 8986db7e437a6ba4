"""Jobs in real worker processes; only the pipeline inside them is a stand-in."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill.entities import JobStatus
from potstill.errors import (
    ConfigError,
    GateFailed,
    JobError,
    JobNotFound,
    TeacherError,
)
from potstill.jobs.client import MLClient
from potstill.jobs.process import identity, is_running, process_id
from potstill.jobs.registry import raise_error_of

WAIT = 20


def until(true, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def process_of(client, name):
    return client._store.facts(name)["process"]


def running(client, job):
    until(lambda: client.jobs.get(job.name).progress is not None)
    return client.jobs.get(job.name)


def test_submitting_returns_before_the_work_is_done(client, job_that):
    job = client.jobs.create_or_update(job_that(seconds=5))
    assert not job.status.is_over
    assert running(client, job).status == "Running"


def test_a_completed_job_has_published_its_models(client, job_that):
    job = client.jobs.create_or_update(job_that())
    assert client.models.get("phi-4-mini-distilled").status == "pending"
    done = client.jobs.wait(job.name, WAIT)
    assert (done.status, done.stage, done.progress, done.error) == ("Completed", "teach", 1.0, "")
    assert client.models.get("phi-4-mini-distilled").path == done.run / "model"
    assert client.models.get("phi-4-mini-baseline").path == Path("phi-4-mini")
    assert done.created_at <= done.started_at <= done.ended_at


def test_a_status_prints_as_azures_name(client, job_that):
    job = client.jobs.create_or_update(job_that())
    client.jobs.wait(job.name, WAIT)
    assert f"{client.jobs.get(job.name).status}" == "Completed"


def test_the_name_comes_from_the_student_and_the_content(client, job_that):
    first = client.jobs.create_or_update(job_that())
    other = client.jobs.create_or_update(job_that(hyperparameters={"batch_size": 3}))
    assert first.name.startswith("phi-4-mini-") and len(first.name) == len("phi-4-mini-") + 8
    assert other.name != first.name


def test_the_same_job_is_run_once(client, job_that):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(client.jobs.create_or_update, [job_that()] * 4))
    assert len({job.name for job in found}) == 1
    job = client.jobs.wait(found[0].name, WAIT)
    again = client.jobs.create_or_update(job_that())
    assert (again.status, again.attempt) == ("Completed", 1)
    assert (job.run / "tries").read_text() == "."
    assert len(client.models.list()) == 2


def test_changed_data_is_another_job(client, job_that, folder):
    job = job_that()
    first = client.jobs.create_or_update(job)
    with open(job.training_data, "a") as file:
        file.write("{}\n")
    assert client.jobs.create_or_update(job).name != first.name


def test_a_given_name_is_kept_and_not_given_twice(client, job_that):
    assert client.jobs.create_or_update(job_that(name="faq")).name == "faq"
    with pytest.raises(ConfigError, match="another job is called 'faq'"):
        client.jobs.create_or_update(job_that(name="faq", hyperparameters={"batch_size": 3}))


def test_a_second_job_on_a_student_makes_the_next_version(client, job_that):
    first = client.jobs.create_or_update(job_that())
    client.jobs.wait(first.name, WAIT)
    second = client.jobs.create_or_update(job_that(seconds=30))
    assert second.model == "phi-4-mini-distilled:2"
    assert client.models.get("phi-4-mini-distilled").version == 1
    assert client.models.get("phi-4-mini-distilled:2").status == "pending"


def test_a_missing_file_is_found_before_anything_starts(client, job_that, folder):
    job = job_that()
    Path(job.training_data).unlink()
    with pytest.raises(ConfigError, match="no such file"):
        client.jobs.create_or_update(job)
    assert client.jobs.list() == []


def test_an_unknown_model_is_found_before_anything_starts(client, job_that):
    with pytest.raises(ConfigError, match="phi-4-minni"):
        client.jobs.create_or_update(job_that(student="phi-4-minni"))
    assert client.jobs.list() == []


def test_a_failed_job_tells_its_error_and_publishes_nothing(client, job_that):
    job = client.jobs.create_or_update(job_that(error="GateFailed", text="accuracy is too low"))
    failed = client.jobs.wait(job.name, WAIT)
    assert (failed.status, failed.error) == ("Failed", "accuracy is too low")
    assert client.models.get("phi-4-mini-distilled").status == "failed"
    with pytest.raises(GateFailed, match=f"job {job.name} failed in teach: accuracy is too low"):
        raise_error_of(failed)


def test_a_missed_gate_leaves_the_version_before_in_place(client, job_that):
    Path("test.jsonl").touch()
    first = client.jobs.create_or_update(job_that())
    client.jobs.wait(first.name, WAIT)
    missed = job_that(error="GateFailed", text="quality gate not met: accuracy >= 0.9 (0.7)")
    job = client.jobs.create_or_update(missed)
    client.jobs.wait(job.name, WAIT)
    assert client.models.get("phi-4-mini-distilled").version == 1
    gated = client.models.get("phi-4-mini-distilled:2")
    assert (gated.status, gated.path) == ("failed", None)
    with pytest.raises(GateFailed, match=r"accuracy >= 0\.9"):
        client.models.evaluate("phi-4-mini-distilled:2", "test.jsonl")


def test_evaluating_the_model_of_a_failed_job_raises_its_error(client, job_that, capsys):
    Path("test.jsonl").touch()
    client.jobs.create_or_update(job_that(error="TeacherError", text="the teacher is away"))
    with pytest.raises(TeacherError, match="the teacher is away"):
        client.models.evaluate("phi-4-mini-distilled", "test.jsonl")
    assert "Failed" in capsys.readouterr().err


def test_a_run_without_a_model_is_a_failure(client, job_that):
    job = client.jobs.create_or_update(job_that(no_model=True))
    assert "without a model" in client.jobs.wait(job.name, WAIT).error


def test_submitting_a_failed_job_again_resumes_it(client, job_that):
    job = client.jobs.create_or_update(job_that(fails_first=True))
    assert client.jobs.wait(job.name, WAIT).status == "Failed"
    again = client.jobs.create_or_update(job_that(fails_first=True))
    done = client.jobs.wait(again.name, WAIT)
    assert (done.name, done.status, done.attempt) == (job.name, "Completed", 2)
    assert client.models.get("phi-4-mini-distilled").status == "ready"


def test_a_cancelled_job_stops_with_all_it_started_and_can_be_resumed(client, job_that):
    job = client.jobs.create_or_update(job_that(seconds=60, child=True))
    run = running(client, job).run
    child = int((run / "child").read_text())
    started = time.monotonic()
    cancelled = client.jobs.cancel(job.name)
    assert time.monotonic() - started < 5
    assert cancelled.status == "Canceled"
    assert not is_running(process_of(client, job.name)) and not identity(child)
    assert client.models.get("phi-4-mini-distilled").status == "failed"
    client.jobs.resume(job.name)
    assert client.jobs.wait(job.name, WAIT).status == "Completed"


def test_a_killed_worker_is_not_responding_leaves_no_child_and_can_be_resumed(client, job_that):
    job = client.jobs.create_or_update(job_that(seconds=60, child=True))
    run = running(client, job).run
    os.kill(process_id(process_of(client, job.name)), signal.SIGKILL)
    until(lambda: client.jobs.get(job.name).status == "NotResponding")
    until(lambda: not identity(int((run / "child").read_text())))
    assert "jobs resume" in client.jobs.get(job.name).error
    client.jobs.resume(job.name)
    assert client.jobs.wait(job.name, WAIT).status == "Completed"


def test_a_worker_outlives_its_client_and_is_found_by_the_next(client, job_that, folder):
    job = client.jobs.create_or_update(job_that(seconds=60))
    running(client, job)
    other = MLClient(folder)
    assert other.jobs.get(job.name).status == "Running"
    assert other.jobs.cancel(job.name).status == "Canceled"
    other.close()


def test_jobs_wait_in_line_where_one_runs_at_a_time(client, job_that):
    first = client.jobs.create_or_update(job_that(seconds=60))
    running(client, first)
    second = client.jobs.create_or_update(job_that(seconds=1))
    until(lambda: "queued" in "".join(client.jobs.logs(second.name)))
    assert client.jobs.get(second.name).status == "Queued"
    client.jobs.cancel(first.name)
    assert client.jobs.wait(second.name, WAIT).status == "Completed"


def test_a_queued_job_can_be_cancelled(client, job_that):
    first = client.jobs.create_or_update(job_that(seconds=60))
    running(client, first)
    second = client.jobs.create_or_update(job_that(seconds=1))
    assert client.jobs.cancel(second.name).status == "Canceled"
    assert client.jobs.get(first.name).status == "Running"


def test_what_is_over_cannot_be_cancelled_and_what_is_done_not_resumed(client, job_that):
    job = client.jobs.create_or_update(job_that())
    client.jobs.wait(job.name, WAIT)
    with pytest.raises(JobError, match="it is Completed"):
        client.jobs.cancel(job.name)
    with pytest.raises(JobError, match="it is Completed"):
        client.jobs.resume(job.name)


def test_waiting_ends_with_the_timeout_and_the_job_goes_on(client, job_that):
    job = client.jobs.create_or_update(job_that(seconds=60))
    with pytest.raises(JobError, match=r"still \w+ after 0.1 s; it goes on"):
        client.jobs.wait(job.name, timeout=0.1)
    assert not client.jobs.get(job.name).status.is_over


def test_the_log_can_be_followed_to_the_end(client, job_that, capsys):
    job = client.jobs.create_or_update(job_that(seconds=1))
    assert client.jobs.stream(job.name).status == "Completed"
    assert "completed; the model is phi-4-mini-distilled:1" in capsys.readouterr().err


def test_events_are_kept_in_order_and_can_be_read_on(client, job_that):
    job = client.jobs.create_or_update(job_that())
    client.jobs.wait(job.name, WAIT)
    events = client.jobs.events(job.name)
    assert [events[0]["kind"], events[-1]["kind"]] == ["start", "done"]
    assert client.jobs.events(job.name, after=events[-2]["id"]) == events[-1:]


@pytest.mark.parametrize("name", ["nobody", "../etc/passwd"])
def test_an_unknown_job_names_the_last_ones(client, job_that, name):
    client.jobs.create_or_update(job_that(name="faq"))
    with pytest.raises(JobNotFound, match="the last ones are: faq"):
        client.jobs.get(name)


@pytest.mark.parametrize("name", ["../up", "a/b", "Upper", "", "-dash", "x" * 65, "new\nline"])
def test_a_name_cannot_leave_its_folder(client, job_that, name):
    with pytest.raises(ConfigError):
        client.jobs.create_or_update(job_that().model_copy(update={"name": name or "/"}))
    assert client.jobs.list() == []


def test_a_second_worker_leaves_a_job_alone_that_has_one(client, job_that, folder):
    job = client.jobs.create_or_update(job_that(seconds=60))
    running(client, job)
    command = [*client.jobs._executor._worker, job.name, "--home", str(client.workspace.home)]
    other = subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True)
    assert other.returncode == 1
    assert client.jobs.get(job.name).status is JobStatus.RUNNING
