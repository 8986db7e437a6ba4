"""The story: `distill` runs every stage, `Event` is what it tells while it does."""

from potstill.pipeline.context import Event
from potstill.pipeline.story import distill

__all__ = ["Event", "distill"]
