"""A Hugging Face folder of the student, as it is or in another number format."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from potstill.errors import ExportError
from potstill.export.manifest import write_manifest
from potstill.models.weights import load_weights, quiet
from potstill.rundir import whole_folder

FORMATS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def export_huggingface(model_dir: Path, out_dir: Path, quant: str | None = None) -> Path:
    """Copies the model folder, or saves it as bf16, f16 or f32; returns the new folder.

    Raises:
        ExportError: If the number format is not known or cannot hold the weights.
    """
    if quant is not None and quant not in FORMATS:
        raise ExportError(f"huggingface is written as {', '.join(FORMATS)}, got {quant!r}")
    with whole_folder(out_dir) as folder:
        if quant is None:
            shutil.copytree(model_dir, folder, dirs_exist_ok=True)
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
            quant=quant or "as trained",
            main="model.safetensors",
            source=model_dir,
        )
    return out_dir
