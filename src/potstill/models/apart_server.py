"""The process around a folder's engine: python -m potstill.models.apart_server FOLDER THREADS

It writes its setting as one line of JSON to standard output once the weights are read, then reads
requests from standard input, one a line, and writes a line for each token and one for the answer.
It ends when its standard input does: so it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.models.catalog import find_model
from potstill.models.embedded_model import EmbeddedModel
from potstill.types import Record, Sampling


def main(arguments: list[str]) -> None:
    """Answers for FOLDER on THREADS threads of the processor."""
    folder, threads = arguments
    # Engines write to standard output too; only lines of ours may go there.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**facts: Any) -> None:
        told.write(json.dumps(facts) + "\n")
        told.flush()

    try:
        model = _opened(folder, int(threads))
    except PotstillError as error:
        tell(error=str(error))
        os._exit(1)
    tell(setting=model.setting)
    loop = asyncio.new_event_loop()
    for line in sys.stdin:
        asked = json.loads(line)
        record = Record.model_validate(asked["record"])
        sampling = Sampling.model_validate(asked["sampling"])
        answer = model.stream(record, sampling, lambda: tell(token=1))
        try:
            tell(response=loop.run_until_complete(answer).model_dump(mode="json"))
        except PotstillError as error:
            tell(error=str(error))
    os._exit(0)  # an engine's own threads would keep the process


def _opened(folder: str, threads: int) -> Any:
    ref = find_model(folder)
    if ref.kind != "huggingface":
        return EmbeddedModel(ref, threads=threads)
    import torch

    from potstill.models.local import LocalModel

    torch.set_num_threads(threads)
    return LocalModel(ref, dtype=_stored_dtype(Path(folder)), batch_size=1, device="cpu")


def _stored_dtype(folder: Path) -> str:
    """The number format that the folder's weights are in; float32 where it does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = config.get("dtype") or config.get("torch_dtype")
    return told if told in ("bfloat16", "float16") else "float32"


if __name__ == "__main__":
    main(sys.argv[1:])
