"""Whether a teacher's answers may train a student, as far as the catalogue knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from potstill.config import TeacherConfig
from potstill.models.catalog import catalogued, find_model
from potstill.types import Noun


class TeacherTerms(Noun):
    """A teacher's licence, and what it says on training with its outputs. No legal advice."""

    teacher: str
    """Name of the model, or its place where it has none."""

    licence: str = ""
    train_on_outputs: Literal["yes", "no", "conditions", "unknown"] = "unknown"
    note: str = ""
    as_of: str = ""
    """Month in which the licence was read for the catalogue."""

    accepted: bool = False
    """Whether the config says that the user has read and accepted them."""

    @property
    def text(self) -> str:
        """What stands against training on its outputs; empty where nothing is known to."""
        if self.train_on_outputs not in ("no", "conditions"):
            return ""
        says = "forbid" if self.train_on_outputs == "no" else "limit"
        read = f"read in {self.as_of}" if self.as_of else ""
        about = ", ".join(part for part in (self.licence, read) if part)
        return (
            f"the terms of {self.teacher}{f' ({about})' if about else ''} {says} training on its "
            f"outputs: {self.note or 'see its licence'}"
        )


def terms_of(teacher: TeacherConfig, *, workspace: Mapping[str, Any] | None = None) -> TeacherTerms:
    """What is known of a teacher's terms: its own, its name's, or those of the host that serves it.

    Raises:
        ConfigError: As `find_model`.
    """
    ref = find_model(teacher.place, workspace=workspace)
    model = teacher.model or ref.model
    known = ref
    if ref.terms.train_on_outputs == "unknown":
        host = urlsplit(ref.source).netloc if ref.kind == "endpoint" else ""
        known = catalogued(names=(ref.name, model), host=host) or ref
    return TeacherTerms(
        teacher=model or ref.name,
        licence=ref.licence or known.licence,
        train_on_outputs=known.terms.train_on_outputs,
        note=known.terms.note,
        as_of=known.terms.as_of,
        accepted=teacher.accept_terms,
    )
