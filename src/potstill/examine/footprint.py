"""What a model occupies, read from its files: the cache that each token of a conversation costs.

Nothing is loaded but a folder's config or a GGUF file's header.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.models.catalog import EMBEDDED
from potstill.types import Estimate

BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2}
_CACHE_BYTES = 2
"""llama.cpp's cache holds 16-bit floats unless it is told otherwise."""


def cache_bytes_per_token(path: Path, *, dtype: str = "float16") -> Estimate:
    """Bytes of keys and values that one token adds to the cache, over all layers.

        2 * sum over layers of (key-value heads * head size) * bytes of a number

    Layers that see a window only keep no more than the window; this is what a token costs until
    then.

    Args:
        path: A Hugging Face folder, or a GGUF file.
        dtype: Number format of a folder's cache; a GGUF file's is 16 bits.

    Raises:
        DataError: If the files do not say what is needed.
    """
    if path.suffix == ".gguf":
        numbers, window = _of_gguf(path)
        size, what = _CACHE_BYTES, "float16"
    else:
        numbers, window = _of_config(path)
        size, what = BYTES_OF[dtype], dtype
    note = f"cache in {what}"
    if window:
        note += f"; some layers keep the last {window:,} tokens only"
    return Estimate(
        value=float(numbers * size),
        n=1,
        unit="bytes",
        method="none",
        signature="2 x layers x key-value heads x head size x bytes of a number, from the config",
        higher_is_better=False,
        note=note,
    )


def _of_config(folder: Path) -> tuple[int, int | None]:
    """Numbers that a token adds, and the window of layers that have one."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the size of the cache cannot be read from it: {error}") from None
    config = {**config, **(config.get("text_config") or {})}
    try:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        if config.get("kv_lora_rank"):
            # DeepSeek's: what transformers keeps are the keys and values made of the latents.
            key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
            return layers * heads * (key + config["v_head_dim"]), _window(config)
        kv_heads = config.get("num_key_value_heads") or heads
        head_size = config.get("head_dim") or config["hidden_size"] // heads
    except KeyError as error:
        raise DataError(
            f"{file} has no {error.args[0]}, so the size of its cache is not known"
        ) from None
    return 2 * layers * kv_heads * head_size, _window(config)


def _window(config: dict[str, Any]) -> int | None:
    if config.get("use_sliding_window") is False:
        return None
    found = config.get("sliding_window")
    return int(found) if found else None


def _of_gguf(file: Path) -> tuple[int, int | None]:
    fields = _header(file)
    kind = fields("general.architecture")

    def number(name: str) -> Any:
        return fields(f"{kind}.{name}")

    layers, heads = number("block_count"), number("attention.head_count")
    if layers is None or heads is None:
        raise DataError(f"{file}: its header tells no layers and heads")
    most_heads = max(heads) if isinstance(heads, list) else heads
    kv_heads = number("attention.head_count_kv") or heads
    size = (number("embedding_length") or 0) // most_heads
    key = number("attention.key_length") or size
    value = number("attention.value_length") or size
    of_all = sum(kv_heads) if isinstance(kv_heads, list) else layers * kv_heads
    return of_all * (key + value), number("attention.sliding_window")


def longest_context(path: Path) -> int | None:
    """Most tokens that a model's files say it reads; None where they do not say."""
    if path.suffix == ".gguf":
        fields = _header(path)
        return fields(f"{fields('general.architecture')}.context_length")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if (path / EMBEDDED["onnx"]).is_file():
            return int(_json(path / EMBEDDED["onnx"])["model"]["context_length"])
        if (path / EMBEDDED["ctranslate2"]).is_file():
            return int(_json(path / "generation_config.json")["max_length"])
        config = _json(path / "config.json")
        return int({**config, **(config.get("text_config") or {})}["max_position_embeddings"])
    return None


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def tensor_bytes(file: Path) -> int:
    """Bytes of the weights inside a GGUF file: what llama.cpp maps or reads into memory."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)


def _header(file: Path) -> Any:
    """Reads fields of a GGUF file by name; None where there is none."""
    from gguf import GGUFReader

    reader = GGUFReader(file)

    def field(name: str) -> Any:
        found = reader.fields.get(name)
        return None if found is None else found.contents()

    return field
