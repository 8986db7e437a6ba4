"""A Hugging Face tokenizer as llama.cpp's: tokens, types, merges and the way text is split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from potstill.errors import ExportError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of the GGUF format. Control tokens are never made from a user's text."""

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    _MODERN_SPLIT % r"\p{N}{1,3}": "llama-bpe",
    _MODERN_SPLIT % r"\p{N}": "qwen2",
    GPT2_SPLIT: "gpt-2",
}
"""Regular expressions that cut text into words -> what llama.cpp calls them."""


class GgufTokenizer(NamedTuple):
    """The parts of a byte-level BPE tokenizer that a GGUF file holds."""

    pre: str
    """How text is split before merging."""

    tokens: list[str]
    types: list[int]
    merges: list[str]


def read_tokenizer(tokenizer: Any, num_rows: int) -> GgufTokenizer:
    """Takes a fast tokenizer apart.

    Args:
        num_rows: Rows of the model's embedding; ids beyond the tokenizer become unused tokens.

    Raises:
        ExportError: If it is not byte-level BPE, or splits text in an unknown way. A guess
            would give other tokens than in training, and so another model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tree = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = tree["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ExportError(
            f"GGUF export knows byte-level BPE tokenizers, and this one is "
            f"{model.get('type', type(tokenizer).__name__)}; convert the model folder with "
            f"llama.cpp's convert_hf_to_gguf.py instead"
        )
    pre = _pre_tokenizer(tree)
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= num_rows:
        raise ExportError(
            f"the tokenizer has an id {max(by_id):,} but the model only {num_rows:,} rows; "
            f"the folder mixes two models"
        )
    added = {item["id"]: item for item in tree["added_tokens"]}
    tokens, types = [], []
    for index in range(num_rows):
        if index in added:
            tokens.append(added[index]["content"])
            types.append(CONTROL if added[index]["special"] else USER_DEFINED)
        elif index in by_id:
            tokens.append(by_id[index])
            types.append(NORMAL)
        else:
            tokens.append(f"[PAD{index}]")
            types.append(UNUSED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return GgufTokenizer(pre, tokens, types, merges)


def _pre_tokenizer(tree: dict[str, Any]) -> str:
    """llama.cpp's name of the splitting rule, read off the rule itself.

    The rule and not the model's name decides: the same family ships with different rules
    (a SmolLM2 read back from GGUF no longer splits digits, and is exported as it is).
    """
    normalizer = tree.get("normalizer")
    # llama.cpp does no Unicode normalisation; NFC changes hardly any text and is let pass,
    # as llama.cpp's own converter does. Tokens are compared prompt by prompt afterwards.
    known = normalizer is None or normalizer["type"] == "NFC"
    steps = tree.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    name = _name_of(steps) if known else None
    if name is None:
        shown = json.dumps([normalizer, *steps], ensure_ascii=False)[:300]
        raise ExportError(
            f"this tokenizer splits text in a way GGUF export does not know: {shown}; convert "
            f"the model folder with llama.cpp's convert_hf_to_gguf.py instead"
        )
    return name


def _name_of(steps: Sequence[dict[str, Any]]) -> str | None:
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    splits_itself = last.get("use_regex", True)
    if not before:
        return "gpt-2" if splits_itself else None
    if len(before) > 1:
        return None
    first = before[0]
    if first.get("type") == "Digits" and first.get("individual_digits") and splits_itself:
        return "smollm"
    if first.get("type") == "Split" and not splits_itself and first.get("behavior") == "Isolated":
        return SPLITS.get(first["pattern"].get("Regex", ""))
    return None
