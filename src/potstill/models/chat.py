"""From a name, a folder, a file or a URL to something that answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from potstill.config import StudentConfig, TeacherConfig
from potstill.models.catalog import ModelRef, find_model
from potstill.models.endpoint import EndpointModel
from potstill.models.engines import GgufModel, has_llama_cpp

if TYPE_CHECKING:
    from potstill.models.local import LocalModel


def open_chat_model(
    model: TeacherConfig | StudentConfig | ModelRef | Path | str,
    *,
    workspace: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
    key: SecretStr | None = None,
) -> EndpointModel | GgufModel | LocalModel:
    """Opens a model for asking: an endpoint, llama.cpp for GGUF files, else its weights.

    Where llama.cpp is not installed, the weights of a GGUF file are read by transformers.

    Args:
        batch_size: Prompts that local weights answer together.
        dtype: Number format of local weights.
        key: The endpoint's key in memory; wins over references to one.

    Raises:
        ConfigError: If the model is unknown or not on this machine.
        MissingExtra: If what it takes is not installed.
    """
    ref = _ref_of(model, workspace)
    if ref.kind == "endpoint":
        settings = model if isinstance(model, TeacherConfig) else None
        limits = {} if settings is None else {"timeout_seconds": settings.timeout_seconds}
        return EndpointModel(
            ref.source,
            (settings.model if settings else None) or ref.model,
            key=key or (settings.key if settings else None) or ref.key,
            name=None if ref.name == ref.source else ref.name,
            price=(settings.price if settings else None) or ref.price,
            **limits,
        )
    if ref.kind == "gguf" and has_llama_cpp():
        return GgufModel(ref.source, name=ref.name)
    from potstill.models.local import LocalModel

    return LocalModel(ref, dtype=dtype, batch_size=batch_size)


def _ref_of(
    model: TeacherConfig | StudentConfig | ModelRef | Path | str,
    workspace: Mapping[str, Any] | None,
) -> ModelRef:
    if isinstance(model, ModelRef):
        return model
    place = model.place if isinstance(model, TeacherConfig | StudentConfig) else str(model)
    return find_model(place, workspace=workspace)
