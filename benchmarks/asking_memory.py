"""The memory of asking, and what resuming costs: parts of benchmarks/asking.py.

Each measurement is this file in a process of its own: asking_memory.py ask|resume FOLDER URL
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from asking_peers import IN_FLIGHT, prompt
from asking_server import ANSWER, server

from potstill.config import GenerationConfig
from potstill.errors import TeacherRefused
from potstill.models.endpoint import EndpointModel
from potstill.rundir import JsonLines, content_hash, write_jsonl
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.types import Message, Record, Response

CONFIG = GenerationConfig(pilot=0, max_in_flight=IN_FLIGHT)
QA = get_task("qa")


def records(number: int) -> Iterator[Record]:
    for n in range(number):
        yield Record(id=f"row-{n}", messages=(Message(role="user", content=prompt(n)),))


class Instant:
    """A teacher that answers at once, and refuses after so many answers."""

    name, max_in_flight = "instant", IN_FLIGHT

    def __init__(self, text: str, most: float = float("inf")):
        self.text, self.most, self.num = text, most, 0
        self.first_asked_at = 0.0

    async def respond(
        self, record: Record, sampling: Any, *, turn: int = 0, sample: int = 0
    ) -> Response:
        self.first_asked_at = self.first_asked_at or time.perf_counter()
        self.num += 1
        if self.num > self.most:
            raise TeacherRefused("enough")
        await asyncio.sleep(0)
        return Response(
            record_id=record.id, text=self.text, finish_reason="stop", num_new_tokens=300
        )


def memory(options: argparse.Namespace) -> list[str]:
    """Asks all rows in a process of its own, whose memory is its own."""
    found = []
    with server() as url:
        for rows in options.rows:
            with tempfile.TemporaryDirectory(dir=options.work) as folder:
                write_jsonl(Path(folder) / "records.jsonl", records(rows))
                where = "" if options.inside else f"{url}/tiny"
                found.append({"rows": rows, **apart("ask", folder, where)})
    lines = [
        "Answers of one word, each row an answer in the ledger; peak of the resident memory of a "
        + ("process that asks a teacher inside it." if options.inside else "process that asks."),
        "",
        "| rows | peak memory | of that before it began | answers/s |",
        "|---|---|---|---|",
    ]
    for one in found:
        peak, start = (f"{one[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "start_bytes"))
        lines.append(f"| {one['rows']:,} | {peak} | {start} | {one['per_second']:,.0f} |")
    if len(found) > 1:
        few, many = found[0], found[-1]
        slope = (many["peak_bytes"] - few["peak_bytes"]) / (many["rows"] - few["rows"]) * 1e5
        lines += ["", f"It grows by {slope / 2**20:.2f} MiB for 100,000 rows."]
    return lines


async def ask_all_rows(folder: Path, url: str) -> dict[str, float]:
    asked = JsonLines(folder / "records.jsonl", Record)
    teacher = EndpointModel(f"{url}/v1", "fake") if url else Instant("yes")
    source, number, before = content_hash(asked.path), asked.num_lines(), peak_bytes()
    started = time.perf_counter()
    counts = await generate(
        teacher, asked, folder, task=QA, config=CONFIG, requested=number, source=source
    )
    seconds = time.perf_counter() - started
    assert counts.answered == number
    return {
        "peak_bytes": peak_bytes(),
        "start_bytes": before,
        "per_second": number / seconds,
    }


def resuming(options: argparse.Namespace) -> list[str]:
    lines = [
        "Half of the rows have answers of 1.2 KB. Seconds from calling `generate` to its first "
        "request, hashing the input included; in a new process each time, the files not in the "
        "system's cache.",
        "",
        "| rows | seconds to the first request, median | lowest to highest | peak memory |",
        "|---|---|---|---|",
    ]
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.work) as name:
            folder = Path(name)
            write_jsonl(folder / "records.jsonl", records(rows))
            with contextlib.suppress(TeacherRefused):
                asyncio.run(go_on(folder, Instant(ANSWER, rows // 2)))
            found = []
            for _ in range(options.rounds):
                forget(folder)
                found.append(apart("resume", name, ""))
        times = [one["seconds"] for one in found]
        peak = max(one["peak_bytes"] for one in found) / 2**20
        lines.append(
            f"| {rows:,} | {median(times):.2f} | {min(times):.2f} to {max(times):.2f} "
            f"| {peak:.0f} MiB |"
        )
    return lines


async def go_on(folder: Path, teacher: Instant) -> None:
    asked = JsonLines(folder / "records.jsonl", Record)
    source, number = content_hash(asked.path), asked.num_lines()
    config = CONFIG.model_copy(update={"min_success_ratio": 0.0})
    await generate(teacher, asked, folder, task=QA, config=config, requested=number, source=source)


async def resume(folder: Path, url: str) -> dict[str, float]:
    """Goes on with a ledger for a hundred answers."""
    teacher, started = Instant(ANSWER, 100), time.perf_counter()
    with contextlib.suppress(TeacherRefused):
        await go_on(folder, teacher)
    return {"seconds": teacher.first_asked_at - started, "peak_bytes": peak_bytes()}


def forget(folder: Path) -> None:
    """Has the system read a folder's files from the disk the next time."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def apart(what: str, folder: str, url: str) -> dict[str, float]:
    command = [sys.executable, __file__, what, folder, url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def peak_bytes() -> int:
    """Largest memory of this process; getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(what: str, folder: str, url: str) -> None:
    work = {"ask": ask_all_rows, "resume": resume}[what]
    print(json.dumps(asyncio.run(work(Path(folder), url))))


if __name__ == "__main__":
    main(*sys.argv[1:])
