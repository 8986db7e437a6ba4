"""What bytes a token stands for, in any of the usual tokenizers.

Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) writes each byte as a letter of its own;
SentencePiece (Llama 2, Gemma, Mistral) writes a space as ▁ and bytes without a piece as <0xNN>.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from potstill.errors import MissingExtra, VocabMismatch

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
_CONTROL = 3
"""Type of a control token in the GGUF format."""


def piece_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of each token id, from 0 on; None for control tokens and ids without a token.

    Args:
        tokenizer: Of transformers, or of the `tokenizers` package.

    Raises:
        VocabMismatch: If it is of a kind whose pieces cannot be told apart into bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    tree = json.loads(backend.to_str())
    to_bytes = _byte_level if _mentions(tree, "ByteLevel") else _sentencepiece
    if to_bytes is _sentencepiece and not _is_sentencepiece(tree):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise VocabMismatch(
            f"the tokenizer of {name} is neither byte-level BPE nor SentencePiece, so its pieces "
            f"cannot be compared with others; learn from text (loss.kind: sft)"
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {entry["id"]: entry for entry in tree.get("added_tokens", ())}
    pieces: list[bytes | None] = [None] * (1 + max(vocabulary.values(), default=-1))
    for text, id_ in vocabulary.items():
        if id_ not in added:
            pieces[id_] = to_bytes(text)
        elif not added[id_]["special"]:
            pieces[id_] = text.encode()  # added tokens are plain text in either kind
    return pieces


def gguf_piece_bytes(path: Path) -> list[bytes | None]:
    """As `piece_bytes`, of the tokenizer inside a GGUF file.

    Raises:
        MissingExtra: If the package that reads GGUF files is not installed.
        VocabMismatch: As `piece_bytes`.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise MissingExtra(
            'reading GGUF files needs an extra: pip install "potstill[export]"'
        ) from None
    fields = GGUFReader(path).fields
    kind = fields["tokenizer.ggml.model"].contents()
    to_bytes = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if to_bytes is None:
        raise VocabMismatch(f"{path.name}: tokens of the kind {kind!r} are not known as bytes")
    texts = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    return [
        None if type_ == _CONTROL else to_bytes(text)
        for text, type_ in zip(texts, types, strict=True)
    ]


def ids_by_bytes(tokenizer: Any, *, with_control: bool = False) -> dict[bytes, int]:
    """Bytes -> the token that a tokenizer uses for them.

    Of two tokens of the same bytes the ordinary piece is meant, not SentencePiece's byte of last
    resort; of two pieces the first.

    Args:
        with_control: Control tokens stand for their names, where no piece does.

    Raises:
        VocabMismatch: As `piece_bytes`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    found: dict[bytes, int] = {}
    last_resort: dict[bytes, int] = {}
    for id_, piece in enumerate(piece_bytes(tokenizer)):
        name = backend.id_to_token(id_) or ""
        if piece is None:
            if with_control and name:
                last_resort.setdefault(name.encode(), id_)
        else:
            (last_resort if _BYTE.fullmatch(name) else found).setdefault(piece, id_)
    return {**last_resort, **found}


def _byte_level(piece: str) -> bytes | None:
    try:
        return bytes(_LETTERS[letter] for letter in piece)
    except KeyError:
        return None  # a control token that was not declared as one


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _letters() -> dict[str, int]:
    """Letter to byte: printable bytes stand for themselves, the others for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_LETTERS = _letters()


def _mentions(tree: dict[str, Any], kind: str) -> bool:
    """Whether the decoder is of a kind, or has a part that is."""
    decoder = tree.get("decoder") or {}
    return kind in (decoder.get("type"), *(part["type"] for part in decoder.get("decoders", ())))


def _is_sentencepiece(tree: dict[str, Any]) -> bool:
    return _mentions(tree, "Metaspace") or _mentions(tree, "ByteFallback")
