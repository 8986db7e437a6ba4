"""A key given in clear reaches the pipeline and nothing that anybody could read later."""

from pathlib import Path

import pytest

from potstill.errors import JobError
from potstill.jobs.registry import raise_error_of

CANARY = "sk-canary-0c3f9a2e5b"


def who_shows_it(folder):
    """Files below the folder, command lines and environments, with the canary in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    processes = [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]
    found = []
    for path in [*files, *processes]:
        try:
            if CANARY.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue  # a process that has ended, or somebody else's
    return found


def test_a_key_in_clear_is_used_and_found_nowhere(client, job_that, folder, capsys):
    job = client.jobs.create_or_update(job_that(key=CANARY, tells_key=True))
    failed = client.jobs.wait(job.name, 20)
    assert (failed.run / "key_length").read_text() == str(len(CANARY))
    assert failed.error == "the endpoint refused the key ***"
    with pytest.raises(Exception, match=r"\*\*\*"):
        raise_error_of(failed)
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err + repr(failed)
    assert "env:NAME" in said.err
    assert who_shows_it(folder) == []


def test_no_process_shows_the_key_while_the_job_runs(client, job_that, folder):
    job = client.jobs.create_or_update(job_that(key=CANARY, seconds=30, child=True))
    while client.jobs.get(job.name).progress is None:
        pass
    assert who_shows_it(folder) == []


def test_resuming_needs_the_key_again(client, job_that):
    job = client.jobs.create_or_update(job_that(key=CANARY, fails_first=True))
    client.jobs.wait(job.name, 20)
    with pytest.raises(JobError, match="teacher_key="):
        client.jobs.resume(job.name)
    client.jobs.resume(job.name, teacher_key=CANARY)
    assert client.jobs.wait(job.name, 20).status == "Completed"


def test_submitting_again_with_the_key_resumes(client, job_that):
    job = client.jobs.create_or_update(job_that(key=CANARY, fails_first=True))
    client.jobs.wait(job.name, 20)
    again = client.jobs.create_or_update(job_that(key=CANARY, fails_first=True))
    assert client.jobs.wait(again.name, 20).status == "Completed"
