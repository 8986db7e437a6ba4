"""The nouns of the client: what is submitted, what is waited for, what comes out of it."""

from __future__ import annotations

import difflib
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from potstill.errors import ConfigError
from potstill.types import Noun


class DistillationJob(Noun):
    """A distillation as the tutorial describes it; submitted with `jobs.create_or_update`.

    Raises:
        ConfigError: If an argument is unknown, missing or of a wrong type; all are named.
    """

    teacher_model: str
    """Short name, folder, `file.gguf` or URL of the model that answers."""

    student_model: str
    """Short name or folder of the model that learns."""

    training_data: str | Path | tuple[str | Path, ...]
    """Records to learn from, one file or several."""

    task_type: str
    """nli, conversation, qa, math, summarization, classification or translation."""

    validation_data: str | Path | None = None
    """Records that choose the checkpoint; a tenth of the training data when it is left out."""

    test_data: str | Path | None = None
    """Records all models are compared on at the end of the job; nothing without it."""

    hyperparameters: dict[str, Any] = {}
    """learning_rate, batch_size, num_epochs, temperature, Azure's names for them, or any key
    of the `train` section."""

    name: str | None = None
    """Name of the job; made from the student and a hash of everything else by default."""

    model_name: str | None = None
    """Name of the model it makes; `<student>-distilled` by default."""

    teacher_key: str | None = None
    """Where the teacher's key is, `env:NAME` or `file:PATH`. A key in clear works and is kept
    nowhere, so it has to be given again when the job is resumed."""

    settings: dict[str, Any] = {}
    """Further sections of the config file, such as {"loss": {"kind": "forward_kl"}}."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            problems = "\n".join(f"  {line}" for line in _explained(error))
            raise ConfigError(f"DistillationJob cannot be made:\n{problems}") from None

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """What repr and str show: everything but the key."""
        return [(name, value) for name, value in super().__repr_args__() if name != "teacher_key"]


class JobStatus(StrEnum):
    """Where a job is; the names are Azure's, and printing one gives the bare name."""

    NOT_STARTED = "NotStarted"
    QUEUED = "Queued"
    PREPARING = "Preparing"
    RUNNING = "Running"
    FINALIZING = "Finalizing"
    CANCEL_REQUESTED = "CancelRequested"
    PAUSED = "Paused"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELED = "Canceled"
    NOT_RESPONDING = "NotResponding"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more unless somebody resumes the job."""
        return self in OVER


OVER = frozenset(
    {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.NOT_RESPONDING}
)
RESUMABLE = frozenset(
    {JobStatus.FAILED, JobStatus.CANCELED, JobStatus.NOT_RESPONDING, JobStatus.PAUSED}
)


class Job(Noun):
    """A run that somebody waits for, as the store knew it when it was asked."""

    name: str
    status: JobStatus
    stage: str = ""
    """The stage it is in, or was in when it ended."""

    progress: float | None = None
    """Share of that stage that is done, in [0, 1]; None where the stage does not count."""

    config: dict[str, Any] = {}
    """The resolved config, every key."""

    run: Path
    """The run folder."""

    error: str = ""
    """Why it failed; empty otherwise."""

    error_kind: str = ""
    """Name of the exception class, such as TeacherRefused."""

    notes: tuple[str, ...] = ()
    """What the submission understood differently than its author may think."""

    model: str = ""
    """Name of the model it makes, with its version: `phi-4-mini-distilled:1`."""

    baseline: str = ""
    """Name of the untouched student, with its version."""

    attempt: int = 1
    """Counts the starts of its worker from 1."""

    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    """Seconds since 1970."""


class Model(Noun):
    """A row of the model registry."""

    name: str
    version: int
    path: Path | None = None
    """Folder of the weights, or short name of the untouched student; None until it is ready."""

    kind: Literal["distilled", "untouched"]
    made_by_job: str
    created_at: float
    status: Literal["pending", "ready", "failed"]


def _explained(error: ValidationError) -> list[str]:
    known = [name for name in DistillationJob.model_fields]
    lines = []
    for item in error.errors():
        key = str(item["loc"][0]) if item["loc"] else "arguments"
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            line = f"{key}: no such argument; {hint}"
        elif item["type"] == "missing":
            line = f"{key}: this argument is required and was not given"
        else:
            line = f"{key}: {item['msg']}"
        if line not in lines and not any(line.startswith(f"{key}:") for line in lines):
            lines.append(line)
    return lines
