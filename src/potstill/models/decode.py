"""Batched generation with a key-value cache: prompts in, token ids out.

Shape letters of this file:
    B  rows that are still being answered
    T  tokens so far, prompts padded on the left
    V  vocabulary
    K  probabilities kept of each token

Every row has its own temperature, random numbers, length and end, and a row that is
finished leaves the batch, so one long answer does not make the others wait or compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from potstill.models.logprobs import FLOOR, Capture
from potstill.models.longrope import rope_switch
from potstill.models.telling import Teller, before_stop
from potstill.types import Sampling

_NUCLEUS = 1024
"""Tokens sorted at first for nucleus sampling; the whole vocabulary where they are too few."""

_WORTH_SHARING = 256
"""Tokens of prompts that need not be computed, from which a pass for the common ones pays."""


class Position(NamedTuple):
    """What is kept of the probabilities that one token was drawn from."""

    ids_K: np.ndarray
    """int32, most probable first."""

    logprobs_K: np.ndarray
    """float16, nats."""

    tail: float
    dropped: float
    """Probability of the head's rows beyond the tokenizer; the others leave it out."""


@dataclass
class Row:
    """One prompt being answered."""

    prompt: Sequence[int]
    sampling: Sampling
    is_wanted: Callable[[], bool] = lambda: True
    """Asked before each token; an answer nobody waits for is dropped."""

    on_token: Callable[[], None] | None = None
    """Called after each token that is drawn, the end token too; by whoever decodes."""

    teller: Teller | None = None
    """Tells the text of the answer as it comes."""

    ids: list[int] = field(default_factory=list)
    """Token ids of the answer, without the end token."""

    end_id: int | None = None
    """The end token, where one ended the answer."""

    positions: list[Position] = field(default_factory=list)
    """One for each of `ids` and for the end token; none where nothing is captured."""

    num_new_tokens: int = 0
    """Tokens computed for the answer, the end token counted."""

    finish_reason: Literal["stop", "length"] | None = None
    text: str = ""


@torch.inference_mode()
def decode(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    end_ids: Collection[int],
    pad_id: int,
    context: int | None = None,
    capture: Capture | None = None,
) -> None:
    """Answers all rows together, filling in their ids, text and finish_reason.

    Each row draws from random numbers of its own seed, so its answer depends on the other
    rows only as far as rounding inside the matrix products does.

    Args:
        end_ids: Token ids that end an answer.
        context: Longest prompt and answer together; None is unlimited.
        capture: What is kept of the probabilities. The answers are the same with and without.
    """
    generators = {id(row): random.Random(row.sampling.seed) for row in rows}
    # A row that outgrows the short rope starts anew among the long ones, with an empty cache.
    for longest in dict.fromkeys([rope_switch(model.config), None]):
        alive = [row for row in rows if _goes_on(row, longest)]
        if alive:
            _decode_together(
                model, tokenizer, alive, generators, longest, end_ids, pad_id, context, capture
            )


def _goes_on(row: Row, longest: int | None) -> bool:
    fits = longest is None or len(row.prompt) + len(row.ids) <= longest
    return fits and row.finish_reason is None and row.is_wanted()


def _decode_together(
    model: Any,
    tokenizer: Any,
    alive: list[Row],
    generators: dict[int, random.Random],
    longest: int | None,
    end_ids: Collection[int],
    pad_id: int,
    context: int | None,
    capture: Capture | None,
) -> None:
    """Extends rows until each is finished, unwanted, or has more than `longest` tokens."""
    known = [[*row.prompt, *row.ids] for row in alive]
    cache, ids_BT, mask_BT, position_BT = _first_input(model, known, pad_id)
    while True:
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV = output.logits[:, -1].float()
        next_ids = _draw(logits_BV, alive, generators)
        if capture is not None:
            _keep(logits_BV, alive, capture, num_tokens=len(tokenizer))
        for row, token in zip(alive, next_ids, strict=True):
            _extend(row, token, tokenizer, end_ids, context)
        keep = [index for index, row in enumerate(alive) if _goes_on(row, longest)]
        if not keep:
            return
        ids_BT = torch.tensor([[next_ids[index]] for index in keep], device=mask_BT.device)
        position_BT = position_BT[:, -1:] + 1
        if len(keep) < len(alive):
            chosen = torch.tensor(keep, device=mask_BT.device)
            cache.batch_select_indices(chosen)
            mask_BT, position_BT = mask_BT[chosen], position_BT[chosen]
            alive = [alive[index] for index in keep]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(alive), 1))], dim=-1)


