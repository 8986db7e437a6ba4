"""One exchange with a client, and who may look at it once the answer was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from potstill.serve.asked import Asked
from potstill.types import Response


@dataclass
class Exchange:
    """What was asked, and what was answered so far."""

    id: str
    asked: Asked
    model: str
    """What the model is called here; an answer of another names that one."""

    responses: dict[int, Response] = field(default_factory=dict)
    """By place in `asked.parts`."""

    @property
    def in_order(self) -> list[Response]:
        """The answers in the order of what was asked."""
        return [response for _, response in sorted(self.responses.items())]


class Watcher(Protocol):
    """Looks at exchanges that went well. Keeps nobody waiting, and fails by itself."""

    def saw(self, exchange: Exchange, seconds: float, first_seconds: float | None) -> None:
        """Takes note of an exchange: how long it took, and a stream until its first text."""
        ...

    async def close(self) -> None:
        """Ends what is still going on."""
        ...
