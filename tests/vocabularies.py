"""Tokenizers beside the tiny one: the same pieces with other numbers, and other kinds."""

from __future__ import annotations

import json
import random
from typing import Any

from tiny import CHATML, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers


def renumbered_tokenizer(seed: int = 0) -> Any:
    """The tiny tokenizer's 421 pieces under other ids, and a token of its own, `<|mine|>`.

    Its template writes a line break more than the tiny one's after each turn.
    """
    tree = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    numbers = list(range(len(vocabulary)))
    random.Random(seed).shuffle(numbers)
    tree["model"]["vocab"] = {piece: numbers[id_] for piece, id_ in vocabulary.items()}
    for added in tree["added_tokens"]:
        added["id"] = numbers[added["id"]]
    tree["added_tokens"].sort(key=lambda added: added["id"])
    tokenizer = _wrapped(Tokenizer.from_str(json.dumps(tree)))
    tokenizer.add_tokens([AddedToken("<|mine|>", special=True)])
    tokenizer.chat_template = CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>' + '\n\n'")
    return tokenizer


def sentencepiece_tokenizer() -> Any:
    """`sentencepiece` with the tiny tokenizer's template and control tokens."""
    backend = sentencepiece()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    return _wrapped(backend)


def strange_tokenizer() -> Any:
    """A byte-level tokenizer of four pieces, of which another has one."""
    backend = Tokenizer(models.BPE({"t": 0, "x" * 9: 1, "x" * 8: 2, "x" * 7: 3}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    return _wrapped(backend)


def sentencepiece() -> Tokenizer:
    """As Llama 2's and Gemma's: ▁ for a space, bytes of last resort, control tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "t", "h", "e", "\u2581t", "\u2581th", "\u2581the"]
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def _wrapped(backend: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHATML
    return tokenizer
