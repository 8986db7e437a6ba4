"""A run over a network that fails, killed again and again: nothing lost, doubled or paid twice."""

import asyncio
import contextlib
import functools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from faults.chaos import answer_to
from seeds import SEED, chance, sizes
from teach.fakes import prompts
from teach.keeper import in_child

from potstill.config import GenerationConfig
from potstill.models.endpoint import EndpointModel
from potstill.rundir import JsonLines, write_jsonl
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Record

IN_FLIGHT = 32


@contextlib.contextmanager
def chaos(file: Path):
    """The URL of an endpoint that outlives those who are killed."""
    command = [sys.executable, str(Path(__file__).with_name("chaos.py")), str(SEED), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


async def soon(seconds):
    """A wait that is tested elsewhere."""
    await asyncio.sleep(min(seconds, 0.005))


async def one_run(url, rows, out, num):
    """What the same command does each time."""
    model = EndpointModel(url, "fake", sleep=soon, max_in_flight=IN_FLIGHT, timeout_seconds=0.5)
    try:
        return await generate(
            model, JsonLines(rows, Record), out, task=get_task("qa"),
            config=GenerationConfig(pilot=0), requested=num, source="the same rows",
        )  # fmt: skip
    finally:
        await model.close()


@sizes(3, 200)
def test_runs_over_a_failing_network_killed_at_any_moment_end_as_one_without_faults(
    num, tmp_path, record_property
):
    random, num_rows = chance("kills", num), 400 if num < 10 else 20_000
    rows, out, paid = tmp_path / "rows.jsonl", tmp_path / "answers", tmp_path / "paid"
    write_jsonl(rows, prompts(num_rows))
    num_asking = 0
    with chaos(paid) as url:

        async def run(say):
            counts = await one_run(url, rows, out, num_rows)
            say("kept", counts.failed)

        for _ in range(num):
            before = paid.stat().st_size
            if random.random() < 0.1:  # while it finds out what there is
                in_child(run, random.random() * 0.6)
            else:
                asks = functools.partial(lambda size: paid.stat().st_size > size, before)
                in_child(run, random.random() * 0.2, asks)
            num_asking += paid.stat().st_size > before
        for _ in range(5):
            said = in_child(run, None)
            if said["kept"] == [0]:  # else retries ended too soon, in so much trouble
                break
        assert (said["kept"], said["end"]) == ([0], [0])
    charged = Counter(json.loads(line) for line in paid.read_text().splitlines())
    with Ledger(out) as ledger:
        kept = [(row.record_id, row.text) for row in ledger.rows("train")]
        assert ledger.num_damaged == 0 and ledger.verify().num_missing == 0
    without_faults = [(r.id, answer_to(r.messages[-1].content)) for r in prompts(num_rows)]
    assert kept == without_faults
    assert len(charged) == num_rows
    assert num_asking > num / 2, "else this says nothing"
    num_again = charged.total() - num_rows
    assert num_again <= num * (IN_FLIGHT + 256)
    facts = {"rows": num_rows, "kills": num, "while_asking": num_asking, "paid_again": num_again}
    record_property("facts", json.dumps(facts))
    print(facts)
