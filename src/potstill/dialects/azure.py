"""Azure's distillation job, object or YAML -> `DistillConfig`.

The object is read by its attributes; azure itself is never imported. Both forms become one
tree of plain values in the words of the YAML, which is what is translated.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from potstill.dialects.dialect import Dialect, Draft, nearest, put_hyperparameters, slug
from potstill.errors import ConfigError

TASKS = {
    "nli": "nli",
    "nlu_qa": "qa",
    "conversation": "conversation",
    "conversational": "conversation",
    "math": "math",
    "summarization": "summarization",
}
INFERENCE_PARAMETERS = {
    "temperature": "generation.temperature",
    "max_tokens": "generation.max_new_tokens",
    "top_p": "generation.top_p",
    "frequency_penalty": "generation.frequency_penalty",
    "presence_penalty": "generation.presence_penalty",
    "stop": "generation.stop",
}
FIELDS = (
    "type",
    "name",
    "display_name",
    "experiment_name",
    "description",
    "tags",
    "properties",
    "outputs",
    "data_generation_type",
    "data_generation_task_type",
    "teacher_model_endpoint_connection",
    "student_model",
    "training_data",
    "validation_data",
    "teacher_model_settings",
    "prompt_settings",
    "hyperparameters",
    "resources",
)
NO_EFFECT = ("$schema", "id", "services", "status", "creation_context", "compute", "identity")
GROUPS = {
    # mapping                       keys it may hold
    "teacher_model_endpoint_connection": (
        "type",
        "name",
        "endpoint",
        "api_key",
        "description",
        "tags",
        "metadata",
    ),
    "teacher_model_settings": ("inference_parameters", "endpoint_request_settings"),
    "prompt_settings": ("enable_chain_of_thought", "enable_chain_of_density", "max_len_summary"),
    "resources": ("instance_type", "properties"),
}
ENDPOINT_SETTINGS = ("request_batch_size", "min_endpoint_success_ratio")
REGISTRY_MODEL = re.compile(r"/models/(?P<name>[^/]+)(/(versions|labels)/[^/]+)?/?$")
ASSET_MODEL = re.compile(r"^azureml:(?P<name>[^:@/]+)([:@][^/]+)?$")


def is_azure(job: Any) -> bool:
    """Whether this is Azure's distillation job: its object, or the tree of its YAML."""
    if isinstance(job, Mapping):
        return job.get("type") == "distillation"
    return hasattr(job, "teacher_model_endpoint_connection") and hasattr(
        job, "data_generation_task_type"
    )


