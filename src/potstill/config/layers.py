"""Config sections of what is learnt between the layers: hidden states, attention relations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from potstill.config.section import Section

LayerPair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
LayerMap = Literal["uniform", "last"] | Annotated[tuple[LayerPair, ...], Field(min_length=1)]
"""Which layer of the student learns from which of the teacher's, both counted from 0."""

Tokens = Literal["all", "answer"]
"""Which tokens of a row are compared."""


class HiddenConfig(Section):
    weight: float = Field(1.0, gt=0)
    """What the term is multiplied by before it is added to the loss."""

    kind: Literal["cosine", "mse"] = "cosine"
    """`cosine`: 1 minus the cosine of both vectors, whatever their lengths. `mse`: the mean
    square of their difference; a few huge entries of large models then decide alone."""

    layers: LayerMap = "uniform"
    """Who learns from whom: every layer of the student from an evenly spaced one of the teacher
    (`uniform`), the last from the last (`last`), or pairs `[[student, teacher], …]` from 0."""

    tokens: Tokens = "all"
    """Which tokens are compared: `all` up to the end of the answer, or those of the `answer`."""


class AttentionConfig(Section):
    weight: float = Field(1.0, gt=0)
    """What the term is multiplied by before it is added to the loss."""

    kind: Literal["qkv", "value"] = "qkv"
    """What is related among tokens: queries, keys and values, or the values alone."""

    layers: LayerMap = "last"
    """Who learns from whom, as in `hidden`; MiniLM's authors compare one layer, the last of the
    student with the last, or an upper one, of the teacher."""

    heads: int | None = Field(None, ge=1)
    """Relation heads that vectors are cut into, the same for both models whatever theirs are; by
    default the most that divide all widths and leave 16 numbers in each."""

    tokens: Tokens = "all"
    """Which tokens' relations are compared: `all` up to the end of the answer, or `answer`."""


def _as_kind(value: Any) -> Any:
    """A bare word is the short form of {kind: word}."""
    return {"kind": value} if isinstance(value, str) else value


Hidden = Annotated[
    HiddenConfig | None,
    BeforeValidator(
        _as_kind, json_schema_input_type=Literal["cosine", "mse"] | HiddenConfig | None
    ),
]
Attention = Annotated[
    AttentionConfig | None,
    BeforeValidator(
        _as_kind, json_schema_input_type=Literal["qkv", "value"] | AttentionConfig | None
    ),
]
