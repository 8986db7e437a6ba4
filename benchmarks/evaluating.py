"""What evaluating takes: python benchmarks/evaluating.py --data FOLDER

SmolLM2-135M answers 500 turns of real dialogues, each on its gold history; then another run asks
for the same.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import tempfile
import time
from pathlib import Path

import torch
from datasets import put

from potstill.data.load import load_dataset
from potstill.examine.answering import collect_samples
from potstill.examine.reuse import AnswerStore
from potstill.models.local import LocalModel
from potstill.tasks.conversation import conversation
from potstill.types import Record, Sample, Sampling

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "evaluating.md")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    records = dialogues(options.data, options.turns)
    model = LocalModel(options.model, batch_size=options.batch)
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        store = AnswerStore(Path(folder) / "answers.sqlite", max_bytes=500_000_000)

        def timed(name: str) -> tuple[float, list[Sample]]:
            started = time.perf_counter()
            out = Path(folder) / f"{name}.jsonl"
            asked = {"sampling": sampling, "out_samples": out, "store": store}
            samples = asyncio.run(collect_samples(model, records, conversation, **asked))
            return time.perf_counter() - started, samples

        first, samples = timed("first")
        second, again = timed("second")
        size = (Path(folder) / "answers.sqlite").stat().st_size
        store.close()
        assert [s.text for s in again] == [s.text for s in samples]
    num_new = sum(sample.num_new_tokens for sample in samples)
    num_read = sum(len(model.tokenizer(text_of(sample))["input_ids"]) for sample in samples)
    setting = model.setting
    asyncio.run(model.close())
    put(
        options.out,
        "\n".join(
            [
                "# What does evaluating take?",
                "",
                f"{datetime.date.today()}; `python benchmarks/evaluating.py --data FOLDER`, "
                f"{setting['threads']} CPU threads, {setting['dtype']}, batches of",
                f"{options.batch}, one run, the machine to itself.",
                "",
                f"| {len(samples)} turns of real dialogues, {options.model} | seconds |",
                "|---|---|",
                f"| answered ({num_read:,} prompt tokens, {num_new:,} new ones, at most "
                f"{options.max_new_tokens} each) | {first:.0f} |",
                f"| asked again by another run: all reused, {size / 1e6:.1f} MB | {second:.1f} |",
            ]
        )
        + "\n",
    )


def dialogues(data: Path, num_turns: int) -> list[Record]:
    """Whole dialogues of the two sets in turn, until there are so many turns to ask."""
    sets = [
        load_dataset(data / "conversation" / name / "test.jsonl", task="conversation")
        for name in ("sgd", "taskmaster4")
    ]
    chosen, so_far = [], 0
    for pair in zip(*sets, strict=False):
        for record in pair:
            if so_far < num_turns:
                chosen.append(record)
                so_far += len(conversation.turns(record))
    return chosen


def text_of(sample: Sample) -> str:
    return "\n".join(message.content for message in sample.prompt)


if __name__ == "__main__":
    main()
