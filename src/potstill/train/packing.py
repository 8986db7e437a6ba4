"""What is computed at once: rows packed one behind the other, or padded beside each other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.config import TrainConfig
from potstill.data.batch import Batch, collate, fill_bins, pack
from potstill.data.render import Rendered
from potstill.errors import TrainError
from potstill.models.longrope import rope_switch
from potstill.models.packed import attend_by_document, packing_error

PACKED_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens computed at once by default where rows can be packed: enough to keep matrix products
busy, and a bound for memory."""

TOLERANCE = 0.05
"""Largest difference between a document in a packed row and alone, as a share of its size. In
bf16 rounding makes 0.01 of it; a family that mixes documents up shows 0.2 and more."""

LITTLE_PADDING = 1.15
"""Tokens with padding by tokens without, up to which `auto` pads on a CPU: packed rows take a
tenth longer there than padded ones that have nothing to pad (docs/results/demo-time.md)."""

PROBE_TOKENS = 24
"""Beginning of a row that is tried."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Cuts rows into parts that are computed at once, and makes tensors of a part.

    A step is the same rows however it is cut.
    """

    packed: bool
    pad_id: int
    max_rows: int | None = None
    max_tokens: int | None = None
    switch: int | None = None
    """Rows longer than this never share a packed row with others: with LongRoPE they turn all
    positions of it at another speed."""

    def cut(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """The parts of some rows, each once.

        Args:
            lengths: Tokens of all rows, by row.
        """
        if not self.packed and self.max_tokens is None and not self._too_many(rows):
            return [list(rows)] if rows else []
        limit = self.max_tokens or sum(lengths[row] for row in rows) * max(1, len(rows))
        kinds: dict[bool, list[int]] = {}
        for row in rows:
            # The last token of a row is no input.
            is_long = self.packed and self.switch is not None and lengths[row] - 1 > self.switch
            kinds.setdefault(is_long, []).append(row)
        return [
            [of_kind[place] for place in part]
            for _, of_kind in sorted(kinds.items())
            for part in fill_bins(
                [lengths[row] for row in of_kind],
                limit,
                most=self.max_rows,
                padded=not self.packed,
            )
        ]

    def tensors(self, rows: Sequence[Rendered]) -> Batch:
        """One part as tensors."""
        return pack(rows) if self.packed else collate(rows, pad_id=self.pad_id)

    def _too_many(self, rows: Sequence[int]) -> bool:
        return self.max_rows is not None and len(rows) > self.max_rows


PADDED = Parts(packed=False, pad_id=0)
"""All rows of a step at once, padded."""


def choose_parts(
    model: nn.Module,
    rows: Sequence[Rendered],
    train: TrainConfig,
    *,
    pad_id: int,
    takes_packed: bool = True,
    padding: float = math.inf,
    device: str | None = None,
) -> Parts:
    """How rows are computed, from `train.packing` and what the model's family can.

    Args:
        rows: The training rows; some are tried.
        padding: Tokens of the steps with padding, by those without.
        takes_packed: Whether the loss can be computed on packed rows.
        device: Kind of device that computes; where the model is now by default.

    Raises:
        TrainError: If `train.packing: true` and the family, or the loss, cannot.
    """
    device = device or next(model.parameters()).device.type
    reason = None if train.packing is False else _why_not_packed(model, rows, takes_packed)
    if reason and train.packing is True:
        raise TrainError(f"train.packing: true, but {reason}; set train.packing: auto")
    can = train.packing is not False and reason is None
    if can and train.packing == "auto" and device == "cpu" and padding <= LITTLE_PADDING:
        reason = f"that makes the tokens only {padding:.2f} times as many"
    packed, tokens = can and reason is None, train.micro_batch_tokens
    # A size in records is a promise about memory too; then it alone decides.
    if can and tokens is None and train.micro_batch_size is None:
        tokens = PACKED_TOKENS.get(device, 2048)
    if packed:
        attend_by_document(model)
        log.info("train: rows are packed, %s", f"{tokens:,} tokens at once" if tokens else "whole")
    elif reason:
        log.info("train: rows are padded, because %s", reason)
    return Parts(packed, pad_id, train.micro_batch_size, tokens, rope_switch(model.config))


def _why_not_packed(model: Any, rows: Sequence[Rendered], takes_packed: bool) -> str | None:
    """The reason that rows of this model must be padded; None where there is none."""
    if not takes_packed:
        return "a loss between the layers is computed on padded rows"
    first, second, third = (list(row.ids[:PROBE_TOKENS]) for row in (rows[0], rows[-1], rows[0]))
    documents = [first, second[::-1], third]  # prompts often begin alike
    name = type(model).__name__
    before = model.config._attn_implementation
    try:
        attend_by_document(model)
        error = packing_error(model, documents)
    except (TypeError, ValueError, RuntimeError, AttributeError) as failure:
        # Each family fails in its own way on positions or masks that it has no place for.
        return f"{name} cannot compute packed rows ({str(failure).splitlines()[0]})"
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
    if not error <= TOLERANCE:
        return (
            f"in {name} packed rows see each other (hidden states differ by {error:.2g} of "
            f"their size)"
        )
    return None
