"""Runs a Hugging Face folder, whole or an adapter, as an `Engine` of `parity`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from potstill.data.render import end_token_ids
from potstill.export.engine import Continuation, Step
from potstill.models.weights import load_weights


@torch.inference_mode()
def run_folder(
    artefact: Path, prompts: Sequence[tuple[str, Sequence[int]]], num_tokens: int, num_top: int
) -> list[Continuation]:
    """Greedy answers of the folder that holds `artefact`, its weights widened to float32.

    So what is compared is what the number format made of the weights, not of the arithmetic.
    """
    model, tokenizer = load_weights(artefact.parent, dtype="float32")
    ends = set(end_token_ids(tokenizer, model.generation_config))
    found = []
    for text, ids in prompts:
        out = model(torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
        steps: list[Step] = []
        while True:
            top = out.logits[0, -1].float().log_softmax(-1).topk(num_top)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            steps.append(Step(int(top.indices[0]), dict(pairs)))
            if steps[-1].token in ends or len(steps) == num_tokens:
                break
            last = torch.tensor([[steps[-1].token]])
            out = model(last, past_key_values=out.past_key_values, use_cache=True)
        own_ids = tokenizer(text, add_special_tokens=False).input_ids
        found.append(Continuation(tuple(own_ids), tuple(steps)))
    return found
