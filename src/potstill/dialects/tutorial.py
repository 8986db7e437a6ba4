"""The tutorial's `DistillationJob` -> `DistillConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.config import DistillConfig
from potstill.dialects.dialect import (
    TASK_NAMES,
    Dialect,
    Draft,
    nearest,
    put_hyperparameters,
    slug,
)
from potstill.entities import DistillationJob

OWN_KEYS = ("name", "task", "teacher", "student", "train_data")


def from_distillation_job(job: DistillationJob, *, base: Path | None = None) -> Dialect:
    """Translates the tutorial's job.

    `temperature` among the hyperparameters is how the teacher samples, and how its
    probabilities are softened as well when the student learns those (`loss.kind` in
    `settings`).

    Args:
        base: Folder that relative paths start from; the current one by default.

    Raises:
        ConfigError: With every problem, in the names of the job.
    """
    draft = Draft("DistillationJob")
    draft.put("name", job.name or slug(job.student_model), "name")
    task = draft.choose("task_type", job.task_type, TASK_NAMES)
    if task:
        draft.put("task", task, "task_type")
    draft.put("teacher.source", job.teacher_model, "teacher_model")
    draft.put("student.source", job.student_model, "student_model")
    data = job.training_data
    draft.put("train_data", list(data) if isinstance(data, tuple) else [data], "training_data")
    if job.validation_data is not None:
        draft.put("data.validation", Path(job.validation_data), "validation_data")
    if job.test_data is not None:
        draft.put("data.test", Path(job.test_data), "test_data")
    if job.teacher_key:
        draft.take_key(job.teacher_key, "teacher_key")
    _put_settings(draft, job.settings)
    put_hyperparameters(draft, job.hyperparameters, extra=("temperature",))
    _put_temperature(draft, job.hyperparameters)
    return draft.finish(base or Path.cwd(), named=job.name is not None, model_name=job.model_name)


def _put_settings(draft: Draft, settings: Mapping[str, Any]) -> None:
    sections = [name for name in DistillConfig.model_fields if name not in OWN_KEYS]
    for section, value in settings.items():
        origin = f"settings.{section}"
        if section in OWN_KEYS:
            draft.refuse(origin, "this is an argument of its own")
        elif section not in sections:
            draft.refuse(origin, f"no such section; {nearest(section, sections)}")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                draft.put(f"{section}.{key}", inner, f"{origin}.{key}")
        else:
            draft.put(section, value, origin)


def _put_temperature(draft: Draft, hyperparameters: Mapping[str, Any]) -> None:
    value = hyperparameters.get("temperature")
    if value is None:
        return
    origin = "hyperparameters.temperature"
    draft.put("generation.temperature", value, origin)
    if draft.tree.get("loss", {}).get("kind", "sft") != "sft":
        draft.put("loss.temperature", value, origin)
        draft.notes.append(f"{origin}: set generation.temperature and loss.temperature to {value}")
