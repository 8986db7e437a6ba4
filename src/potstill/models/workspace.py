"""Where jobs live on this machine, and what the workspace file calls its models.

# potstill.yaml
models:
  deepseek-v3: {url: "https://host/v1", model: deepseek-chat, key: env:DEEPSEEK_API_KEY}
  phi-4-mini: ./models/phi-4-mini
parallel_jobs: 1
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from potstill.config import TeacherConfig
from potstill.dialects.dialect import nearest
from potstill.errors import ConfigError
from potstill.types import Noun

log = logging.getLogger(__name__)

FILE_NAME = "potstill.yaml"
HOME_NAME = ".potstill"


class Workspace(Noun):
    """A folder that jobs are kept in, and names of models."""

    home: Path
    """Folder of the job store, the logs and the run folders."""

    file: Path | None = None
    """The workspace file; None without one."""

    models: dict[str, dict[str, Any]] = {}
    """Short name -> where the model is: source or url, model, key. Paths are absolute."""

    parallel_jobs: int = Field(1, ge=1, le=64)
    """How many jobs run at once; the others are Queued."""

    @property
    def database(self) -> Path:
        """File of the job store."""
        return self.home / "potstill.db"

    def run_folder(self, name: str) -> Path:
        """Run folder of a job."""
        return self.home / "runs" / name

    def log_file(self, name: str) -> Path:
        """What the worker of a job has to say."""
        return self.home / "logs" / f"{name}.log"

    def slot(self, number: int) -> Path:
        """Lock file of one of the `parallel_jobs` places to run in."""
        return self.home / "slots" / f"{number}.lock"

    def prepare(self) -> None:
        """Makes the folders: for this user only, and not for version control."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in ("runs", "logs", "slots"):
            (self.home / folder).mkdir(exist_ok=True)
        ignore = self.home / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")


def find_workspace(path: Path | str | None = None) -> Workspace:
    """The workspace of a file, or the nearest one.

    Looks for `potstill.yaml` here and in every folder above, then at POTSTILL_CONFIG. Without
    one the workspace is POTSTILL_HOME or `.potstill` in the current folder, which is said in
    one line on stderr.

    Args:
        path: A workspace file, or a folder that holds one.

    Raises:
        ConfigError: If the file is missing or has problems; all are named.
    """
    if path is not None:
        path = Path(path)
        return read_workspace(path / FILE_NAME if path.is_dir() else path)
    file = _nearest_file()
    if file is not None:
        return read_workspace(file)
    home = _home(Path.cwd())
    log.warning("no %s here or above: jobs are kept in the local workspace %s", FILE_NAME, home)
    return Workspace(home=home)


def find_models() -> dict[str, dict[str, Any]]:
    """Names of models in the nearest workspace file; none, silently, without one.

    Raises:
        ConfigError: As `find_workspace`.
    """
    file = _nearest_file()
    return {} if file is None else read_workspace(file).models


def _nearest_file() -> Path | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    elsewhere = os.environ.get("POTSTILL_CONFIG")
    return Path(elsewhere) if elsewhere else None


def read_workspace(file: Path) -> Workspace:
    """Reads a workspace file; relative places of models start from its folder.

    Raises:
        ConfigError: If it cannot be read or has problems; all are named.
    """
    file = Path(file).absolute()
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such workspace file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{file} must hold keys and values, but holds {type(tree).__name__}")
    problems: list[str] = []
    keys = ("models", "home", "parallel_jobs")
    for key in tree:
        if key not in keys:
            problems.append(f"{key}: no such key; {nearest(str(key), keys)}")
    models = _read_models(tree.get("models"), file.parent, problems)
    home = tree.get("home")
    given = {"parallel_jobs": tree["parallel_jobs"]} if "parallel_jobs" in tree else {}
    try:
        workspace = Workspace(
            file=file,
            home=file.parent / home if home else _home(file.parent),
            models=models,
            **given,
        )
    except (ValidationError, TypeError) as error:
        details = error.errors() if isinstance(error, ValidationError) else []
        problems += [f"{item['loc'][0]}: {item['msg']}" for item in details]
        problems += [] if details else [f"home: must be a folder, got {home!r}"]
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise ConfigError(f"{file} is not a valid workspace file:\n{lines}")
    return workspace


def _read_models(given: Any, base: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.append(f"models: must hold names and places, but is a {type(given).__name__}")
        return {}
    models = {}
    for name, place in given.items():
        tree = {"source": place} if isinstance(place, str) else place
        opener = {}
        if isinstance(tree, Mapping) and "opener" in tree:
            opener = {"opener": tree["opener"]}
            tree = {key: value for key, value in tree.items() if key != "opener"}
        try:
            entry = TeacherConfig.model_validate(tree)
        except ValidationError as error:
            problems += _explained(f"models.{name}", error)
            continue
        found = entry.model_dump(mode="json", exclude_unset=True)
        if entry.source and _is_file(entry.source, base):
            found["source"] = str((base / entry.source).absolute())
        models[str(name)] = {**found, **opener}
    return models


def _is_file(place: str, base: Path) -> bool:
    """Whether a place is on this disk, and not a URL, a package or a name."""
    if "://" in place or place.startswith("package:"):
        return False
    return place.startswith((".", "/")) or place.endswith(".gguf") or (base / place).exists()


def _explained(where: str, error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        key = ".".join([where, *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            hint = nearest(str(item["loc"][-1]), TeacherConfig.model_fields)
            lines.append(f"{key}: no such key; {hint}")
        else:
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
    return lines


def _home(folder: Path) -> Path:
    given = os.environ.get("POTSTILL_HOME")
    return Path(given).expanduser().absolute() if given else folder / HOME_NAME
