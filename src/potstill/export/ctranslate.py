"""CTranslate2: a folder for its engine, which is fast on processors without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

from potstill.errors import ExportError
from potstill.export.embedded import require, source_tokenizer
from potstill.export.manifest import write_manifest
from potstill.models.catalog import EMBEDDED
from potstill.models.weights import quiet
from potstill.rundir import whole_folder, write_text

QUANTS = {"int8": "int8_float32", "float32": "float32"}
"""Ours -> CTranslate2's. Norms and biases stay in float32 in both."""


def refuse(model_dir: Path, quant: str | None = None) -> None:
    """Finds in seconds what an export would fail at; the converter itself refuses early.

    Raises:
        ExportError: If there is no such number format.
        MissingExtra: If CTranslate2 is not installed.
    """
    if quant is not None and quant not in QUANTS:
        raise ExportError(f"CTranslate2 is written as {', '.join(QUANTS)}, got {quant!r}")
    require("ctranslate2")


def export_ctranslate2(model_dir: Path, out_dir: Path, *, quant: str | None = None) -> Path:
    """Writes CTranslate2's folder, tokenizer, template and end tokens; returns `model.bin`.

    The folder appears whole or not at all. It has not been compared with its source yet:
    `parity.check_artefact` does that, and must pass before anybody gets the folder.

    Args:
        quant: int8 (the default) or float32.

    Raises:
        ExportError, MissingExtra: As `refuse`; and where the converter refuses the model.
    """
    quant = quant or "int8"
    refuse(model_dir, quant)
    from ctranslate2.converters import TransformersConverter

    tokenizer, end_ids, context = source_tokenizer(model_dir)
    with whole_folder(out_dir) as folder:
        try:
            with quiet():
                converter = TransformersConverter(str(model_dir))
                converter.convert(str(folder), quantization=QUANTS[quant], force=True)
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise ExportError(
                f"CTranslate2's converter refuses {model_dir}: {str(error).strip()}; export gguf, "
                f"or huggingface"
            ) from error
        with quiet():
            tokenizer.save_pretrained(folder)
        # The converter notes one end token, the tokenizer's, which need not be the turn's.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["eos_token"] = tokenizer.convert_ids_to_tokens(end_ids[0])
        config = {key: "" if value is None else value for key, value in config.items()}
        write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")
        told = {"eos_token_id": end_ids, "max_length": context}
        write_text(folder / "generation_config.json", json.dumps(told, indent=1) + "\n")
        main = EMBEDDED["ctranslate2"]
        write_manifest(folder, format="ctranslate2", quant=quant, main=main, source=model_dir)
    return out_dir / main
