"""Config section on what checks of the teacher's answers may take."""

from __future__ import annotations

from pydantic import Field

from potstill.config.section import Section


class CheckLimits(Section):
    timeout_seconds: float = Field(10.0, gt=0, le=3600)
    """Longest that verifiers of formulas and your own checks may take for one answer, in all."""

    memory_mb: int = Field(2048, ge=64)
    """Memory that such a check may take, in MiB, beside what its modules need."""

    num_workers: int = Field(2, ge=1, le=256)
    """Processes that run such checks side by side."""