def read_azure_file(path: Path | str) -> Dialect:
    """Reads Azure's YAML; relative paths start from the file's own folder.

    Raises:
        ConfigError: If it cannot be read or has problems; all are named.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # What the parser found may quote the line with the key.
        raise ConfigError(f"{path} cannot be read as YAML") from None
    if not is_azure(tree):
        raise ConfigError(f"{path} is not an Azure job: it has no type: distillation")
    return _translate(tree, where=str(path), base=path.absolute().parent)


def from_azure(job: Any, *, base: Path | None = None) -> Dialect:
    """Translates the object of `azure.ai.ml.model_customization.distillation`, or its tree.

    Args:
        base: Folder that relative paths start from; the object's own, or the current one.

    Raises:
        ConfigError: With every problem, in Azure's names.
    """
    if isinstance(job, Mapping):
        return _translate(job, where="Azure job", base=base or Path.cwd())
    own = getattr(job, "base_path", None)
    return _translate(_plain(job), where="Azure job", base=Path(own or base or Path.cwd()))


def _plain(job: Any) -> dict[str, Any]:
    """The object as the tree of its YAML; what is None or empty is left out."""
    tree = {name: getattr(job, name, None) for name in FIELDS}
    for name in ("student_model", "training_data", "validation_data"):
        tree[name] = getattr(tree[name], "path", tree[name])
    connection = tree["teacher_model_endpoint_connection"]
    keys = ("type", "name", "endpoint", "api_key")
    tree["teacher_model_endpoint_connection"] = _attributes(connection, keys)
    settings = _attributes(tree["teacher_model_settings"], GROUPS["teacher_model_settings"])
    requests = settings.get("endpoint_request_settings")
    if requests is not None:
        settings["endpoint_request_settings"] = _attributes(requests, ENDPOINT_SETTINGS)
    tree["teacher_model_settings"] = settings
    for name in ("prompt_settings", "resources"):
        tree[name] = _attributes(tree[name], GROUPS[name])
    return {name: value for name, value in tree.items() if value not in (None, {})}


def _attributes(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    found = {name: getattr(value, name, None) for name in names}
    return {name: inner for name, inner in found.items() if inner is not None}


def _translate(tree: Mapping[str, Any], *, where: str, base: Path) -> Dialect:
    draft = Draft(where)
    for key in tree:
        if key in NO_EFFECT:
            draft.notes.append(f"{key} has no effect here")
        elif key not in FIELDS:
            draft.refuse(key, f"no such key; {nearest(str(key), FIELDS)}")
    groups = {name: _group(draft, tree, name, keys) for name, keys in GROUPS.items()}
    task = _put_task(draft, tree)
    _put_teacher(draft, groups["teacher_model_endpoint_connection"])
    student = _put_student(draft, tree.get("student_model"))
    _put_data(draft, tree)
    _put_requests(draft, groups["teacher_model_settings"])
    _put_prompts(draft, groups["prompt_settings"], task)
    put_hyperparameters(draft, _mapping(draft, tree, "hyperparameters"), extra=())
    if groups["resources"].get("instance_type"):
        draft.notes.append(
            f"resources.instance_type {groups['resources']['instance_type']!r} has no effect "
            f"here: the job runs where it is submitted"
        )
    given = tree.get("name")
    name = given or tree.get("display_name") or tree.get("experiment_name") or student
    draft.put("name", str(given) if given else slug(str(name)), "name")
    registered = _registered_model(draft, tree)
    return draft.finish(base, named=bool(given), model_name=registered)


def _group(draft: Draft, tree: Mapping, name: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    group = _mapping(draft, tree, name)
    for key in group:
        if key not in keys:
            draft.refuse(f"{name}.{key}", f"no such key; {nearest(str(key), keys)}")
    return group


def _mapping(draft: Draft, tree: Mapping, name: str, origin: str = "") -> Mapping[str, Any]:
    value = tree.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        draft.refuse(origin or name, f"must hold keys and values, but is a {type(value).__name__}")
        return {}
    return value


def _put_task(draft: Draft, tree: Mapping[str, Any]) -> str | None:
    kind = tree.get("data_generation_type")
    choices = {"label_generation": "label", "data_generation": "data"}
    if kind is None:
        draft.refuse("data_generation_type", "this key is required and was not given")
    elif draft.choose("data_generation_type", kind, choices) == "data":
        draft.put("data_generation", {}, "data_generation_type")
    given = tree.get("data_generation_task_type")
    if given is None:
        draft.refuse("data_generation_task_type", "this key is required and was not given")
        return None
    task = draft.choose("data_generation_task_type", given, TASKS)
    if task:
        draft.put("task", task, "data_generation_task_type")
    return task


def _put_teacher(draft: Draft, connection: Mapping[str, Any]) -> None:
    where = "teacher_model_endpoint_connection"
    kind = connection.get("type")
    if kind is not None and str(kind).lower() != "serverless":
        draft.refuse(
            f"{where}.type",
            f"{str(kind)!r} is not understood; the teacher must be type: serverless, an "
            f"endpoint that speaks OpenAI's chat interface",
        )
    endpoint = connection.get("endpoint")
    if not endpoint:
        draft.refuse(f"{where}.endpoint", "the address of the teacher is required")
    else:
        draft.put("teacher.url", _base_url(str(endpoint)), f"{where}.endpoint")
    if connection.get("api_key"):
        draft.take_key(str(connection["api_key"]), f"{where}.api_key")


def _base_url(endpoint: str) -> str:
    """The base of the chat interface: Azure's endpoints are often given without their /v1."""
    url = endpoint.rstrip("/").removesuffix("/chat/completions")
    return url if urllib.parse.urlsplit(url).path else f"{url}/v1"


def _put_student(draft: Draft, value: Any) -> str:
    place = _place(value)
    if not place:
        draft.refuse("student_model", "this key is required and was not given")
        return "student"
    found = REGISTRY_MODEL.search(place) if "://" in place else ASSET_MODEL.match(place)
    if found:
        name = found["name"]
        draft.notes.append(f"student_model: taken as the model named {name!r}")
        place = name
    elif "://" in place or place.startswith("azureml:"):
        draft.refuse(
            "student_model",
            f"{place!r} cannot be fetched; give a model name, a folder, or a registry path "
            f"that ends in /models/<name>/versions/<n>",
        )
        return slug(place)
    draft.put("student.source", place, "student_model")
    return slug(place)


