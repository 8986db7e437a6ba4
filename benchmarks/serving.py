"""What leaves the house against the teacher at home: python benchmarks/serving.py RUN

RUN is the folder of a finished demo. Its teacher and its student are asked in the engine that the
teacher answered with (transformers) and, as GGUF files, in llama.cpp, by 1, 4 and 10 users at
once; each user asks again as soon as the answer is there. All take turns, round by round, so that
a machine that is busy for a minute is busy for all. A benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from datasets import put

from potstill.config import LoadConfig
from potstill.examine.fidelity import retention
from potstill.examine.load import measure_load
from potstill.examine.memory import disk_bytes, memory_of_engine, own_peak_bytes
from potstill.examine.metrics import accuracy
from potstill.library import evaluate
from potstill.models.engines import GgufModel
from potstill.models.local import LocalModel
from potstill.models.machine import num_cores, processor
from potstill.pipeline.artefacts import NUM_PROMPTS, make_artefact
from potstill.rundir import RunDir, read_jsonl, write_text
from potstill.tasks.conversation import conversation
from potstill.types import Estimate, Record, Sample, Sampling

ROOT = Path(__file__).resolve().parent.parent
USERS = (1, 4, 10)
SAMPLING = Sampling(max_new_tokens=20)
LABEL_BATCH = 128
"""Prompts at once when the demo's teacher answers its pool."""

CONTEXT = 256
"""Tokens of prompt and answer that llama.cpp holds ready for each user; the longest has 80."""


class Row(NamedTuple):
    """A model as it is asked here."""

    whose: str
    quant: str | None
    """Of the GGUF file; None for the folder in transformers."""

    @property
    def name(self) -> str:
        return f"{self.whose}, {'transformers' if self.quant is None else f'GGUF {self.quant}'}"


