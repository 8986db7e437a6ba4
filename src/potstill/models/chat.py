"""From a name, a folder, a file or a URL to something that answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

from potstill.config import StudentConfig, TeacherConfig
from potstill.models.catalog import EMBEDDED, ModelRef, find_model
from potstill.models.embedded_model import EmbeddedModel
from potstill.models.endpoint import EndpointModel
from potstill.models.engines import GgufModel, has_llama_cpp
from potstill.models.launch import open_launched
from potstill.models.launched import LaunchedModel
from potstill.models.logprobs import Capture
from potstill.protocols import ChatModel, resolve_attribute

if TYPE_CHECKING:
    from potstill.models.local import LocalModel

_WIRE = ("api", "api_version", "logprobs_mode")


def open_chat_model(
    model: TeacherConfig | StudentConfig | ModelRef | Path | str,
    *,
    workspace: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
    max_in_flight: int | None = None,
    key: SecretStr | None = None,
    capture: Capture | None = None,
    top_logprobs: int = 0,
    when_asked: bool = False,
) -> EndpointModel | GgufModel | EmbeddedModel | LaunchedModel | LocalModel | ChatModel:
    """Opens a model for asking: an endpoint, llama.cpp for GGUF files, an embedded engine
    for folders made for one, else its weights.

    What the workspace names an `opener` for is opened by that.

    Where the teacher's config names an engine to launch, that one answers for the weights.

    Where llama.cpp is not installed, the weights of a GGUF file are read by transformers.

    Args:
        batch_size: Prompts that local weights answer together.
        dtype: Number format of local weights.
        max_in_flight: Most requests that an endpoint or a launched engine is sent at once.
        key: The endpoint's key in memory; wins over references to one.
        capture: What local weights keep of their probabilities while they answer; others tell
            what a request asks for (`Sampling.top_logprobs`).
        top_logprobs: How many a launched engine must be able to tell.
        when_asked: Whether weights that are opened here are read when something is asked for the
            first time, and not before; what is known without them is told all the same.

    Raises:
        ConfigError: If the model is unknown or not on this machine.
        MissingExtra: If what it takes is not installed.
    """
    ref = _ref_of(model, workspace)
    if isinstance(model, TeacherConfig) and model.launch:
        return open_launched(model, ref, max_in_flight=max_in_flight, top_logprobs=top_logprobs)
    if ref.opener:
        return cast("ChatModel", resolve_attribute(ref.opener, what=f"opener of {ref.name}")(ref))
    if ref.kind == "endpoint":
        settings = model if isinstance(model, TeacherConfig) else None
        return _endpoint(ref, settings, key=key, max_in_flight=max_in_flight)
    if ref.kind == "gguf" and has_llama_cpp():
        return GgufModel(ref.source, name=ref.name, when_asked=when_asked)
    if ref.kind in EMBEDDED:
        return EmbeddedModel(ref, when_asked=when_asked)
    from potstill.models.local import LocalModel

    return LocalModel(
        ref, dtype=dtype, batch_size=batch_size, capture=capture, when_asked=when_asked
    )


def _endpoint(
    ref: ModelRef,
    settings: TeacherConfig | None,
    *,
    key: SecretStr | None,
    max_in_flight: int | None,
) -> EndpointModel:
    names = ("timeout_seconds", "requests_per_minute", "tokens_per_minute")
    limits = {} if settings is None else {name: getattr(settings, name) for name in names}
    if max_in_flight:
        limits["max_in_flight"] = max_in_flight
    return EndpointModel(
        ref.source,
        (settings.model if settings else None) or ref.model,
        key=key or (settings.key if settings else None) or ref.key,
        name=None if ref.name == ref.source else ref.name,
        price=(settings.price if settings else None) or ref.price,
        **{name: getattr(settings, name, None) or getattr(ref, name) for name in _WIRE},
        **limits,
    )


def _ref_of(
    model: TeacherConfig | StudentConfig | ModelRef | Path | str,
    workspace: Mapping[str, Any] | None,
) -> ModelRef:
    if isinstance(model, ModelRef):
        return model
    place = model.place if isinstance(model, TeacherConfig | StudentConfig) else str(model)
    return find_model(place, workspace=workspace)
