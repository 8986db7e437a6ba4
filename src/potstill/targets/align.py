"""Whether two models speak of the same tokens, and the tokens they share.

Models of one family share a tokenizer but may pad their output layers to different widths
(Qwen2.5: 151,936 and 152,064 rows for 151,665 tokens). The rows beyond the tokenizer mean
nothing; they are cut off before the softmax, so that no probability is spent on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import VocabMismatch


def check_same_vocabulary(teacher: str, student: str) -> None:
    """Compares two vocabulary fingerprints.

    Raises:
        VocabMismatch: If they differ. Widths are not compared: equal widths can hold
            different tokens, and different widths the same.
    """
    if teacher != student:
        raise VocabMismatch(
            f"teacher (vocabulary {teacher[:12]}) and student (vocabulary {student[:12]}) use "
            f"different tokenizers, so probabilities cannot be passed on; learn from the "
            f"teacher's text (loss.kind: sft) or take both from one model family"
        )


def shared_logits(logits_NV: Tensor, num_shared: int) -> tuple[Tensor, Tensor]:
    """Logits of the tokenizer's own ids, and the probability mass of the rows cut off.

    Args:
        logits_NV: V may exceed `num_shared` by padding rows.
        num_shared: Number of tokens in the tokenizer both models share.

    Returns:
        [N, num_shared] logits, and the dropped mass [N] in [0, 1], float32.

    Raises:
        VocabMismatch: If the head is narrower than the tokenizer.
    """
    width = logits_NV.shape[-1]
    if width < num_shared:
        raise VocabMismatch(
            f"the model has logits for {width:,} tokens but its tokenizer has {num_shared:,}; "
            f"the folder mixes two models, or tokens were added without resizing the head"
        )
    if width == num_shared:
        return logits_NV, logits_NV.new_zeros(logits_NV.shape[0], dtype=torch.float32)
    logits_NV = logits_NV.float()
    head_N = logits_NV[:, :num_shared].logsumexp(-1)
    tail_N = logits_NV[:, num_shared:].logsumexp(-1)
    return logits_NV[:, :num_shared], torch.sigmoid(tail_N - head_N)
