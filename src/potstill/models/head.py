"""From hidden states to logits: the head, and what an architecture does to its values.

Shape letters of this file:
    T  tokens        N  positions        H  hidden size        V  vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.models.longrope import hidden_states


def logits_of(model: Any, hidden_NH: Tensor) -> Tensor:
    """Next-token logits of hidden states: [N, H] to [N, V], float32."""
    logits_NV: Tensor = model.get_output_embeddings()(hidden_NH).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits_NV = logits_NV * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


def check_logits(model: Any, name: str) -> None:
    """Compares backbone and head with the whole model, on a few tokens.

    Raises:
        DataError: If this architecture changes its logits after the head in a way that is not
            known here.
    """
    ids_1T = torch.tensor([[1, 2, 3]], device=model.device)
    whole_NV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    ours_NV = logits_of(model, hidden_states(model, ids_1T, ids_1T > 0)[0])
    largest = float((whole_NV - ours_NV).abs().max())
    if largest > 0.01 * max(1.0, float(whole_NV.abs().max())):
        raise DataError(
            f"{name} ({type(model).__name__}) changes its logits after the head "
            f"(by {largest:.3g}), so its probabilities cannot be read; use loss.kind: sft"
        )