ROWS = [
    Row("teacher", None),
    Row("student", None),
    Row("teacher", "f16"),
    Row("student", "f16"),
    Row("teacher", "q8_0"),
    Row("student", "q8_0"),
    Row("student", "q4_0"),
]
STEPS = {
    "distillation (transformers)": (ROWS[0], ROWS[1]),
    "engine (student)": (ROWS[1], ROWS[3]),
    "quantisation to q8_0": (ROWS[3], ROWS[5]),
    "all of it, q8_0": (ROWS[0], ROWS[5]),
    "all of it, q4_0": (ROWS[0], ROWS[6]),
    "distillation alone, llama.cpp f16": (ROWS[2], ROWS[3]),
    "distillation alone, llama.cpp q8_0": (ROWS[4], ROWS[5]),
}
"""What brings how much: from one row to another."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=30, help="of each level and round")
    parser.add_argument("--only", choices=["files", "quality", "speed", "page"], default=None)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "serving.md")
    options = parser.parse_args()
    bench = Serving(RunDir(options.run))
    if options.peak_of:
        print(*bench.peak_of(options.peak_of))
        return
    if options.only in (None, "files", "quality", "speed"):
        bench.make_files()
    if options.only in (None, "quality"):
        bench.answer_all()
    if options.only in (None, "speed"):
        bench.measure_memory()
        bench.measure_speed(options.rounds, options.requests)
    if options.only in (None, "page"):
        put(options.out, bench.page(options))


class Serving:
    """The rows of one demo, and what was found of them so far."""

    def __init__(self, run: RunDir):
        self.run, self.work = run, run.path / "serving"
        self.records = read_jsonl(run.test, Record)

    def place(self, row: Row) -> Path:
        if row.quant is not None:
            folder = self.work / f"{row.whose}-{row.quant}"
            return next(iter(folder.glob("*.gguf")), folder / "missing.gguf")
        return RunDir(self.run.path / "inputs").model if row.whose == "teacher" else self.run.model

    def make_files(self) -> None:
        prompts = [record.messages for record in read_jsonl(self.run.train, Record)[:NUM_PROMPTS]]
        for row in ROWS:
            if row.quant is not None and not self.place(row).exists():
                out = self.work / f"{row.whose}-{row.quant}"
                source = self.place(Row(row.whose, None))
                print(row.name, make_artefact(source, out, f"gguf:{row.quant}", prompts).text)

    def answer_all(self) -> None:
        for row in ROWS:
            found = evaluate(
                self.place(row),
                self.run.test,
                ["accuracy"],
                task="conversation",
                role=row.name,
                sampling=SAMPLING,
                batch_size=64,
                out_samples=self.samples(row),
            )
            print(row.name, found.metrics["accuracy"], flush=True)

    def samples(self, row: Row) -> Path:
        return self.work / f"{row.whose}-{row.quant or 'folder'}.samples.jsonl"

    # Memory

    def measure_memory(self) -> None:
        file = self.work / "memory.json"
        if file.exists():
            return
        found: dict[str, Any] = {}
        for row in ROWS:
            for users in (1, max(USERS)):
                found[f"{row.name}, {users}"] = self._memory(row, users)
        peak, seconds = self._child(f"teacher {LABEL_BATCH} pool")
        found["labelling"] = peak - self._child("none")[0]
        found["labelling seconds"] = seconds
        write_text(file, json.dumps(found))

    def _memory(self, row: Row, users: int) -> float | None:
        if row.quant is None:
            return self._child(f"{row.whose} {users}")[0] - self._child("none")[0]
        peak = asyncio.run(self._engine_peak(self.place(row), users))
        return memory_of_engine(self.place(row), peak, {})["memory"].value

    async def _engine_peak(self, file: Path, users: int) -> int | None:
        engine = GgufModel(str(file), slots=users, context=CONTEXT)
        try:
            await asyncio.gather(*(engine.respond(r, SAMPLING) for r in self.records[:users]))
            return engine.memory_bytes()
        finally:
            await engine.close()

    def _child(self, what: str) -> tuple[float, float]:
        """Peak of a fresh process that answers so many prompts at once, or only imports.

        And the seconds from the first prompt to the last answer.
        """
        command = [sys.executable, __file__, str(self.run.path), "--peak-of", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak, seconds = done.stdout.splitlines()[-1].split()
        return float(peak), float(seconds)

    def peak_of(self, what: str) -> tuple[int, float]:
        """Peak of this process after `WHOSE NUMBER [pool]`, and seconds: one batch of prompts."""
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - also for none

        whose, _, more = what.partition(" ")
        seconds = 0.0
        if whose != "none":
            number, _, pool = more.partition(" ")
            asked = read_jsonl(self.run.train, Record) if pool else self.records
            model = LocalModel(self.place(Row(whose, None)), batch_size=int(number))

            async def ask() -> None:
                await asyncio.gather(*(model.respond(r, SAMPLING) for r in asked[: int(number)]))

            started = time.perf_counter()
            asyncio.run(ask())
            seconds = time.perf_counter() - started
        return own_peak_bytes(), seconds

    # Speed

    def measure_speed(self, rounds: int, requests: int) -> None:
        for number in range(rounds):
            for row in ROWS[:: 1 - 2 * (number % 2)]:
                file = self.work / f"speed-{number}-{row.whose}-{row.quant or 'folder'}.json"
                if not file.exists():
                    levels = {users: self._level(row, users, requests) for users in USERS}
                    write_text(file, json.dumps(levels))
                    print(number, row.name, levels, flush=True)

    def _level(self, row: Row, users: int, requests: int) -> dict[str, float]:
        async def ask() -> dict[str, float]:
            model = (
                LocalModel(self.place(row), batch_size=users)
                if row.quant is None
                else GgufModel(str(self.place(row)), slots=users, context=CONTEXT)
            )
            config = LoadConfig(
                concurrency=(users,), num_requests=requests, e2e_seconds=None, ttft_seconds=1e6
            )
            try:
                await model.respond(self.records[-1], SAMPLING)
                load = await measure_load(
                    model, self.records, task=conversation, sampling=SAMPLING, config=config
                )
            finally:
                await model.close()
            metrics = load.levels[0].metrics
            names = ("latency", "ttft", "tokens_per_second", "requests_per_second")
            return {name: metrics[name].value for name in names if metrics[name].value is not None}

        return asyncio.run(ask())

    def speeds(self, row: Row, users: int, name: str) -> list[float]:
        """One value a round."""
        pattern = f"speed-*-{row.whose}-{row.quant or 'folder'}.json"
        files = sorted(self.work.glob(pattern))
        return [json.loads(file.read_text())[str(users)][name] for file in files]

    # The page

    def page(self, options: argparse.Namespace) -> str:
        memory = json.loads((self.work / "memory.json").read_text())
        rounds = len(self.speeds(ROWS[0], 1, "latency"))
        longest = max(s.num_new_tokens or 0 for s in read_jsonl(self.samples(ROWS[0]), Sample))
        return "\n".join(
            [
                "# What does the exported student save against its teacher?",
                "",
                f"{datetime.date.today()}; `python benchmarks/serving.py RUN --rounds {rounds} "
                f"--requests {options.requests}`, {processor()['name']},",
                f"{num_cores()} cores. The demo's teacher (SmolLM2-135M, tuned, {torch_dtype()})",
                f"and its student of 13 layers; n = {len(self.records)} test messages, answers of",
                f"at most {longest} tokens. Times: median answer of a round, then the median of "
                f"{rounds} rounds in turns, with the lowest and highest.",
                "",
                *self._table(memory),
                "",
                *self._steps(memory),
                "",
                *self._goals(memory),
            ]
        )

    def _table(self, memory: dict[str, float]) -> list[str]:
        lines = [
            "| row | right | "
            + " | ".join(f"s an answer, {users} at once" for users in USERS)
            + " | "
            + " | ".join(f"answers/s, {users}" for users in USERS)
            + f" | memory, 1 user | {max(USERS)} users | on disk |",
            "|---|" + "---|" * (4 + 2 * len(USERS)),
        ]
        for row in ROWS:
            cells = [row.name, share(self._quality(row))]
            cells += [spread(self.speeds(row, users, "latency")) for users in USERS]
            rates = [self.speeds(row, users, "requests_per_second") for users in USERS]
            cells += [f"{median(rate):.1f}" for rate in rates]
            cells += [f"{memory[f'{row.name}, {users}'] / 1e6:.0f} MB" for users in (1, max(USERS))]
            cells.append(f"{disk_bytes(self.place(row)) / 1e6:.0f} MB")
            lines.append("| " + " | ".join(cells) + " |")
        mib = f"{memory['labelling'] / 1e6:.0f} MB"
        return [
            *lines,
            "",
            f"While the teacher answered the pool, {LABEL_BATCH} prompts at once, it took {mib}, "
            f"and {memory['labelling seconds']:.1f} s for them all.",
            "Memory is the peak of a fresh process above one that only imports the same;",
            f"llama.cpp holds {CONTEXT} tokens ready for each user.",
        ]

    def _quality(self, row: Row) -> Estimate:
        from potstill.examine.metrics import estimate

        return estimate(accuracy, read_jsonl(self.samples(row), Sample), seed=0)

    def _kept(self, row: Row) -> Estimate:
        answers = [read_jsonl(self.samples(one), Sample) for one in (row, ROWS[0])]
        return retention(accuracy, *answers, None, seed=0)["of_teacher"]

    def _steps(self, memory: dict[str, float]) -> list[str]:
        lines = [
            "| step | "
            + " | ".join(f"time, {users} at once" for users in USERS)
            + " | memory, 1 user | quality kept |",
            "|---|" + "---|" * (2 + len(USERS)),
        ]
        for name, (before, after) in STEPS.items():
            cells = [name]
            for users in USERS:
                pairs = zip(
                    self.speeds(before, users, "latency"),
                    self.speeds(after, users, "latency"),
                    strict=True,
                )
                cells.append(f"× {spread([new / old for old, new in pairs])}")
            cells.append(f"× {memory[f'{after.name}, 1'] / memory[f'{before.name}, 1']:.2f}")
            answers = [read_jsonl(self.samples(one), Sample) for one in (after, before)]
            kept = retention(accuracy, *answers, None, seed=0)["of_teacher"]
            cells.append(share(kept))
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def _goals(self, memory: dict[str, float]) -> list[str]:
        lines = ["| goal, against the teacher as it was asked | q8_0 | q4_0 |", "|---|---|---|"]
        files = ROWS[5:7]
        batch = memory["labelling seconds"]
        alone = [1 - median(self.speeds(row, 1, "latency")) / batch for row in files]
        lines.append(
            f"| 85 % less time: 1 at once, the teacher {LABEL_BATCH} | "
            + " | ".join(f"{one:.0%}" for one in alone)
            + " |"
        )
        for users in USERS:
            cells = []
            for row in files:
                pairs = zip(
                    self.speeds(ROWS[0], users, "latency"),
                    self.speeds(row, users, "latency"),
                    strict=True,
                )
                saved = [1 - new / old for old, new in pairs]
                cells.append(f"{median(saved):.0%} ({min(saved):.0%} to {max(saved):.0%})")
            lines.append(f"| both {users} at once | " + " | ".join(cells) + " |")
        saved = [1 - memory[f"{row.name}, 1"] / memory["labelling"] for row in files]
        lines.append(
            "| 90 % less memory than while it answered the pool | "
            + " | ".join(f"{one:.0%}" for one in saved)
            + " |"
        )
        kept = " | ".join(share(self._kept(row)) for row in files)
        return [*lines, f"| 92 % of its quality | {kept} |"]


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def share(found: Estimate) -> str:
    if found.value is None or found.low is None:
        return "none"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def torch_dtype() -> str:
    """Number format of both in transformers: the one that is fast on this machine."""
    from potstill.models.weights import resolve_dtype

    return str(resolve_dtype("auto")).removeprefix("torch.")


if __name__ == "__main__":
    torch.set_num_threads(num_cores())
    main()
