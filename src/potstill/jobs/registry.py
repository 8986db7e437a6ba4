"""The registry of models, as a client sees it: `ml_client.models`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from potstill import errors
from potstill.config import DistillConfig
from potstill.entities import Job, JobStatus, Model
from potstill.errors import ConfigError, JobError, JobNotFound
from potstill.jobs.store import Store, split_version
from potstill.rundir import RunDir, content_hash

if TYPE_CHECKING:
    from potstill.jobs.client import Jobs
    from potstill.types import Evaluation

REPORT_SECONDS = 10.0


class Models:
    """What jobs made: every student distilled, and every student before."""

    def __init__(self, store: Store, jobs: Jobs):
        self._store = store
        self._jobs = jobs

    def list(self) -> list[Model]:
        """All versions of all models."""
        return self._store.models()

    def get(self, name: str) -> Model:
        """A model: `name:2` is that version, a bare name the newest that is ready.

        Where none is ready, the newest one, with its status.

        Raises:
            JobNotFound: If there is none of that name.
        """
        bare, version = split_version(name)
        versions = [m for m in self._store.models(bare) if version in (None, m.version)]
        if not versions:
            known = sorted({model.name for model in self._store.models()})
            there = f"there are: {', '.join(known[:8])}" if known else "there are none yet"
            raise JobNotFound(f"no model is called {name!r}; {there}")
        ready = [model for model in versions if model.status == "ready"]
        return (ready or versions)[0]

    def evaluate(
        self,
        model_name: str,
        test_data: str | Path,
        metrics: list[str] | tuple[str, ...] | None = None,
        *,
        timeout: float | None = None,
    ) -> Evaluation:
        """Asks a model every record of a test set; `evaluation["accuracy"]` is a number.

        Waits for the job that makes the model and says on stderr how far it is. A bare name is
        the version that this client submitted last; else one that is still being made; else
        the newest that is ready.

        Args:
            test_data: File of records with references.
            metrics: Names, also those of other tools (bleu_score, inference_time,
                memory_usage); the task's own by default.
            timeout: Seconds to wait for the job; for ever by default.

        Raises:
            JobNotFound: If there is no model of that name.
            ConfigError: If a metric is not known or the file missing; before any waiting.
            PotstillError: The job's own error if it does not complete.
        """
        from potstill.library import check_metrics, evaluate_config

        check_metrics(metrics)
        test_data = Path(test_data).absolute()
        if not test_data.is_file():
            raise ConfigError(f"no such file: {test_data}")
        model = self._wanted(model_name)
        job = self._jobs.get(model.made_by_job)
        if model.status != "ready":
            job = self._jobs.wait(job.name, timeout, on_change=_Teller())
            raise_error_of(job)
            model = self.get(f"{model.name}:{model.version}")
        say(f"evaluating {model.name}:{model.version} on {test_data.name}")
        return evaluate_config(
            DistillConfig.model_validate(job.config),
            str(model.path),
            test_data,
            role=model.kind,
            metrics=metrics,
            out_samples=RunDir(job.run).samples(f"{model.kind}-{content_hash(test_data)[:8]}"),
            workspace=self._store.facts(job.name)["workspace"].get("models", {}),
        )

    def _wanted(self, name: str) -> Model:
        if ":" in name:
            return self.get(name)
        if name in self._jobs.submitted:
            return self.get(self._jobs.submitted[name])
        for model in self._store.models(name):
            if model.status == "pending":
                job = self._jobs.get(model.made_by_job)
                if not job.status.is_over:
                    return model
        return self.get(name)


class _Teller:
    """Says on stderr what a job does: at once when the stage changes, else now and then."""

    def __init__(self) -> None:
        self._before: tuple[str, str] = ("", "")
        self._at = 0.0

    def __call__(self, job: Job) -> None:
        now = (job.status, job.stage)
        if now == self._before and time.monotonic() - self._at < REPORT_SECONDS:
            return
        self._before, self._at = now, time.monotonic()
        share = "" if job.progress is None else f" {job.progress:.0%}"
        say(f"{job.name}: {job.status}" + (f", {job.stage}{share}" if job.stage else ""))


def raise_error_of(job: Job) -> None:
    """Raises what ended a job that did not complete, as the class it was; else nothing."""
    if job.status is JobStatus.COMPLETED or not job.status.is_over:
        return
    kind = getattr(errors, job.error_kind, None) if job.error_kind else None
    if not (isinstance(kind, type) and issubclass(kind, errors.PotstillError)):
        kind = JobError
    where = f" in {job.stage}" if job.stage else ""
    what = {JobStatus.FAILED: "failed", JobStatus.CANCELED: "was cancelled"}
    text = f"job {job.name} {what.get(job.status, 'does not respond')}{where}"
    raise kind(f"{text}: {job.error}" if job.error else text)


def say(text: str) -> None:
    """One line of the conversation, on stderr."""
    sys.stderr.write(text + "\n")
