"""Documents packed one behind the other in one row, each of which sees only itself.

transformers makes a mask [T, T] for such a row. Attention under it reads T^2 scores of which
most belong to no document, and the mask itself grows with the square of the row. Where a
model uses torch's own attention, it is called here once a document instead: no score is
computed for nothing, and a row may be as long as memory allows.

    whole row    q k v of all documents -> projections, norms, MLP: nothing is padding
    attention    document by document, causal, with the model's own window

Other kinds of attention (flash kernels, eager with a soft-cap) get transformers' own way:
positions that begin anew tell them where a document ends.

Shape letters of this file:
    T  tokens of a row       L  tokens of a document       A  attention heads       D  head width
    H  hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_DOCUMENT = "potstill_by_document"
"""Name under which transformers knows the attention of this file."""

_LENGTHS: ContextVar[tuple[int, ...] | None] = ContextVar("document_lengths", default=None)


class _Documents(NamedTuple):
    """What stands in for the mask of a packed row."""

    lengths: tuple[int, ...]
    masks: tuple[Tensor | None, ...]
    """[1, 1, L, L] for each document; None where it is plainly causal."""


def attend_by_document(model: Any) -> None:
    """Lets a model with torch's own attention compute packed rows document by document.

    Everything else it computes stays the same; `attend_as_before` undoes it.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(BY_DOCUMENT)


def attend_as_before(model: Any) -> None:
    """Gives a model its usual attention back, before it is saved or used elsewhere."""
    if model.config._attn_implementation == BY_DOCUMENT:
        model.set_attn_implementation("sdpa")


def packed_states(model: Any, ids_1T: Tensor, position_1T: Tensor) -> Tensor:
    """Last hidden states [1, T, H] of packed documents, each as if it were alone.

    Args:
        position_1T: 0 at the first token of a document, then 1, 2 ...; what tells them apart.
    """
    starts = (position_1T[0] == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], position_1T.shape[1]]
    lengths = tuple(end - start for start, end in zip(starts, ends, strict=True))
    token = _LENGTHS.set(lengths)
    try:
        return model.base_model(
            input_ids=ids_1T, position_ids=position_1T, use_cache=False
        ).last_hidden_state
    finally:
        _LENGTHS.reset(token)


@torch.no_grad()
def packing_error(model: Any, documents: Sequence[Sequence[int]]) -> float:
    """How much packing changes the hidden states of documents, relative to their size.

    0 up to rounding where each document sees itself only. Convolutions and recurrent layers
    carry on over the border of two documents, and so does attention that ignores positions.

    Args:
        documents: Token ids of at least two documents, a dozen tokens each.
    """
    training = model.training
    model.eval()
    ids = [torch.tensor(document, device=model.device) for document in documents]
    positions = [torch.arange(len(document), device=model.device) for document in documents]
    packed_TH = packed_states(model, torch.cat(ids)[None], torch.cat(positions)[None])[0]
    alone_TH = torch.cat(
        [model.base_model(input_ids=one[None], use_cache=False).last_hidden_state[0] for one in ids]
    )
    model.train(training)
    difference = (packed_TH.float() - alone_TH.float()).abs().max()
    return (difference / alone_TH.float().abs().max()).item()


def _mask(*args: Any, **kwargs: Any) -> Tensor | _Documents | None:
    """transformers' mask, or one for each document while `packed_states` runs."""
    lengths = _LENGTHS.get()
    if lengths is None:
        return sdpa_mask(*args, **kwargs)
    masks, start = [], 0
    for length in lengths:
        block = {"q_length": length, "kv_length": length, "q_offset": start, "kv_offset": start}
        mask_11LL = sdpa_mask(*args, **{**kwargs, **block, "allow_is_causal_skip": False})
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=mask_11LL.device).tril()
        masks.append(None if torch.equal(mask_11LL[0, 0], causal_LL) else mask_11LL)
        start += length
    return _Documents(lengths, tuple(masks))


def _attention(
    module: Any,
    query_1ATD: Tensor,
    key_1ATD: Tensor,
    value_1ATD: Tensor,
    attention_mask: Tensor | _Documents | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's own attention, once for each document of a packed row; [1, T, A, D]."""
    if not isinstance(attention_mask, _Documents):
        return sdpa_attention_forward(
            module, query_1ATD, key_1ATD, value_1ATD, attention_mask, **kwargs
        )
    parts = (part.split(attention_mask.lengths, 2) for part in (query_1ATD, key_1ATD, value_1ATD))
    found = [
        sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
        for query, key, value, mask in zip(*parts, attention_mask.masks, strict=True)
    ]
    return torch.cat(found, 1), None


AttentionInterface.register(BY_DOCUMENT, _attention)
AttentionMaskInterface.register(BY_DOCUMENT, _mask)
