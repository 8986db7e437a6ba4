"""Finds out which dialect a job is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.config import DistillConfig, load_config, parse_config
from potstill.dialects.azure import from_azure, is_azure, read_azure_file
from potstill.dialects.dialect import Dialect
from potstill.dialects.tutorial import from_distillation_job
from potstill.entities import DistillationJob
from potstill.errors import ConfigError


def understand(job: Any, *, base: Path | None = None) -> Dialect:
    """Any job that can be submitted, as a config.

    Args:
        job: A `DistillConfig`, our `DistillationJob`, Azure's, or a mapping in the words of
            a config file or of Azure's YAML.
        base: Folder that relative paths start from; the current one by default.

    Raises:
        ConfigError: If it is none of them, or has problems; all are named.
    """
    base = base or Path.cwd()
    if isinstance(job, Dialect):
        return job
    if isinstance(job, DistillationJob):
        return from_distillation_job(job, base=base)
    if isinstance(job, DistillConfig):
        tree = job.model_dump(mode="json", by_alias=True)
        return _own(parse_config(tree, where=job.name, base=base))
    if is_azure(job):
        return from_azure(job, base=base)
    if isinstance(job, Mapping):
        return _own(parse_config(dict(job), base=base))
    raise ConfigError(
        f"a {type(job).__name__} cannot be submitted; give a DistillationJob, a DistillConfig, "
        f"or the object of azure.ai.ml.model_customization.distillation"
    )


def read_job(path: Path | str, overrides: Sequence[str] = ()) -> Dialect:
    """Reads a job file: our own config, or Azure's YAML (`type: distillation`).

    Args:
        overrides: `section.key=value`, for our own config only.

    Raises:
        ConfigError: If it cannot be read or has problems.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree = None  # load_config says what is wrong with it
    if not is_azure(tree):
        return understand(load_config(path, overrides))
    if overrides:
        raise ConfigError(
            f"{path} is an Azure job, which has no {overrides[0].partition('=')[0]!r} to "
            f"override; change the file"
        )
    return read_azure_file(path)


def _own(config: DistillConfig) -> Dialect:
    return Dialect(config=config, model_name=config.name)