def _first_input(
    model: Any, known: Sequence[Sequence[int]], pad_id: int
) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    """Cache, token ids, attention mask [B, T] and positions to begin with, padded on the left.

    Where all rows begin alike, with instructions or examples, the cache holds that part, which
    is computed once; ids and positions are then those of the last places only.
    """
    device, width = model.device, max(map(len, known))
    ids_BT = torch.full((len(known), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(known), width), dtype=torch.long)
    for index, ids in enumerate(known):
        ids_BT[index, width - len(ids) :] = torch.tensor(ids)
        mask_BT[index, width - len(ids) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    position_BT = (mask_BT.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    shared = _common_start(known)
    if (len(known) - 1) * shared >= _WORTH_SHARING and _can_share(model, cache):
        start_1P = torch.tensor([known[0][:shared]], device=device)
        model(input_ids=start_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # A row that is shorter than the longest has places before its first token, and so many
        # fewer of the common ones in the cache: the last places hold the others once more.
        place_BP = position_BT[:, :shared]
        for layer in cache.layers:
            layer.keys = layer.keys[0][:, place_BP].movedim(0, 1)
            layer.values = layer.values[0][:, place_BP].movedim(0, 1)
        ids_BT, position_BT = ids_BT[:, shared:], position_BT[:, shared:]
    return cache, ids_BT, mask_BT, position_BT


def _common_start(known: Sequence[Sequence[int]]) -> int:
    """With how many tokens all rows begin alike, the last token of the longest left out."""
    first, last = min(known), max(known)
    pairs = enumerate(zip(first, last, strict=False))
    alike = next((place for place, (a, b) in pairs if a != b), min(len(first), len(last)))
    return min(alike, max(map(len, known)) - 1)


def _can_share(model: Any, cache: DynamicCache) -> bool:
    """Whether a cached token is its key and value in each layer, whatever comes after it."""
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    return bool(cache.layers) and plain and rope_switch(model.config) is None


def _extend(
    row: Row, token: int, tokenizer: Any, end_ids: Collection[int], context: int | None
) -> None:
    row.num_new_tokens += 1
    if row.on_token is not None:
        row.on_token()
    if token in end_ids:
        row.finish_reason, row.end_id = "stop", token
    else:
        row.ids.append(token)
        full = context is not None and len(row.prompt) + len(row.ids) >= context
        if full or row.num_new_tokens >= row.sampling.max_new_tokens:
            row.finish_reason = "length"
    if row.finish_reason or row.sampling.stop or row.teller is not None:
        text = tokenizer.decode(
            row.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        row.text, is_cut = before_stop(text, row.sampling.stop)
        if is_cut:
            row.finish_reason = "stop"
    if row.teller is not None:
        row.teller.add(row.text, is_whole=row.finish_reason is not None)


def _keep(logits_BV: Tensor, rows: Sequence[Row], capture: Capture, *, num_tokens: int) -> None:
    """Adds a position to every row: the largest of softmax(logits / temperature).

    Rows of the head beyond the tokenizer's tokens mean nothing and are cut off before the
    softmax, as they are where answers are scored (`targets.align`).
    """
    z_BV = logits_BV if capture.temperature == 1 else logits_BV / capture.temperature
    own_BV, beyond_BV = z_BV[:, :num_tokens], z_BV[:, num_tokens:]
    lse_B = own_BV.logsumexp(-1)
    top_BK = own_BV.topk(min(capture.k, own_BV.shape[-1]), dim=-1)
    logprobs_BK = (top_BK.values - lse_B[:, None]).clamp(FLOOR, 0.0)
    tail_B = (1.0 - logprobs_BK.exp().sum(-1)).clamp(0.0, 1.0).tolist()
    dropped_B = [0.0] * len(rows)
    if beyond_BV.shape[-1]:
        dropped_B = torch.sigmoid(beyond_BV.logsumexp(-1) - lse_B).tolist()
    ids_BK = top_BK.indices.to(torch.int32).cpu().numpy()
    kept_BK = logprobs_BK.half().cpu().numpy()
    for row, *position in zip(rows, ids_BK, kept_BK, tail_B, dropped_B, strict=True):
        row.positions.append(Position(*position))


def _draw(
    logits_BV: Tensor, rows: Sequence[Row], generators: dict[int, random.Random]
) -> list[int]:
    """The next token of every row: the largest logit at temperature 0, else a sample."""
    drawn: list[int] = logits_BV.argmax(-1).tolist()
    for index, row in enumerate(rows):
        sampling = row.sampling
        if sampling.temperature > 0:
            probs_V = torch.softmax(logits_BV[index].double() / sampling.temperature, dim=-1)
            drawn[index] = _sample(probs_V, sampling.top_p, generators[id(row)].random())
    return drawn


def _sample(probs_V: Tensor, top_p: float, uniform: float) -> int:
    """The token at which the running sum of probabilities passes `uniform`.

    With top_p below 1 only the fewest, most probable tokens that reach it take part.

    Source:
        Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration", section 3.1.
        arXiv:1904.09751.
    """
    if top_p >= 1:
        sums_V = probs_V.cumsum(-1)
        place = torch.searchsorted(sums_V, uniform * sums_V[-1], right=True)
        return int(place.clamp_max(len(probs_V) - 1))
    kept, ids = probs_V.topk(min(_NUCLEUS, len(probs_V)))
    if kept.sum() < top_p:
        kept, ids = probs_V.sort(descending=True)
    sums = kept.cumsum(-1)
    size = int((sums < top_p).sum()) + 1
    sums = sums[:size]
    place = torch.searchsorted(sums, uniform * sums[-1], right=True)
    return int(ids[place.clamp_max(len(sums) - 1)])
