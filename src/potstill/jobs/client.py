"""`MLClient`: jobs and models by name, for scripts that do not want to wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pydantic import SecretStr

from potstill.config import DistillConfig
from potstill.dialects import slug, understand
from potstill.entities import Job, JobStatus
from potstill.errors import ConfigError, JobError
from potstill.jobs.executor import ACTIVE, LocalExecutor
from potstill.jobs.registry import Models, raise_error_of, say
from potstill.jobs.store import RESUMABLE, Store, split_version
from potstill.jobs.workspace import Workspace, check_name, find_workspace
from potstill.models.catalog import find_model
from potstill.rundir import content_hash

POLL_SECONDS = 0.2

OnJob = Callable[[Job], None]


class MLClient:
    """Submits distillations to this machine and looks after them.

    Args:
        workspace: A workspace, its file or its folder; the nearest one by default.
        executor: What runs the jobs; worker processes on this machine by default.
    """

    def __init__(
        self,
        workspace: Workspace | Path | str | None = None,
        *,
        executor: Callable[[Workspace, Store], LocalExecutor] = LocalExecutor,
    ):
        if not isinstance(workspace, Workspace):
            workspace = find_workspace(workspace)
        self.workspace = workspace
        workspace.prepare()
        self._store = Store(workspace.database)
        self.jobs = Jobs(workspace, self._store, executor(workspace, self._store))
        self.models = Models(self._store, self.jobs)

    @classmethod
    def from_config(cls, path: Path | str | None = None) -> MLClient:
        """A client for the workspace file here, in a folder above, or at POTSTILL_CONFIG.

        Raises:
            ConfigError: If the file has problems; all are named.
        """
        return cls(path)

    def close(self) -> None:
        """Closes the job store; jobs go on."""
        self._store.close()


class Jobs:
    """What runs, ran, or is going to."""

    def __init__(self, workspace: Workspace, store: Store, executor: LocalExecutor):
        self._workspace = workspace
        self._store = store
        self._executor = executor
        self.submitted: dict[str, str] = {}
        """Name of a model -> with its version, as this client submitted it last."""

    def create_or_update(self, job: Any) -> Job:
        """Submits a job and returns at once.

        The same job (config, data and places of the models) is not run twice: the one that is
        there is returned, and started again where it stopped if it failed, was cancelled or
        died. Without a name of its own a job is called after its student and the hash of all
        this.

        Args:
            job: A `DistillationJob`, a `DistillConfig`, Azure's object, or a mapping in the
                words of a config file.

        Raises:
            ConfigError: If the description has problems, a file is missing, a model is not
                known, or the name is taken by a job of other content; before anything is spent.
            MissingExtra: If a model's weights come in a package that is not installed.
        """
        dialect = understand(job)
        _refuse_missing_files(dialect.config)
        for place in _places(dialect.config):
            find_model(place, workspace=self._workspace.models)
        fingerprint = self._fingerprint(dialect.config)
        config = dialect.config
        if not dialect.named:
            name = f"{slug(config.student.place)[:48]}-{fingerprint[:8]}"
            config = config.model_copy(update={"name": name})
        label = slug(config.student.place)[:48]
        added = self._store.add_job(
            Job(
                name=config.name,
                status=JobStatus.NOT_STARTED,
                config=config.model_dump(mode="json", by_alias=True),
                run=self._workspace.run_folder(config.name).absolute(),
                notes=dialect.notes,
                model=check_name(dialect.model_name or f"{label}-distilled", "model"),
                baseline=f"{label}-baseline",
                created_at=time.time(),
            ),
            workspace=self._workspace.model_dump(mode="json", include={"models", "parallel_jobs"}),
            fingerprint=fingerprint,
            wants_key="teacher" in dialect.secrets,
        )
        # Who hands over a dialect has seen its notes.
        for note in dialect.notes if added and dialect is not job else ():
            say(f"{config.name}: {note}")
        if not added and self._store.facts(config.name)["fingerprint"] != fingerprint:
            raise ConfigError(
                f"another job is called {config.name!r} already, with other settings or data; "
                f"give this one another name"
            )
        found = self._start(config.name, dialect.secrets)
        for name in (found.model, found.baseline):
            self.submitted[split_version(name)[0]] = name
        return found

    def get(self, name: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: If there is none of that name; the message has the last ones.
        """
        return self._executor.refresh(name)

    def list(self, limit: int = 200) -> list[Job]:
        """Jobs, the newest first."""
        jobs = self._store.jobs(limit)
        return [self.get(job.name) if job.status in ACTIVE else job for job in jobs]

    def cancel(self, name: str) -> Job:
        """Ends a job, in order if it can within the grace; what is done is kept.

        Raises:
            JobError: If it is over already.
        """
        self._executor.cancel(name)
        return self._store.job(name)

    def resume(self, name: str, *, teacher_key: str | None = None) -> Job:
        """Starts a job again where it stopped.

        Args:
            teacher_key: The teacher's key, for a job that was submitted with one in clear.

        Raises:
            JobError: If it is completed or runs, or needs its key again.
        """
        job = self.get(name)
        if job.status not in RESUMABLE and job.status is not JobStatus.NOT_STARTED:
            raise JobError(f"{name} cannot be resumed: it is {job.status}")
        if self._store.facts(name)["wants_key"] and not teacher_key:
            raise JobError(
                f"{name} was submitted with the teacher's key in clear, which is not kept; give "
                f"it again: jobs.resume({name!r}, teacher_key=...), or submit the job again"
            )
        secrets = {"teacher": SecretStr(teacher_key)} if teacher_key else {}
        return self._start(name, secrets)

    def wait(
        self, name: str, timeout: float | None = None, *, on_change: OnJob | None = None
    ) -> Job:
        """Waits until a job is over, however it ends.

        Args:
            timeout: Seconds; for ever by default.
            on_change: Called with the job at first and when its state, stage or progress
                has changed.

        Raises:
            JobError: If it is not over in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        before = None
        while True:
            job = self.get(name)
            if on_change and job != before:
                on_change(job)
            if job.status.is_over:
                return job
            before = job
            if deadline is not None and time.monotonic() >= deadline:
                raise JobError(f"{name} is still {job.status} after {timeout:g} s; it goes on")
            time.sleep(POLL_SECONDS)

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of a job's log, without control characters.

        Args:
            follow: Go on until the job is over, with lines as they come.
        """
        self._store.job(name)
        path = self._workspace.log_file(name)
        if not path.exists():
            path.touch()
        with path.open(encoding="utf-8", errors="replace") as file:
            rest = ""
            while True:
                is_over = not follow or self.get(name).status.is_over
                while chunk := file.readline():
                    rest += chunk
                    if rest.endswith("\n"):
                        yield _printable(rest)
                        rest = ""
                if is_over:
                    if rest:
                        yield _printable(rest)
                    return
                time.sleep(POLL_SECONDS)

    def stream(self, name: str, out: TextIO | None = None) -> Job:
        """Writes a job's log as it grows, until the job is over.

        Args:
            out: Where to; stderr by default.

        Raises:
            PotstillError: The job's own error if it did not complete.
        """
        for line in self.logs(name, follow=True):
            (out or sys.stderr).write(line + "\n")
        job = self.get(name)
        raise_error_of(job)
        return job

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """What happened in a job, in order; with an id above `after`."""
        return self._store.events(name, after)

    def _start(self, name: str, secrets: Mapping[str, SecretStr]) -> Job:
        self.get(name)  # a dead worker is noticed first
        startable = [*RESUMABLE, JobStatus.NOT_STARTED]
        if self._store.move(name, JobStatus.QUEUED, out_of=startable):
            self._executor.start(name, secrets=secrets)
        return self.get(name)

    def _fingerprint(self, config: DistillConfig) -> str:
        """What makes two submissions the same: settings, data, and what the names stand for."""
        tree = config.model_dump(mode="json", by_alias=True, exclude={"name"})
        meant = [self._workspace.models.get(place) for place in _places(config)]
        return content_hash(tree, meant, *_files(config))


def _places(config: DistillConfig) -> list[str]:
    """Where the models are, as the config says it."""
    return [*(teacher.place for teacher in config.teachers), config.student.place]


def _files(config: DistillConfig) -> list[Path]:
    given = [config.data.validation, config.data.test]
    return [*config.train_data, *(value for value in given if isinstance(value, Path))]


def _refuse_missing_files(config: DistillConfig) -> None:
    missing = [str(path) for path in _files(config) if not path.is_file()]
    if missing:
        raise ConfigError("no such file: " + "; no such file: ".join(missing))


def _printable(line: str) -> str:
    """A line that cannot steer a terminal: what models said may stand in it."""
    return "".join(c if c.isprintable() or c == "\t" else "�" for c in line.rstrip("\r\n"))