def _put_data(draft: Draft, tree: Mapping[str, Any]) -> None:
    training = _file(draft, tree, "training_data")
    if training:
        draft.put("train_data", [training], "training_data")
    elif tree.get("training_data") is None:
        draft.refuse("training_data", "this key is required and was not given")
    validation = _file(draft, tree, "validation_data")
    if validation:
        draft.put("data.validation", Path(validation), "validation_data")


def _file(draft: Draft, tree: Mapping[str, Any], name: str) -> str | None:
    if tree.get(name) is None:
        return None
    place = _place(tree[name])
    if place.startswith("file:"):
        return urllib.parse.unquote(urllib.parse.urlsplit(place).path)
    if not place or "://" in place or place.startswith("azureml:"):
        draft.refuse(name, f"{place!r} is not a file on this machine; download it first")
        return None
    return place


def _place(value: Any) -> str:
    """The path of an input, which may be a bare string or {type: uri_file, path: ...}."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return "" if value is None else str(value)


def _put_requests(draft: Draft, settings: Mapping[str, Any]) -> None:
    where = "teacher_model_settings"
    parameters = f"{where}.inference_parameters"
    for name, value in _mapping(draft, settings, "inference_parameters", parameters).items():
        if name not in INFERENCE_PARAMETERS:
            known = nearest(str(name), INFERENCE_PARAMETERS)
            draft.refuse(f"{parameters}.{name}", f"no such inference parameter; {known}")
        elif value is not None:
            value = [value] if name == "stop" and isinstance(value, str) else value
            draft.put(INFERENCE_PARAMETERS[name], value, f"{parameters}.{name}")
    origin = f"{where}.endpoint_request_settings"
    requests = _mapping(draft, settings, "endpoint_request_settings", origin)
    for name in requests:
        if name not in ENDPOINT_SETTINGS:
            known = nearest(str(name), ENDPOINT_SETTINGS)
            draft.refuse(f"{origin}.{name}", f"no such key; {known}")
    # Azure's own defaults: a job must ask as hard, and give up as late, as it does there.
    size, ratio = (requests.get(name) for name in ENDPOINT_SETTINGS)
    size = 10 if size is None else size
    ratio = 0.7 if ratio is None else ratio
    if _between(draft, f"{origin}.request_batch_size", size, int, 1, 100):
        draft.put("generation.max_in_flight", int(size), f"{origin}.request_batch_size")
    if _between(draft, f"{origin}.min_endpoint_success_ratio", ratio, float, 0, 1):
        ratio_key = "generation.min_success_ratio"
        draft.put(ratio_key, float(ratio), f"{origin}.min_endpoint_success_ratio")


def _between(draft: Draft, origin: str, value: Any, kind: type, low: float, high: float) -> bool:
    try:
        fits = low <= kind(value) <= high and kind(value) == float(value)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        noun = "a whole number" if kind is int else "a share"
        draft.refuse(origin, f"must be {noun} from {low} to {high}, got {value!r}")
    return fits


def _put_prompts(draft: Draft, settings: Mapping[str, Any], task: str | None) -> None:
    thought = settings.get("enable_chain_of_thought") or False
    density = settings.get("enable_chain_of_density") or False
    where = "prompt_settings"
    if thought and density:
        draft.refuse(where, "chain of thought and chain of density cannot both be enabled")
    elif thought and task == "summarization":
        draft.refuse(
            f"{where}.enable_chain_of_thought",
            "chain of thought is not for SUMMARIZATION; use enable_chain_of_density",
        )
    elif density and task not in (None, "summarization"):
        draft.refuse(
            f"{where}.enable_chain_of_density",
            "chain of density is only for SUMMARIZATION; use enable_chain_of_thought",
        )
    elif thought and task == "conversation":
        draft.refuse(
            f"{where}.enable_chain_of_thought",
            "reasoning in front of every turn would become part of the conversation; leave it "
            "out for CONVERSATION",
        )
    elif thought or density:
        kind = "chain_of_thought" if thought else "chain_of_density"
        draft.put("generation.prompting", kind, f"{where}.enable_{kind}")
    length = settings.get("max_len_summary")
    if length is None:
        return
    draft.put("generation.max_summary_words", length, f"{where}.max_len_summary")
    if not density:
        draft.notes.append(f"{where}.max_len_summary has no effect without enable_chain_of_density")


def _registered_model(draft: Draft, tree: Mapping[str, Any]) -> str | None:
    outputs = _mapping(draft, tree, "outputs")
    output = outputs.get("registered_model")
    if output is None:
        return None
    if not isinstance(output, Mapping):
        output = {"name": getattr(output, "name", None)}
    name = output.get("name")
    return slug(str(name)) if name else None
