"""What every dialect is translated to, and the words all of them share."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from potstill.config import TASKS, DistillConfig, TrainConfig, parse_config
from potstill.config.file import explain
from potstill.errors import ConfigError

KEY_VARIABLE = "POTSTILL_TEACHER_KEY"
"""Where a config says the key is when it was given in clear: the job holds the key in memory
only, and this variable may hold it when the same config is run by hand."""

TASK_NAMES = {name: name for name in TASKS} | {"nlu_qa": "qa", "conversational": "conversation"}

HYPERPARAMETERS = {
    # name in a job                 key of the config
    "learning_rate": "train.learning_rate",
    "batch_size": "train.batch_size",
    "num_epochs": "train.num_epochs",
    "per_device_train_batch_size": "train.batch_size",
    "num_train_epochs": "train.num_epochs",
    "n_epochs": "train.num_epochs",
    "learning_rate_multiplier": "train.learning_rate",
}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A job description, understood."""

    config: DistillConfig
    secrets: Mapping[str, SecretStr] = dataclasses.field(default_factory=dict)
    """Keys given in clear, by whom they are for (`teacher`). Kept nowhere."""

    notes: tuple[str, ...] = ()
    """What has no effect here, or another one than its author may think."""

    named: bool = True
    """Whether the author gave the name; else it is made of the student's name and a hash."""

    model_name: str | None = None
    """Name of the model to make; None leaves it to the client."""


class Draft:
    """A config under translation: values with the names they came from, and the problems."""

    def __init__(self, where: str):
        self.where = where
        self.tree: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.secrets: dict[str, SecretStr] = {}

    def put(self, key: str, value: Any, origin: str) -> None:
        """Sets a dotted key of the config; a second name for a key that is set is a problem."""
        if key in self.origin:
            self.problems.append(f"{origin}: {self.origin[key]} says the same thing; give one")
            return
        self.origin[key] = origin
        *parents, last = key.split(".")
        tree = self.tree
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[last] = value

    def refuse(self, origin: str, reason: str) -> None:
        """Notes a problem; the config is not made."""
        self.problems.append(f"{origin}: {reason}")

    def choose(self, origin: str, value: Any, choices: Mapping[str, str]) -> str | None:
        """The choice that `value` names in any case; a problem with the nearest if none."""
        name = str(value).strip().lower().replace("-", "_")
        if name in choices:
            return choices[name]
        self.refuse(origin, f"{value!r} is not known; {nearest(name, choices)}")
        return None

    def take_key(self, key: str, origin: str) -> None:
        """Keeps a reference in the config, and a key in clear out of it."""
        if not key.startswith(("env:", "file:")):
            self.secrets["teacher"] = SecretStr(key)
            self.notes.append(
                f"{origin} holds the key itself; it is used and written nowhere, so a resume "
                f"needs it again. Better: {origin}=env:NAME, and the key in that variable"
            )
            key = f"env:{KEY_VARIABLE}"
        self.put("teacher.key", key, origin)

    def finish(self, base: Path, **facts: Any) -> Dialect:
        """Checks everything together.

        Args:
            base: Folder that relative paths start from.
            facts: `named` and `model_name` of the dialect.

        Raises:
            ConfigError: With one line for each problem, in the author's own names.
        """
        try:
            DistillConfig.model_validate(self.tree)
        except ValidationError as error:
            self.problems += self._in_own_names(explain(error))
        if self.problems:
            lines = "\n".join(f"  {line}" for line in dict.fromkeys(self.problems))
            raise ConfigError(f"{self.where} cannot be run as it is:\n{lines}")
        return Dialect(
            config=parse_config(self.tree, where=self.where, base=base.absolute()),
            secrets=dict(self.secrets),
            notes=tuple(self.notes),
            **facts,
        )

    def _in_own_names(self, lines: Iterable[str]) -> Iterable[str]:
        for line in lines:
            key, _, rest = line.partition(": ")
            if "required and was not given" in rest:
                # What was given and refused has its own line already.
                if not self.problems:
                    yield line
                continue
            origin = self.origin.get(key) or self.origin.get(re.sub(r"\.\d+$", "", key))
            yield f"{origin}: {rest}" if origin else line


def put_hyperparameters(draft: Draft, given: Mapping[str, Any], *, extra: Iterable[str]) -> None:
    """Translates all three sets of names; unknown ones are problems with the nearest names.

    A `learning_rate_multiplier` multiplies the default learning rate.

    Args:
        extra: Names that the dialect itself has read already.
    """
    known = {**HYPERPARAMETERS, **{name: f"train.{name}" for name in TrainConfig.model_fields}}
    for name, value in given.items():
        origin = f"hyperparameters.{name}"
        if name in extra or value is None:
            continue
        if name not in known:
            draft.refuse(origin, f"no such hyperparameter; {nearest(name, [*known, *extra])}")
        elif name == "learning_rate_multiplier":
            default = TrainConfig().learning_rate
            try:
                rate = float(value) * default
            except (TypeError, ValueError):
                draft.refuse(origin, f"must be a number, got {value!r}")
                continue
            draft.put(known[name], rate, origin)
            draft.notes.append(f"{origin}: {value} x {default} gives train.learning_rate {rate:g}")
        else:
            draft.put(known[name], value, origin)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all there are."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}"


def slug(text: str) -> str:
    """A text as a name: the last part of a path, lower case, without odd characters."""
    last = text.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")
    return name[:48].rstrip("-._") or "student"
