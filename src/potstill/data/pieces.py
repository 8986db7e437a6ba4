"""The bytes that each token of a tokenizer stands for: how tokens of two models are compared."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def ids_by_bytes(tokenizer: Any) -> dict[bytes, int]:
    """Bytes -> the token that is exactly them; empty for a kind of tokenizer that is not known.

    Known are byte-level pieces (GPT-2, Llama 3, Qwen) and pieces with a mark for the space and
    bytes as a last resort (SentencePiece). A control token stands for its name. Of two tokens of
    the same bytes the ordinary piece is meant, not the byte of last resort.
    """
    kinds = _decoders(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    if not {"ByteLevel", "ByteFallback"} & kinds:
        return {}
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    found: dict[bytes, int] = {}
    last_resort: dict[bytes, int] = {}
    for piece, id_ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if piece in added:
            last_resort.setdefault(piece.encode(), id_)
        elif "ByteLevel" in kinds:
            if all(letter in _bytes_of_letters() for letter in piece):
                spelled = bytes(_bytes_of_letters()[letter] for letter in piece)
                found.setdefault(spelled, id_)
        elif match := _BYTE_PIECE.fullmatch(piece):
            last_resort.setdefault(bytes.fromhex(match.group(1)), id_)
        else:
            found.setdefault(piece.replace("\u2581", " ").encode(), id_)
    return {**last_resort, **found}


def _decoders(tree: Any) -> set[str]:
    """Kinds of all steps that turn pieces back into text."""
    if not isinstance(tree, dict):
        return set()
    inner = [_decoders(step) for step in tree.get("decoders", ())]
    return {str(tree.get("type"))}.union(*inner)


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with.

    Bytes that are printable in Latin-1 are written as themselves, the others in order as the
    letters from U+0100 on.

    Source:
        Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", section
        2.2; the letters are those of the vocabulary published with it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}
