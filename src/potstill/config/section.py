"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


Date = Annotated[
    str,
    # A whole date without quotes is no text in YAML.
    BeforeValidator(lambda value: value.isoformat() if hasattr(value, "isoformat") else value),
    Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$"),
]
"""A month or a day: 2026-11, 2026-11-22."""
