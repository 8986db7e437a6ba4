"""A run that is told to stop waits half a minute for what is on its way, and no longer."""

import asyncio
import signal

import pytest
from teach.fakes import FakeTeacher, prompts
from virtual_time import HurriedLoop

from potstill.config import GenerationConfig
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("seconds", "kept"), [(20, "fine"), (10_000, "")])
def test_a_signal_waits_thirty_seconds_for_answers_and_no_longer(tmp_path, number, seconds, kept):
    teacher = FakeTeacher(lambda record, sampling: "fine", delay=seconds, max_in_flight=4)
    # What is started in the background of a shell ignores SIGINT, and so would asyncio.
    handlers = {signal.SIGTERM: lambda *_: None, signal.SIGINT: signal.default_int_handler}
    usual = {which: signal.signal(which, handler) for which, handler in handlers.items()}
    times = []

    async def main():
        loop = asyncio.get_running_loop()
        config, task = GenerationConfig(pilot=0), get_task("qa")
        work = generate(teacher, prompts(50), tmp_path / "a", task=task, config=config)

        def stop():
            if teacher.open < 4:
                loop.call_later(1, stop)
                return
            times.append(loop.time())
            signal.raise_signal(number)

        stop()
        try:
            await work
        finally:
            times.append(loop.time())

    try:
        with asyncio.Runner(loop_factory=HurriedLoop) as runner:
            with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
                runner.run(main())
    finally:
        for which, handler in usual.items():
            signal.signal(which, handler)
    if not kept:
        assert 30 <= times[1] - times[0] < 300, "generous: a hundred of these seconds are one"
    with Ledger(tmp_path / "a") as ledger:
        rows = list(ledger.rows("train"))
    assert [row.text for row in rows] == [kept] * 4
    assert kept or {row.error.split(":")[0] for row in rows} == {"cancelled"}
