"""The workspace as jobs see it, and what may be called a name in it."""

from __future__ import annotations

import re

from potstill.config import NAME_PATTERN
from potstill.errors import ConfigError
from potstill.models.workspace import Workspace, find_models, find_workspace, read_workspace

__all__ = ["Workspace", "check_name", "find_models", "find_workspace", "read_workspace"]


def check_name(name: str, what: str = "job") -> str:
    """The name, if it is one.

    Raises:
        ConfigError: If it does not match the pattern that keeps names out of other folders.
    """
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN.strip("^$"), name):
        raise ConfigError(
            f"{name!r} is not the name of a {what}: up to 64 lower-case letters, digits, dots, "
            f"dashes and underscores, the first a letter or digit"
        )
    return name
