"""What does healing win back in 4 bits? python benchmarks/heal.py --model FOLDER --data FOLDER

The model answers questions of six public datasets itself, and heals on its own answers: a fifth
of them is for the verdict. The file is compared with the model on Potstill's own 32 prompts, which
are none of the questions, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import time
from pathlib import Path

import torch

from potstill.data.load import load_dataset
from potstill.errors import ExportError
from potstill.models.local import LocalModel
from potstill.pipeline.artefacts import make_artefact, own_prompts
from potstill.pipeline.heal import Lessons, lessons_of_file, make_healed
from potstill.types import Message, Record, Sampling

SETS = (
    *("qa/nq_open", "conversation/self_instruct_seed", "qa/commonsenseqa"),
    *("math/gsm8k", "qa/webquestions", "qa/arc"),
)
OPEN = {"mean_kl_nats": 100.0}
"""A limit that anything keeps: the figures are wanted, and not the verdict."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("heal"))
    parser.add_argument("--quant", default="gguf:q4_0")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    rows = options.out / "rows.jsonl"
    if not rows.exists():
        started = time.monotonic()
        options.out.mkdir(parents=True, exist_ok=True)
        write_rows(options.model, options.data, rows, options.rows)
        print(f"{options.rows} answers in {time.monotonic() - started:.0f} s", flush=True)
    place, prompts = options.out / "file", own_prompts()
    plain = make_artefact(options.model, place, options.quant, prompts, limits=OPEN)
    print(f"not healed: {plain.text}", flush=True)
    shutil.rmtree(place)
    lessons = lessons_of_file(rows, options.model)
    train = lessons.train.model_copy(update={"batch_size": options.batch_size})
    heal(options.model, place, options.quant, lessons._replace(train=train))


def heal(model: Path, place: Path, quant: str, lessons: Lessons) -> None:
    """Makes the file; where the gate refuses it, it says so and makes it without limit."""
    more = {"report": lambda *told: print(*told, flush=True)}
    try:
        made = make_healed(model, place, quant, own_prompts(), lessons, **more)
    except ExportError as error:
        print(f"refused: {error}", flush=True)
        made = make_healed(model, place, quant, own_prompts(), lessons, limits=OPEN, **more)
    print(f"healed: {made.text}")
    manifest = json.loads((place / "manifest.json").read_text())
    print(json.dumps({name: manifest[name] for name in ("healing", "parity")}, indent=1))


def write_rows(folder: Path, data: Path, out: Path, number: int) -> None:
    """Asks the model as it stands, at temperature 1, at most 64 tokens."""
    asked: list[Record] = []
    for name in SETS:
        records = load_dataset(data / name / "train.jsonl")
        random.Random(0).shuffle(records)
        asked += records[: number // len(SETS) + 1]
    model = LocalModel(folder, batch_size=60)
    sampling = Sampling(temperature=1.0, max_new_tokens=64, seed=0)

    async def answers() -> list[str]:
        found = await asyncio.gather(*(model.respond(record, sampling) for record in asked))
        return [response.text for response in found]

    with out.open("w", encoding="utf-8") as file:
        for record, text in list(zip(asked, asyncio.run(answers()), strict=True))[:number]:
            turns = [*record.messages, Message(role="assistant", content=text)]
            row = {"id": record.id, "messages": [turn.model_dump() for turn in turns]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
