"""Models that turn positions at another speed once a text is long: Phi-3.5, Phi-4-mini.

LongRoPE has two sets of rotation factors. A forward pass takes the long set for all its rows
as soon as one position lies beyond the original length. Keys that were cached before are then
void, and a short row computed beside a long one gets factors that are not its own.

Shape letters of this file:
    B  rows        T  tokens        H  hidden size

Source:
    Ding et al. (2024), "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens",
    section 3. arXiv:2402.13753.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_switch(config: Any) -> int | None:
    """Most tokens a row may have to be computed with the short factors; None: one set only."""
    text_config = config.get_text_config()
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope["original_max_position_embeddings"]


def hidden_states(
    model: Any, ids_BT: Tensor, wanted_BT: Tensor, attention_BT: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, T, H]; short rows keep their own factors beside long ones.

    Args:
        ids_BT: Token ids; rows are padded on the right.
        wanted_BT: Bool. Where hidden states are wanted; the last place tells how long a row
            is. What comes back behind it has no meaning.
    """

    def run(rows_B: Tensor | slice, width: int) -> Tensor:
        return model.base_model(
            input_ids=ids_BT[rows_B, :width],
            attention_mask=None if attention_BT is None else attention_BT[rows_B, :width],
            use_cache=False,
        ).last_hidden_state

    num_rows, width = ids_BT.shape
    switch = rope_switch(model.config)
    if switch is None or width <= switch:
        return run(slice(None), width)
    places_T = torch.arange(1, width + 1, device=wanted_BT.device)
    is_short_B = (wanted_BT * places_T).amax(-1) <= switch
    if not is_short_B.any():
        return run(slice(None), width)
    short_BTH = run(is_short_B, switch)
    hidden_BTH = short_BTH.new_zeros((num_rows, width, short_BTH.shape[-1]))
    hidden_BTH[is_short_B, :switch] = short_BTH
    if not is_short_B.all():
        hidden_BTH[~is_short_B] = run(~is_short_B, width)
    return hidden_BTH
