"""The config file: YAML and overrides in, `DistillConfig` or a full list of problems out."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from potstill.config.models import TeacherConfig
from potstill.config.section import Section
from potstill.config.sections import DistillConfig
from potstill.errors import ConfigError

OneModel = typing.TypeVar("OneModel", bound=TeacherConfig)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> DistillConfig:
    """Reads a YAML file and applies `section.key=value` overrides, the last one winning.

    Relative paths of data and model folders in the file are taken from the file's own
    folder, so that a run does not depend on where it was started.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, a value is out of range,
            or two values contradict each other. The message names every problem.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `potstill init` writes one") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, but holds {type(tree).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not an override; write section.key=value")
        _assign(tree, key.split("."), _parse_value(key, text))
    return parse_config(tree, where=str(path), base=path.parent.resolve())


def parse_config(
    tree: dict[str, Any], *, where: str = "config", base: Path | None = None
) -> DistillConfig:
    """Checks a tree of plain values and makes the config of it.

    Args:
        where: What the messages call it.
        base: Folder that relative file names start from; they stay as they are without it.

    Raises:
        ConfigError: With one line for each problem.
    """
    try:
        config = DistillConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in explain(error))
        raise ConfigError(f"{where} is not a valid config:\n{problems}") from None
    return config if base is None else _anchored(config, base)


def explain(error: ValidationError) -> list[str]:
    """One line for each problem: key, finding, and the nearest valid key or value."""
    lines = []
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
        key = ".".join(parts)
        known = [name for name, _ in config_keys()]
        if item["type"] == "extra_forbidden":
            nearest = _nearest_key(key, known)
            hint = f"did you mean {nearest}?" if nearest else "see `potstill schema --explain`"
            line = f"{key}: no such key; {hint}"
        elif item["type"] == "missing":
            line = f"{key}: this key is required and was not given"
        else:
            message = item["msg"].removeprefix("Value error, ")
            line = f"{key}: {message}{_found(parts, item['input'])}" if key else message
            if item["type"] == "literal_error" and isinstance(item["input"], str):
                expected = item["ctx"]["expected"].replace(" or ", ", ")
                choices = [choice.strip("'") for choice in expected.split(", ")]
                close = difflib.get_close_matches(item["input"], choices, n=1)
                line += f"; did you mean {close[0]}?" if close else ""
        if line not in lines:
            lines.append(line)
    return lines


def config_keys(
    section: type[BaseModel] = DistillConfig, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yields every dotted key with its help text, in the order of the source."""
    for name, field in section.model_fields.items():
        nested = _section_of(field.annotation)
        key = f"{prefix}{field.alias or name}"
        if field.description or nested is None:
            yield key, " ".join((field.description or "").split())
        if nested is not None:
            yield from config_keys(nested, f"{key}.")


def json_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors."""
    schema = DistillConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Potstill distillation"
    return schema


def dump_config(config: DistillConfig) -> str:
    """The resolved config as YAML: every key, also the defaults."""
    tree = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _found(parts: Sequence[str], value: Any) -> str:
    """What was found, for a message; a mapping or a key's value may be a secret."""
    if isinstance(value, dict) or parts[-1] == "key" or len(repr(value)) > 80:
        return ""
    return f", got {value!r}"


def _section_of(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _assign(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *parents, last = keys
    for depth, parent in enumerate(parents):
        below = tree.get(parent)
        if isinstance(below, list) and depth == 0 and parent == "teacher":
            _assign_in_list(below, keys[1:], value)
            return
        place = ".".join(keys[: depth + 1])
        if isinstance(below, str) and place in ("teacher", "student", "evaluate.judge"):
            below = {"source": below}
        if not isinstance(below, dict):
            below = {}
        tree[parent] = below
        tree = below
    tree[last] = value


def _assign_in_list(teachers: list[Any], keys: Sequence[str], value: Any) -> None:
    number, *inner = keys
    if not (number.isdecimal() and int(number) < len(teachers)):
        raise ConfigError(
            f"teacher.{number}: teacher is a list of {len(teachers)} here; say which one is meant, "
            f"as in teacher.0.key=env:NAME, counted from 0"
        )
    holder = {"teacher": teachers[int(number)]}
    _assign(holder, ["teacher", *inner], value)
    teachers[int(number)] = holder["teacher"]


def _parse_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)  # a bare word is a string: loss.kind=sft
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} cannot be read as a YAML value: {error}") from None


def _nearest_key(key: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.75)
    return by_last[close[0]] if close else None


def _anchored(config: DistillConfig, base: Path) -> DistillConfig:
    def anchor(path: Path) -> Path:
        return path if path.is_absolute() else base / path

    def anchor_model(place: str | None) -> str | None:
        if (
            place
            and "://" not in place
            and (place.startswith((".", "/")) or (base / place).exists())
        ):
            return str(anchor(Path(place)))
        return place

    data = config.data
    files: dict[str, Any] = {
        name: anchor(value) if isinstance(value := getattr(data, name), Path) else value
        for name in ("validation", "test")
    }
    files["keep_out"] = tuple(anchor(path) for path in data.keep_out)
    if isinstance(names := data.privacy.names, Path):
        files["privacy"] = data.privacy.model_copy(update={"names": anchor(names)})
    examined = {
        name: anchor(value)
        for name in ("gold_data", "lm_eval", "general_include")
        if (value := getattr(config.evaluate, name))
    }
    judge = config.evaluate.judge

    def anchor_teacher(teacher: OneModel) -> OneModel:
        places = ("source", "model") if teacher.launch else ("source",)
        found = {name: anchor_model(getattr(teacher, name)) for name in places}
        return teacher.model_copy(update=found)

    teachers = tuple(anchor_teacher(teacher) for teacher in config.teachers)
    student = config.student
    if student.prune:
        cut = student.prune.model_copy(update={"from_": anchor_model(student.prune.from_)})
        student = student.model_copy(update={"prune": cut})
    else:
        student = student.model_copy(update={"source": anchor_model(student.source)})
    return config.model_copy(
        update={
            "train_data": tuple(anchor(path) for path in config.train_data),
            "data": data.model_copy(update=files),
            "evaluate": config.evaluate.model_copy(
                update={**examined, "judge": anchor_teacher(judge) if judge else None}
            ),
            "teacher": teachers if len(teachers) > 1 else teachers[0],
            "student": student,
        }
    )
