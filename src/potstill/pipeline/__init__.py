"""The story: `distill` runs every stage, `Event` is what it tells while it does."""

from typing import TYPE_CHECKING, Any

from potstill.pipeline.context import Event

if TYPE_CHECKING:
    from potstill.pipeline.story import distill

__all__ = ["Event", "distill"]


def __getattr__(name: str) -> Any:
    # The stages need torch; whoever draws a report again does not need the stages.
    if name == "distill":
        from potstill.pipeline.story import distill

        return distill
    raise AttributeError(name)
