"""Which engine `teacher.launch` starts, and how: llama-server, Ollama or vLLM."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from potstill.config import TeacherConfig
from potstill.errors import ConfigError, MissingExtra
from potstill.models import ollama
from potstill.models.catalog import ModelRef
from potstill.models.engines import GgufModel, has_llama_cpp
from potstill.models.fingerprint import weights_identity
from potstill.models.launched import LaunchedModel

_LLAMA_SLOTS, _LLAMA_CONTEXT = 4, 4096
_VLLM_IN_FLIGHT = 256
_VLLM_LOGPROBS = 20
"""What vLLM tells at most, unless it is started to tell more."""


def open_launched(
    teacher: TeacherConfig,
    ref: ModelRef,
    *,
    max_in_flight: int | None = None,
    top_logprobs: int = 0,
) -> LaunchedModel | GgufModel:
    """The engine that `teacher.launch` names, for weights on this machine.

    A `llama-server` on PATH is preferred to the one that xllamacpp brings along: it is the
    user's own, and may know the machine's GPU.

    Args:
        top_logprobs: How many log-probabilities of a token it will be asked for. No part of what
            its answers can be re-used for.

    Raises:
        ConfigError: If the model is none that this engine takes.
        MissingExtra: If the engine is not installed.
    """
    if ref.kind == "endpoint":
        raise ConfigError(
            f"teacher.launch starts an engine for weights on this machine, but {ref.name} is an "
            f"endpoint ({ref.source}), which runs already; leave launch out"
        )
    settings: dict[str, Any] = {"name": ref.name, "start_seconds": teacher.launch_seconds}
    program = find_program(teacher.launch or "")
    if teacher.launch == "vllm":
        return _open_vllm(teacher, ref, program, max_in_flight, top_logprobs, settings)
    if ref.kind != "gguf":
        raise ConfigError(
            f"teacher.launch: {teacher.launch} reads GGUF files, and {ref.source} is none; give a "
            f".gguf file as teacher.model, or use launch: vllm"
        )
    if teacher.launch == "ollama":
        return _open_ollama(teacher, ref, program, max_in_flight, settings)
    if program is not None:
        return LaunchedModel(
            "llama-server",
            (program, *_llama_options(ref), *teacher.launch_arguments),
            "--alias",
            identity=_identity("", ref, teacher.launch_arguments),
            max_in_flight=max_in_flight or 2 * _LLAMA_SLOTS,
            **settings,
        )
    if teacher.launch_arguments and has_llama_cpp():
        raise ConfigError(
            "teacher.launch_arguments are for a llama-server on PATH, and there is none; the one "
            "that xllamacpp brings along takes no arguments"
        )
    return GgufModel(
        ref.source, slots=_LLAMA_SLOTS, context=_LLAMA_CONTEXT, **settings
    )  # it says itself what to install where there is no llama.cpp at all


def _open_vllm(
    teacher: TeacherConfig,
    ref: ModelRef,
    program: str | None,
    max_in_flight: int | None,
    top_logprobs: int,
    settings: dict[str, Any],
) -> LaunchedModel:
    if program is None:
        raise MissingExtra(
            "teacher.launch: vllm needs the command vllm on PATH: pip install vllm, in this "
            "or another environment"
        )
    options = (*_vllm_options(ref, top_logprobs), *teacher.launch_arguments)
    return LaunchedModel(
        "vllm",
        (program, "serve", ref.source, *options),
        "--served-model-name",
        identity=_identity("vllm", ref, teacher.launch_arguments),
        max_in_flight=max_in_flight or _VLLM_IN_FLIGHT,
        **settings,
    )


def _open_ollama(
    teacher: TeacherConfig,
    ref: ModelRef,
    program: str | None,
    max_in_flight: int | None,
    settings: dict[str, Any],
) -> LaunchedModel:
    if program is None:
        raise MissingExtra(
            "teacher.launch: ollama needs the command ollama on PATH; its site has the installer. "
            "launch: llama-server reads the same file"
        )
    if teacher.launch_arguments:
        raise ConfigError(
            "teacher.launch_arguments: ollama serve takes none; it reads variables of the "
            "environment, such as OLLAMA_FLASH_ATTENTION"
        )
    starter = Path(ollama.__file__)
    return LaunchedModel(
        "ollama",
        (sys.executable, "-I", str(starter), program, ref.source),
        "--name",
        identity=_identity("ollama", ref, ()),
        max_in_flight=max_in_flight or 2 * ollama.SLOTS,
        **settings,
    )


def _vllm_options(ref: ModelRef, top_logprobs: int) -> tuple[str, ...]:
    """What stands before the user's own arguments, which win."""
    return (
        # Samplers of the model's own that a request does not name must not cut its answers.
        *("--generation-config", "vllm"),
        *(("--revision", ref.revision) if ref.revision else ()),
        *(("--max-logprobs", str(top_logprobs)) if top_logprobs > _VLLM_LOGPROBS else ()),
    )


def _llama_options(ref: ModelRef) -> tuple[str, ...]:
    return (
        *("--model", ref.source, "--jinja", "--parallel", str(_LLAMA_SLOTS)),
        *("--ctx-size", str(_LLAMA_SLOTS * _LLAMA_CONTEXT)),
        # Samplers that a request does not name must not cut the distribution behind its back.
        *("--top-k", "0", "--min-p", "0", "--top-p", "1"),
    )


def _identity(engine: str, ref: ModelRef, arguments: tuple[str, ...]) -> str:
    path = Path(ref.source)
    weights = weights_identity(path) if path.exists() else f"{ref.source}@{ref.revision or ''}"
    # Arguments may quantise the weights: other answers.
    return " ".join(part for part in (engine, weights, *arguments) if part)


def find_program(name: str) -> str | None:
    """The command on PATH, or beside the Python that runs this: an environment not activated."""
    beside = Path(sys.executable).parent
    return shutil.which(name) or shutil.which(name, path=str(beside))
