"""From a name, a run, a folder, a file or a URL to a model that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.config import PrivacyConfig, TeacherConfig
from potstill.data.privacy import Privacy
from potstill.errors import ConfigError
from potstill.models.catalog import ModelRef, find_model
from potstill.models.chat import open_chat_model
from potstill.models.endpoint import EndpointModel
from potstill.models.launch import find_program
from potstill.models.logprobs import Capture
from potstill.models.private import guarded
from potstill.protocols import ChatModel
from potstill.rundir import RunDir
from potstill.serve.asked import MOST_LOGPROBS

_ENGINES = {"gguf": ("llama-server", "ollama"), "huggingface": ("vllm",)}
"""The engines that are preferred for each kind of weights, the first that is installed."""


def student_of(place: str, runs: Path) -> tuple[str, str]:
    """Where the model is, and what to call it: a run stands for its distilled student.

    Raises:
        ConfigError: If it is a run that has no student yet.
    """
    for path in (Path(place), runs / place):
        run = RunDir(path)
        if run.config.exists():
            if not run.model.exists():
                raise ConfigError(f"{path} has no student yet; continue it: potstill run {path}")
            return str(run.model), path.resolve().name
    return place, ""


def engine_for(ref: ModelRef) -> str | None:
    """The engine that is started for weights, where one is installed; None where none is."""
    is_adapter = (Path(ref.source) / "adapter_config.json").exists()
    if is_adapter:
        return None
    return next((name for name in _ENGINES.get(ref.kind, ()) if find_program(name)), None)


def open_served(
    config: TeacherConfig, *, workspace: Mapping[str, Any] | None = None, batch_size: int = 8
) -> ChatModel:
    """The model that answers, which tells how probable its words are where it can.

    Raises:
        ConfigError, MissingExtra: As `open_chat_model`.
    """
    return open_chat_model(
        config,
        workspace=workspace,
        batch_size=batch_size,
        capture=Capture(MOST_LOGPROBS),
        top_logprobs=MOST_LOGPROBS,
    )


def open_teacher(
    place: str, *, workspace: Mapping[str, Any] | None = None, hide: bool = True
) -> ChatModel:
    """The teacher that stands behind the student.

    Args:
        hide: Whether an endpoint sees pseudonyms where users write personal data; the real values
            are put back into its answers.

    Raises:
        ConfigError, MissingExtra: As `open_chat_model`.
    """
    teacher = open_chat_model(find_model(place, workspace=workspace), workspace=workspace)
    if not hide or not isinstance(teacher, EndpointModel):
        return teacher
    return guarded(teacher, Privacy(PrivacyConfig(mode="pseudonymise"), leaves=True))
