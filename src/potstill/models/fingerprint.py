"""What makes two requests the same: the hash that resuming rests on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.protocols import ChatModel
from potstill.types import Message, Record, Sampling

_VERSION = 1
_BLOCK = 65_536
_NUM_BLOCKS = 64
_COUNTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "model.bin", "*.onnx", "*.onnx.data")
"""Weights, configs, the chat template, and a tokenizer that is not JSON."""

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=True)


def request_fingerprint(identity: str, messages: Sequence[Message], sampling: Sampling) -> str:
    """Hash of model, prompt and sampling; never of keys, time-outs or concurrency.

    Args:
        identity: What tells the model from others: origin and name of an endpoint, or the
            hash of the weights.
    """
    parts = {
        "version": _VERSION,
        "model": identity,
        "messages": [[message.role, message.content] for message in messages],
        "sampling": sampling.model_dump(mode="json"),
    }
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()[:32]


def identity_of(model: ChatModel) -> str:
    """The model's own `identity` where it has one, else its name."""
    return str(getattr(model, "identity", None) or model.name)


def sent_by(model: ChatModel) -> Callable[[Record], Sequence[Message]]:
    """What a request's fingerprint is made of: the record's messages as the model sends them.

    A model that sends others (`PrivateModel`) says which with `sent_messages`.
    """
    return getattr(model, "sent_messages", None) or (lambda record: record.messages)


def weights_identity(path: Path) -> str:
    """Hash that tells two sets of weights apart without reading all of them.

    A file counts by its name, its size and 64 blocks of 64 KiB spread over it; so training
    that moves every matrix is seen, and a model of 100 GB takes a second.
    """
    files = [file for ending in _COUNTED for file in sorted(path.glob(ending))]
    files = [path] if path.is_file() else files
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        step = max(_BLOCK, size // _NUM_BLOCKS)
        with file.open("rb") as handle:
            for start in range(0, size, step):
                handle.seek(start)
                digest.update(handle.read(_BLOCK))
    return digest.hexdigest()[:32]
