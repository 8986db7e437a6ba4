"""A Hugging Face folder of the student: as it is, in another number format, or its adapter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch

from potstill.errors import ExportError
from potstill.export.manifest import write_manifest
from potstill.models.weights import load_weights, quiet
from potstill.rundir import adapter_of, whole_folder, write_text

FORMATS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
ADAPTER = "adapter"
QUANTS = (*FORMATS, ADAPTER)
AS_TRAINED = "as trained"
"""Number format of a copy, which needs no other proof."""

_IN_HUB_CACHE = re.compile(r".*/models--(.+?)--(.+?)/snapshots/([0-9a-f]+)/?")


def export_huggingface(model_dir: Path, out_dir: Path, quant: str | None = None) -> Path:
    """Copies the model folder, or saves it as bf16, f16 or f32; returns the new folder.

    Args:
        quant: `adapter` writes the LoRA updates that training merged into the model instead.

    Raises:
        ExportError: If the number format is not known or cannot hold the weights, or the
            model was trained without an adapter.
    """
    refuse(model_dir, quant)
    with whole_folder(out_dir) as folder:
        notes: tuple[str, ...] = ()
        if quant is None:
            shutil.copytree(model_dir, folder, dirs_exist_ok=True)
            notes = ("a copy of the model folder, byte for byte",)
        elif quant == ADAPTER:
            notes = _copy_adapter(model_dir, folder)
        else:
            model, tokenizer = load_weights(model_dir, dtype="float32")
            model.to(FORMATS[quant])
            if not all(p.isfinite().all() for p in model.parameters()):
                raise ExportError(f"some weights are beyond {quant}; export huggingface:bf16")
            with quiet():
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        write_manifest(
            folder,
            format="huggingface",
            quant=quant or AS_TRAINED,
            main="adapter_model.safetensors" if quant == ADAPTER else "model.safetensors",
            source=model_dir,
            notes=notes,
        )
    return out_dir


def refuse(model_dir: Path, quant: str | None) -> None:
    """Refuses what `export_huggingface` would refuse before it reads weights.

    Raises:
        ExportError: As `export_huggingface`.
    """
    if quant is not None and quant not in QUANTS:
        raise ExportError(
            f"huggingface is written as {', '.join(FORMATS)} or {ADAPTER}, got {quant!r}"
        )
    if quant == ADAPTER and not adapter_of(model_dir).is_dir():
        raise ExportError(
            f"{model_dir} has no LoRA adapter beside it: it was trained without train.adapter: "
            f"lora, or by a version that kept none; export huggingface, the whole model"
        )


def _copy_adapter(model_dir: Path, folder: Path) -> tuple[str, ...]:
    """Copies adapter and tokenizer; a base in the hub's cache is named as the hub names it."""
    shutil.copytree(adapter_of(model_dir), folder, dirs_exist_ok=True)
    for pattern in ("tokenizer*", "*.jinja", "special_tokens_map.json"):
        for path in model_dir.glob(pattern):
            shutil.copy2(path, folder / path.name)
    place = folder / "adapter_config.json"
    tree = json.loads(place.read_text(encoding="utf-8"))
    base = str(tree["base_model_name_or_path"])
    if found := _IN_HUB_CACHE.fullmatch(base):
        base = f"{found[1]}/{found[2]}"
        tree |= {"base_model_name_or_path": base, "revision": found[3]}
        write_text(place, json.dumps(tree, indent=2, sort_keys=True) + "\n")
        return (f"LoRA updates of {base} at revision {found[3]}",)
    return (f"LoRA updates of the model in {base}; name its place in adapter_config.json",)
