"""ONNX Runtime GenAI: a folder for its engine and for Foundry Local.

The graph is made by the model builder that comes with onnxruntime-genai, in a process of its
own. The builder takes every linear layer as wide as the vocabulary for the head; a model that
has two of them would get wrong logits without a word, and is refused before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from potstill.errors import ExportError
from potstill.export.embedded import require, source_tokenizer
from potstill.export.foundry import inference_model
from potstill.export.manifest import write_manifest
from potstill.models.catalog import EMBEDDED
from potstill.rundir import whole_folder, write_text

QUANTS: dict[str, tuple[str, ...]] = {
    "int4": (
        *("algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"),
        "block_size=32",
    ),
    "fp32": (),
}
"""Number format -> what the builder is told besides. The head and the layers that stand rounding
worst keep 8 bits: SmolLM2-135M is then 0.17 nats from itself, and 0.30 with 4 bits everywhere."""


def export_onnx(model_dir: Path, out_dir: Path, *, quant: str | None = None) -> Path:
    """Writes the builder's folder and inference_model.json; returns `model.onnx`.

    The folder appears whole or not at all. It has not been compared with its source yet:
    `parity.check_artefact` does that, and must pass before anybody gets the folder.

    Args:
        quant: int4 (the default) or fp32.

    Raises:
        ExportError, MissingExtra: As `refuse`; and where the builder refuses the model.
    """
    quant = quant or "int4"
    refuse(model_dir, quant)
    tokenizer, end_ids, _ = source_tokenizer(model_dir)
    with whole_folder(out_dir) as folder:
        _build(model_dir, folder, quant)
        told = json.loads((folder / EMBEDDED["onnx"]).read_text(encoding="utf-8"))
        told["model"]["eos_token_id"] = end_ids
        write_text(folder / EMBEDDED["onnx"], json.dumps(told, indent=1) + "\n")
        name = f"{_name(model_dir)}-{quant}"
        facts = json.dumps(inference_model(name, tokenizer), indent=1, ensure_ascii=False)
        write_text(folder / "inference_model.json", facts + "\n")
        write_manifest(folder, format="onnx", quant=quant, main="model.onnx", source=model_dir)
    return out_dir / "model.onnx"


def refuse(model_dir: Path, quant: str | None = None) -> None:
    """Finds in seconds what an export would fail at, or what would make it wrong.

    Raises:
        ExportError: If there is no such number format, or a layer besides the head is as wide
            as the vocabulary.
        MissingExtra: If the builder or its engine is not installed.
    """
    if quant is not None and quant not in QUANTS:
        raise ExportError(f"ONNX is written as {', '.join(QUANTS)}, got {quant!r}")
    require("onnx")
    _refuse_second_head(model_dir)


def _refuse_second_head(model_dir: Path) -> None:
    config = AutoConfig.from_pretrained(model_dir)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    width = config.get_text_config().vocab_size
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) and module is not head
        if is_linear and module.out_features == width:
            raise ExportError(
                f"{model_dir}: {name} has {width:,} outputs, as many as the vocabulary has "
                f"tokens, and the ONNX builder would take it for the head; pad the vocabulary "
                f"(resize_token_embeddings) and train again, or export gguf"
            )


def _build(model_dir: Path, folder: Path, quant: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        command = [
            *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
            *("-i", str(model_dir), "-o", str(folder), "-c", cache, "-p", quant, "-e", "cpu"),
            *(["--extra_options", *QUANTS[quant]] if QUANTS[quant] else []),
        ]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(
            command,
            env={**os.environ, **offline},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    if done.returncode or not (folder / "model.onnx").is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise ExportError(
            f"the ONNX builder refuses {model_dir} (exit {done.returncode}): {said[-1].strip()}; "
            f"export gguf, or huggingface"
        )


def _name(model_dir: Path) -> str:
    """What Foundry Local lists it as: the folder's name, or the run's for its student."""
    folder = model_dir.resolve()
    return folder.parent.name if folder.name == "model" else folder.name
