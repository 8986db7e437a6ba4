"""Runs jobs on this machine: one worker process for each, which outlives its starter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from potstill.entities import OVER, Job, JobStatus
from potstill.errors import JobError
from potstill.jobs.process import identity, is_running, kill_group, signal_group
from potstill.jobs.store import Store
from potstill.jobs.workspace import Workspace

WORKER = (sys.executable, "-m", "potstill.jobs.worker")
GRACE_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A worker without a heart-beat for so long is NotResponding, even if its process exists."""
START_SECONDS = 30.0
"""A Queued job that nobody started within so long has lost its starter."""

ACTIVE = frozenset(JobStatus) - OVER - {JobStatus.NOT_STARTED, JobStatus.PAUSED}


class LocalExecutor:
    """Starts, watches and ends worker processes.

    Each worker leads a process group of its own, so that a signal to the group reaches all
    that it started, and neither the end of the starter nor its terminal's does.

    Args:
        worker: Command in front of the worker's arguments.
        grace_seconds: How long a cancelled worker may take to stop in order.
    """

    def __init__(
        self,
        workspace: Workspace,
        store: Store,
        *,
        worker: Sequence[str] = WORKER,
        grace_seconds: float = GRACE_SECONDS,
    ):
        self._workspace = workspace
        self._store = store
        self._worker = tuple(worker)
        self._grace_seconds = grace_seconds
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, secrets: Mapping[str, SecretStr] | None = None) -> None:
        """Starts the worker of a Queued job and returns at once.

        Args:
            secrets: Keys that the worker is told through its standard input and nowhere else:
                not in its arguments, its environment or a file.
        """
        log = self._workspace.log_file(name)
        keys = {whom: key.get_secret_value() for whom, key in (secrets or {}).items()}
        with log.open("ab") as out:
            child = subprocess.Popen(
                [*self._worker, name, "--home", str(self._workspace.home)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._store.note_process(name, identity(child.pid))
        # The worker may have ended already, which its job's state will say.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(keys).encode())
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        self._children[name] = child

    def is_alive(self, name: str) -> bool:
        """Whether the job's worker runs."""
        self._reap(name)
        return is_running(self._store.facts(name)["process"])

    def refresh(self, name: str) -> Job:
        """The job as it is: one whose worker has died or fallen silent is NotResponding."""
        job = self._store.job(name)
        if job.status not in ACTIVE:
            self._reap(name)
            return job
        facts = self._store.facts(name)
        beat = facts["heartbeat"]
        if not facts["process"]:
            return self._refresh_unstarted(job, beat or job.created_at)
        if self.is_alive(name):
            if beat is None or time.time() - beat < SILENT_SECONDS:
                return job
            reason = f"no sign of life from its worker for {time.time() - beat:.0f} s"
        else:
            job = self._store.job(name)  # it may have ended in order just before
            if job.status not in ACTIVE:
                return job
            kill_group(facts["process"])
            reason = "its worker has died (killed, out of memory, or the machine restarted)"
        cancelled = job.status is JobStatus.CANCEL_REQUESTED and not self.is_alive(name)
        to = JobStatus.CANCELED if cancelled else JobStatus.NOT_RESPONDING
        text = "" if cancelled else f"{reason}; `potstill jobs resume {name}` goes on where it was"
        self._store.move(name, to, out_of=[job.status], error=text)
        return self._store.job(name)

    def cancel(self, name: str) -> None:
        """Ends a job: asks its whole group to stop in order, and kills it after the grace.

        What it has done so far is kept, so it can be resumed.

        Raises:
            JobError: If the job is over already.
        """
        job = self.refresh(name)
        asked = self._store.move(
            name, JobStatus.CANCEL_REQUESTED, out_of=[*ACTIVE, JobStatus.NOT_STARTED]
        )
        if not asked:
            raise JobError(f"{name} cannot be cancelled: it is {job.status}")
        process = self._store.facts(name)["process"]
        signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while is_running(process) and time.monotonic() < deadline:
            self._reap(name)
            time.sleep(0.02)
        kill_group(process)
        self._reap(name)
        self._store.move(name, JobStatus.CANCELED, out_of=[JobStatus.CANCEL_REQUESTED])

    def _refresh_unstarted(self, job: Job, since: float) -> Job:
        """A job is Queued for a moment before its worker's process is known."""
        if time.time() - since > START_SECONDS:
            text = f"its worker was never started; `potstill jobs resume {job.name}` starts it"
            self._store.move(job.name, JobStatus.NOT_RESPONDING, out_of=[job.status], error=text)
            return self._store.job(job.name)
        return job

    def _reap(self, name: str) -> None:
        """Takes note of an ended child, which would stay a zombie otherwise."""
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            del self._children[name]

    def __del__(self) -> None:
        # Workers are meant to outlive this object; Popen warns about those that do.
        for child in getattr(self, "_children", {}).values():
            child.returncode = child.poll() or 0


def own_group() -> bool:
    """Whether this process leads its group, as a worker does."""
    return os.getpgrp() == os.getpid()
