"""`potstill teach RUN --verify` reads every kept answer and says what is damaged."""

import asyncio
import json

import pytest
from teach.keeper import keep

from potstill.cli import main
from potstill.rundir import LedgerDir, RunDir


def verify(run, *options):
    with pytest.raises(SystemExit) as stop:
        main(["teach", str(run.path), "--verify", *options])
    return stop.value.code


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "faq")
    asyncio.run(keep(run.responses, 20, 20))
    run.config.write_text("name: faq")
    run.mark_done("teach", "inputs")
    return run


def test_a_whole_ledger_is_called_whole(run, capsys):
    assert verify(run) == 0
    told = capsys.readouterr().out
    assert "20 answers, 0 failures and 0 cancelled in 1 files" in told
    assert "all of it is whole" in told
    assert run.mark("teach").exists()


def test_damage_is_told_set_aside_and_asked_again_by_the_next_run(run, capsys):
    segment = LedgerDir(run.responses).segment(1)
    segment.write_bytes(segment.read_bytes().replace(b"answer 7 ", b"answer 6 ", 1))
    assert verify(run, "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["num_done"], found["num_damaged"], found["num_missing"]) == (19, 1, 1)
    assert "1 lines are damaged, set aside in" in err
    assert not run.mark("teach").exists(), "so that the stage is done again"
    assert verify(run) == 1, "until it was asked again"


def test_a_run_by_name_is_found_and_an_unknown_one_is_not(run, capsys):
    runs = str(run.path.parent)
    with pytest.raises(SystemExit) as stop:
        main(["teach", "faq", "--verify", "--runs", runs])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main(["teach", "fq", "--verify", "--runs", runs])
    assert stop.value.code == 2
    assert "no run is called 'fq'" in capsys.readouterr().err
