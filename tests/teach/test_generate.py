"""Every prompt has exactly one outcome, nothing is asked twice, and nothing that came is lost."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from teach.fakes import FakeTeacher, failing_on, prompts

from potstill.config import GenerationConfig, PriceConfig
from potstill.errors import ConfigError, PotstillError, TeacherError, TeacherRefused
from potstill.rundir import read_jsonl
from potstill.tasks import get_task
from potstill.teach.generate import generate, seed_of
from potstill.types import Message, Record, Response

QA = get_task("qa")
TALK = Record(
    id="talk",
    messages=(
        Message(role="system", content="Be kind."),
        Message(role="user", content="one"),
        Message(role="assistant", content="gold one"),
        Message(role="user", content="two"),
    ),
    reference="gold two",
)


def ask(teacher, records, out, *, task=QA, on_progress=None, **config):
    settings = GenerationConfig(**{"pilot": 0, **config})
    return asyncio.run(
        generate(teacher, records, out, task=task, config=settings, on_progress=on_progress)
    )


def answers(out):
    return {(r.record_id, r.turn, r.sample): r for r in read_jsonl(out, Response)}


def test_every_prompt_is_answered_once(tmp_path):
    out, told = tmp_path / "train.jsonl", []
    teacher = FakeTeacher()
    counts = ask(teacher, prompts(9), out, on_progress=lambda *facts: told.append(facts))
    assert (counts.requested, counts.answered, counts.failed, counts.reused) == (9, 9, 0, 0)
    assert len(answers(out)) == len(out.read_text().splitlines()) == 9
    assert answers(out)["r3", 0, 0].text == "to question 3"
    assert told[-1] == (9, 9, "")
    assert teacher.most_open == 4


def test_a_second_run_asks_nothing(tmp_path):
    out = tmp_path / "train.jsonl"
    ask(FakeTeacher(), prompts(5), out)
    before = out.read_bytes()
    again = FakeTeacher()
    counts = ask(again, prompts(5), out)
    assert not again.asked
    assert (counts.answered, counts.reused) == (5, 5)
    assert out.read_bytes() == before


def test_a_cut_last_line_is_dropped_and_asked_again(tmp_path):
    out = tmp_path / "train.jsonl"
    ask(FakeTeacher(), prompts(5), out)
    os.truncate(out, out.stat().st_size - 7)
    again = FakeTeacher()
    ask(again, prompts(5), out)
    assert len(again.asked) == 1
    assert len(answers(out)) == 5


def test_an_edited_input_reuses_what_still_fits(tmp_path):
    out = tmp_path / "train.jsonl"
    ask(FakeTeacher(), prompts(4), out)
    edited = [prompts(1, start=9)[0], *prompts(4)[1:]]
    changed = Message(role="user", content="another question")
    edited[1] = edited[1].model_copy(update={"messages": (changed,)})
    teacher = FakeTeacher()
    ask(teacher, edited, out)
    assert sorted(record.id for record in teacher.asked) == ["r1", "r9"]
    assert sorted(answers(out)) == [(f"r{n}", 0, 0) for n in (1, 2, 3, 9)]
    assert answers(out)["r1", 0, 0].text == "to another question"
    back = FakeTeacher()
    ask(back, prompts(4), out)
    assert not back.asked, "answers that were paid for come back with the old input"
    assert answers(out)["r1", 0, 0].text == "to question 1"


def test_another_model_or_temperature_is_another_request(tmp_path):
    out = tmp_path / "train.jsonl"
    ask(FakeTeacher(), prompts(2), out)
    for teacher, config in ((FakeTeacher(name="other"), {}), (FakeTeacher(), {"temperature": 0})):
        ask(teacher, prompts(2), out, **config)
        assert len(teacher.asked) == 2


def test_a_failed_prompt_has_a_row_and_is_asked_again(tmp_path):
    out = tmp_path / "train.jsonl"
    counts = ask(FakeTeacher(failing_on("r2")), prompts(5), out, min_success_ratio=0.5)
    assert (counts.answered, counts.failed) == (4, 1)
    assert answers(out)["r2", 0, 0].error == "no luck with r2"
    again = FakeTeacher()
    counts = ask(again, prompts(5), out)
    assert [record.id for record in again.asked] == ["r2"]
    assert (counts.answered, counts.reused) == (5, 4)
    assert len(out.read_text().splitlines()) == 5


def test_too_many_failures_stop_the_run_early_and_keep_what_came(tmp_path):
    out = tmp_path / "train.jsonl"
    teacher = FakeTeacher(failing_on("r5", "r6", "r7"))
    with pytest.raises(TeacherError, match=r"2 of 100 .*min_success_ratio = 0\.99.*no luck"):
        ask(teacher, prompts(100), out, min_success_ratio=0.99)
    assert 5 <= len(teacher.asked) < 20
    assert answers(out)["r0", 0, 0].text == "fine"


def test_a_refusal_stops_at_once_and_keeps_what_came(tmp_path):
    out = tmp_path / "train.jsonl"

    def say(record, sampling):
        return TeacherRefused("wrong key") if record.id == "r20" else "fine"

    with pytest.raises(TeacherRefused, match="wrong key"):
        ask(FakeTeacher(say), prompts(100), out)
    assert 17 <= len(answers(out)) < 30


def test_the_teacher_sees_its_own_earlier_answers(tmp_path):
    out = tmp_path / "train.jsonl"
    teacher = FakeTeacher()
    counts = ask(teacher, [TALK], out, task=get_task("conversation"))
    assert counts.requested == 2
    assert [m.content for m in teacher.asked[1].messages] == ["Be kind.", "one", "to one", "two"]
    assert answers(out)["talk", 1, 0].text == "to two"
    again = FakeTeacher()
    ask(again, [TALK], out, task=get_task("conversation"))
    assert not again.asked


def test_turns_after_a_failed_turn_count_as_failed(tmp_path):
    out = tmp_path / "train.jsonl"
    teacher = FakeTeacher(lambda record, sampling: TeacherError("no"))
    counts = ask(teacher, [TALK], out, task=get_task("conversation"), min_success_ratio=0)
    assert (counts.requested, counts.failed, len(teacher.asked)) == (2, 2, 1)


def test_samples_have_seeds_of_their_own_that_stay(tmp_path):
    teacher = FakeTeacher(lambda record, sampling: str(sampling.seed))
    counts = ask(teacher, prompts(2), tmp_path / "a.jsonl", num_responses=3)
    assert counts.requested == 6
    assert len({r.text for r in answers(tmp_path / "a.jsonl").values()}) == 6
    assert seed_of(0, "r0", 0, 1) == seed_of(0, "r0", 0, 1) != seed_of(1, "r0", 0, 1)


@pytest.mark.parametrize("text", ["", "<think>hm"])
def test_a_pilot_that_goes_wrong_stops_before_the_spend(tmp_path, text):
    teacher = FakeTeacher(lambda record, sampling: text)
    with pytest.raises(TeacherError, match=r"4 of the first 4 prompts.*r0: empty"):
        ask(teacher, prompts(50), tmp_path / "a.jsonl", pilot=4)
    assert len(teacher.asked) == 4
    assert len(answers(tmp_path / "a.jsonl")) == 4


def test_one_bad_pilot_prompt_is_no_reason_to_stop(tmp_path):
    def say(record, sampling):
        return "" if record.id == "r1" else "fine"

    counts = ask(FakeTeacher(say), prompts(50), tmp_path / "a.jsonl", pilot=4)
    assert counts.answered == 50


def test_the_money_limit_is_never_passed(tmp_path):
    price = PriceConfig(input=10, output=10)  # an answer costs 0.001 and at most about 0.0015
    out = tmp_path / "a.jsonl"
    for _ in range(2):
        teacher = FakeTeacher(price=price, max_in_flight=20)
        with pytest.raises(TeacherError, match=r"max_cost = 0\.02 is reached"):
            ask(teacher, prompts(100), out, max_cost=0.02, max_new_tokens=100)
    assert 0.015 < sum(r.cost for r in answers(out).values()) <= 0.02
    with pytest.raises(ConfigError, match=r"teacher\.price"):
        ask(FakeTeacher(), prompts(1), out, max_cost=1)


def test_the_cost_of_a_run_is_counted(tmp_path):
    counts = ask(FakeTeacher(price=PriceConfig(input=1)), prompts(5), tmp_path / "a.jsonl")
    assert counts.cost == pytest.approx(0.005)
    assert ask(FakeTeacher(), prompts(5), tmp_path / "b.jsonl").cost is None


def test_thoughts_are_set_apart_from_the_answer(tmp_path):
    teacher = FakeTeacher(lambda record, sampling: "<think>maybe</think>\n\nYes")
    ask(teacher, prompts(1), tmp_path / "a.jsonl")
    response = answers(tmp_path / "a.jsonl")["r0", 0, 0]
    assert (response.reasoning, response.text) == ("maybe", "Yes")


def test_a_cancelled_run_can_be_resumed(tmp_path):
    out = tmp_path / "a.jsonl"

    async def main():
        teacher = FakeTeacher(delay=0.005)
        config = GenerationConfig(pilot=0)
        work = asyncio.create_task(generate(teacher, prompts(60), out, task=QA, config=config))
        while len(teacher.asked) < 20:
            await asyncio.sleep(0.002)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    num_kept = len(answers(out))
    assert 12 <= num_kept < 60
    again = FakeTeacher()
    ask(again, prompts(60), out)
    assert len(again.asked) == 60 - num_kept


CHILD = """
import asyncio, sys
from pathlib import Path
from teach.fakes import FakeTeacher, prompts
from potstill.config import GenerationConfig
from potstill.tasks import get_task
from potstill.teach.generate import generate
teacher = FakeTeacher(delay=float(sys.argv[2]))
config = GenerationConfig(pilot=0)
asyncio.run(generate(teacher, prompts(300), Path(sys.argv[1]), task=get_task("qa"), config=config))
print(len(teacher.asked))
"""


def child(out, delay):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out), str(delay)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "a.jsonl"
    for lines in (1, 40, 41, 120):
        process = child(out, 0.01)
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with out.open("ab") as file:
            file.write(b'{"record_id": "r2')
    kept = out.read_bytes().count(b"\n")
    process = child(out, 0)
    asked = int(process.communicate()[0])
    assert asked == 300 - kept
    assert sorted(answers(out)) == sorted((f"r{n}", 0, 0) for n in range(300))
    assert len(out.read_text().splitlines()) == 300


def test_a_full_disk_stops_with_nothing_half_recorded(tmp_path):
    out = tmp_path / "a.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(PotstillError, match=r"cannot be written.*are safe"):
            ask(FakeTeacher(), prompts(50), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    lines = out.read_bytes().split(b"\n")
    assert lines[-1] == b"" and all(json.loads(line) for line in lines[:-1])
    assert 3 < len(lines) < 50
    again = FakeTeacher()
    ask(again, prompts(50), out)
    assert len(again.asked) == 50 - (len(lines) - 1)


def test_texts_that_break_lines_come_back_whole(tmp_path):
    nasty = 'a\u2028b\u0000c\u0085d\r\n"\\ é 字'
    ask(FakeTeacher(lambda record, sampling: nasty), prompts(2), tmp_path / "a.jsonl")
    assert answers(tmp_path / "a.jsonl")["r1", 0, 0].text == nasty
