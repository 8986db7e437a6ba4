"""Every prompt has exactly one outcome, nothing is asked twice, and nothing that came is lost."""

import asyncio
import json
import os
import re
import resource
import signal
import threading
from collections import Counter

import pytest
from seeds import chance as chances
from teach.fakes import FakeTeacher, failing_on, prompts
from teach.keeper import in_child

from potstill.config import GenerationConfig, PriceConfig
from potstill.errors import ConfigError, PotstillError, TeacherError, TeacherRefused
from potstill.rundir import LedgerDir
from potstill.tasks import get_task
from potstill.teach.asker import Asker
from potstill.teach.generate import generate
from potstill.teach.index import State
from potstill.teach.ledger import Ledger
from potstill.teach.requests import Place, seed_of
from potstill.teach.tally import Tally
from potstill.types import Message, Record

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


def ask(teacher, records, out, *, task=QA, part="train", on_progress=None, **config):
    settings = GenerationConfig(**{"pilot": 0, **config})
    work = generate(
        teacher, records, out, task=task, config=settings, part=part, on_progress=on_progress
    )
    return asyncio.run(work)


def answers(out, part="train"):
    with Ledger(out) as ledger:
        return {(r.record_id, r.turn, r.sample): r for r in ledger.rows(part)}


def lines(out):
    folder = LedgerDir(out)
    return [
        line
        for number in folder.segments()
        for line in folder.segment(number).read_bytes().split(b"\n")[:-1]
    ]


def test_every_prompt_is_answered_once(tmp_path):
    out, told = tmp_path / "answers", []
    teacher = FakeTeacher()
    counts = ask(teacher, prompts(9), out, on_progress=lambda *facts: told.append(facts))
    assert (counts.requested, counts.answered, counts.failed, counts.reused) == (9, 9, 0, 0)
    assert len(answers(out)) == len(lines(out)) == 9
    assert answers(out)["r3", 0, 0].text == "to question 3"
    assert told[-1][:2] == (9, 9)
    assert re.fullmatch(r"[\d,.]+/s, [\d,]+ tokens/s", told[-1][2])
    assert teacher.most_open == 4


def test_a_second_run_asks_nothing(tmp_path):
    out = tmp_path / "answers"
    ask(FakeTeacher(), prompts(5), out)
    before = lines(out)
    again = FakeTeacher()
    counts = ask(again, prompts(5), out)
    assert not again.asked
    assert (counts.answered, counts.reused) == (5, 5)
    assert lines(out) == before


def test_a_cut_last_line_is_dropped_and_asked_again(tmp_path):
    out = tmp_path / "answers"
    ask(FakeTeacher(), prompts(5), out)
    segment = LedgerDir(out).segment(1)
    os.truncate(segment, segment.stat().st_size - 7)
    again = FakeTeacher()
    ask(again, prompts(5), out)
    assert len(again.asked) == 1
    assert len(answers(out)) == 5


def test_an_edited_input_reuses_what_still_fits(tmp_path):
    out = tmp_path / "answers"
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
    out = tmp_path / "answers"
    ask(FakeTeacher(), prompts(2), out)
    for teacher, config in ((FakeTeacher(name="other"), {}), (FakeTeacher(), {"temperature": 0})):
        ask(teacher, prompts(2), out, **config)
        assert len(teacher.asked) == 2


def test_a_failed_prompt_has_a_row_and_is_asked_again(tmp_path):
    out = tmp_path / "answers"
    counts = ask(FakeTeacher(failing_on("r2")), prompts(5), out, min_success_ratio=0.5)
    assert (counts.answered, counts.failed) == (4, 1)
    assert answers(out)["r2", 0, 0].error == "no luck with r2"
    again = FakeTeacher()
    counts = ask(again, prompts(5), out)
    assert [record.id for record in again.asked] == ["r2"]
    assert (counts.answered, counts.reused) == (5, 4)
    assert {r.finish_reason for r in answers(out).values()} == {"stop"}


def test_too_many_failures_stop_the_run_early_and_keep_what_came(tmp_path):
    out = tmp_path / "answers"
    teacher = FakeTeacher(failing_on("r5", "r6", "r7"))
    with pytest.raises(TeacherError, match=r"2 of 100 .*min_success_ratio = 0\.99.*no luck"):
        ask(teacher, prompts(100), out, min_success_ratio=0.99)
    assert 5 <= len(teacher.asked) < 20
    assert answers(out)["r0", 0, 0].text == "fine"


def test_a_refusal_stops_at_once_and_keeps_what_came(tmp_path):
    out = tmp_path / "answers"

    def say(record, sampling):
        return TeacherRefused("wrong key") if record.id == "r20" else "fine"

    with pytest.raises(TeacherRefused, match="wrong key"):
        ask(FakeTeacher(say), prompts(100), out)
    assert 17 <= len(answers(out)) < 30


def test_the_teacher_sees_its_own_earlier_answers(tmp_path):
    out = tmp_path / "answers"
    teacher = FakeTeacher()
    counts = ask(teacher, [TALK], out, task=get_task("conversation"))
    assert counts.requested == 2
    assert [m.content for m in teacher.asked[1].messages] == ["Be kind.", "one", "to one", "two"]
    assert answers(out)["talk", 1, 0].text == "to two"
    again = FakeTeacher()
    ask(again, [TALK], out, task=get_task("conversation"))
    assert not again.asked


def test_a_conversation_goes_on_after_the_turn_that_was_answered(tmp_path):
    out = tmp_path / "answers"
    first = FakeTeacher(
        lambda record, sampling: "one" if len(record.messages) == 2 else TeacherError("no")
    )
    ask(first, [TALK], out, task=get_task("conversation"), min_success_ratio=0)
    again = FakeTeacher()
    counts = ask(again, [TALK], out, task=get_task("conversation"))
    assert [m.content for m in again.asked[0].messages] == ["Be kind.", "one", "one", "two"]
    assert (counts.answered, counts.reused, len(again.asked)) == (2, 1, 1)


class Counted(Ledger):
    """Counts what is looked for one by one."""

    num_looked = 0

    def answer(self, key):
        self.num_looked += 1
        return super().answer(key)


def test_what_is_known_to_be_new_is_not_looked_for_once_more(tmp_path):
    """Each look takes longer than handing an answer over to be written."""

    async def main():
        with Counted(tmp_path / "a") as ledger:
            ledger.begin("train")
            config = GenerationConfig(pilot=0)
            asker = Asker(FakeTeacher(), QA, config, ledger, 600, 0, lambda state: None)
            await asker.ask_all(Place(n, record, 0) for n, record in enumerate(prompts(600)))
            return asker.tally.answered, ledger.num_looked

    assert asyncio.run(main()) == (600, 0)


def test_turns_after_a_failed_turn_count_as_failed(tmp_path):
    out = tmp_path / "answers"
    teacher = FakeTeacher(lambda record, sampling: TeacherError("no"))
    counts = ask(teacher, [TALK], out, task=get_task("conversation"), min_success_ratio=0)
    assert (counts.requested, counts.failed, len(teacher.asked)) == (2, 2, 1)


def test_samples_have_seeds_of_their_own_that_stay(tmp_path):
    teacher = FakeTeacher(lambda record, sampling: str(sampling.seed))
    counts = ask(teacher, prompts(2), tmp_path / "a", num_responses=3)
    assert counts.requested == 6
    assert len({r.text for r in answers(tmp_path / "a").values()}) == 6
    assert seed_of(0, "r0", 0, 1) == seed_of(0, "r0", 0, 1) != seed_of(1, "r0", 0, 1)


@pytest.mark.parametrize("text", ["", "<think>hm"])
def test_a_pilot_that_goes_wrong_stops_before_the_spend(tmp_path, text):
    teacher = FakeTeacher(lambda record, sampling: text)
    with pytest.raises(TeacherError, match=r"4 of the first 4 prompts.*r0: empty"):
        ask(teacher, prompts(50), tmp_path / "a", pilot=4)
    assert len(teacher.asked) == 4
    assert len(answers(tmp_path / "a")) == 4


def test_one_bad_pilot_prompt_is_no_reason_to_stop(tmp_path):
    def say(record, sampling):
        return "" if record.id == "r1" else "fine"

    counts = ask(FakeTeacher(say), prompts(50), tmp_path / "a", pilot=4)
    assert counts.answered == 50


def test_the_money_limit_is_never_passed(tmp_path):
    price = PriceConfig(input=10, output=10)  # an answer costs 0.001 and at most about 0.0015
    out = tmp_path / "a"
    for _ in range(2):
        teacher = FakeTeacher(price=price, max_in_flight=20)
        with pytest.raises(TeacherError, match=r"max_cost = 0\.02 is reached"):
            ask(teacher, prompts(100), out, max_cost=0.02, max_new_tokens=100)
    assert 0.015 < sum(r.cost for r in answers(out).values()) <= 0.02
    with pytest.raises(ConfigError, match=r"teacher\.price"):
        ask(FakeTeacher(), prompts(1), out, max_cost=1)


def test_the_cost_of_a_run_is_counted(tmp_path):
    counts = ask(FakeTeacher(price=PriceConfig(input=1)), prompts(5), tmp_path / "a")
    assert counts.cost == pytest.approx(0.005)
    assert ask(FakeTeacher(), prompts(5), tmp_path / "b").cost is None


def test_thoughts_are_set_apart_from_the_answer(tmp_path):
    teacher = FakeTeacher(lambda record, sampling: "<think>maybe</think>\n\nYes")
    ask(teacher, prompts(1), tmp_path / "a")
    response = answers(tmp_path / "a")["r0", 0, 0]
    assert (response.reasoning, response.text) == ("maybe", "Yes")


def test_a_cancelled_run_can_be_resumed(tmp_path):
    out = tmp_path / "a"

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


def test_a_full_disk_stops_with_nothing_half_recorded(tmp_path):
    out = tmp_path / "a"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    say = FakeTeacher(lambda record, sampling: "long " * 1000)
    try:
        with pytest.raises(PotstillError, match=r"cannot be written.*are safe"):
            ask(say, prompts(500), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(say.asked) < 500
    assert all(json.loads(line) for line in lines(out))
    kept = len(answers(out))
    assert kept < 50
    again = FakeTeacher()
    counts = ask(again, prompts(500), out)
    assert len(again.asked) == 500 - counts.reused
    assert counts.reused >= kept


class Telling(FakeTeacher):
    """Says which record it is asked for, before it is."""

    def __init__(self, say, **facts):
        super().__init__(**facts)
        self.tell = say

    async def respond(self, record, sampling, **place):
        self.tell("asked", int(record.id[1:]))
        return await super().respond(record, sampling, **place)


def killed_runs(out, num_kills, num, longest):
    """Kills runs at random moments and lets the last one end; how often each was asked."""
    chance, asked = chances("generate", num_kills), Counter()

    async def work(say):
        config = GenerationConfig(pilot=0)
        teacher = Telling(say, max_in_flight=32, delay=0.001)
        await generate(teacher, prompts(num), out, task=QA, config=config)

    for kill in range(num_kills + 1):
        said = in_child(work, chance.random() * longest if kill < num_kills else None)
        asked.update(said["asked"])
    assert said["end"] == [0]
    return asked


def test_killed_at_any_moment_it_goes_on_and_asks_little_again(tmp_path):
    asked = killed_runs(tmp_path / "a", 3, 2000, 0.4)
    assert len(asked) == len(answers(tmp_path / "a")) == 2000
    assert asked.total() - 2000 <= 3 * (32 + 256)
    ask(FakeTeacher(), prompts(2000), tmp_path / "b")
    assert {k: r.text for k, r in answers(tmp_path / "a").items()} == {
        k: r.text for k, r in answers(tmp_path / "b").items()
    }


@pytest.mark.slow
@pytest.mark.faults
def test_two_hundred_killed_runs_lose_nothing(tmp_path):
    asked = killed_runs(tmp_path / "a", 200, 30_000, 1.0)
    assert len(asked) == len(answers(tmp_path / "a")) == 30_000
    assert asked.total() - 30_000 <= 200 * (32 + 256)


def test_texts_that_break_lines_come_back_whole(tmp_path):
    nasty = 'a\u2028b\u0000c\u0085d\r\n"\\ é 字'
    ask(FakeTeacher(lambda record, sampling: nasty), prompts(2), tmp_path / "a")
    assert answers(tmp_path / "a")["r1", 0, 0].text == nasty


def test_max_failures_stops_the_run_as_well(tmp_path):
    teacher = FakeTeacher(failing_on("r5", "r6", "r7", "r8"))
    with pytest.raises(TeacherError, match=r"3 of 200 .*max_failures = 2 allows 2"):
        ask(teacher, prompts(200), tmp_path / "a", max_failures=2)
    assert len(teacher.asked) < 20


def test_a_cancelled_run_waits_for_what_is_on_its_way(tmp_path):
    out = tmp_path / "a"

    async def main():
        teacher = FakeTeacher(delay=0.1, max_in_flight=8)
        config = GenerationConfig(pilot=0)
        work = asyncio.create_task(generate(teacher, prompts(60), out, task=QA, config=config))
        while len(teacher.asked) < 8:
            await asyncio.sleep(0.002)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return len(teacher.asked)

    assert asyncio.run(main()) == len(answers(out)) == 8


def test_a_second_cancellation_leaves_nothing_open(tmp_path):
    """Requests that were cancelled have an outcome that says so, and are asked again."""
    out = tmp_path / "a"

    async def main():
        teacher, config = FakeTeacher(delay=60), GenerationConfig(pilot=0)
        work = asyncio.create_task(generate(teacher, prompts(9), out, task=QA, config=config))
        while teacher.open < 4:
            await asyncio.sleep(0.002)
        for _ in range(2):
            work.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert {r.error.split(":")[0] for r in answers(out).values()} == {"cancelled"}
    again = FakeTeacher()
    assert ask(again, prompts(9), out).answered == len(again.asked) == 9


def test_records_are_streamed_where_their_number_is_known(tmp_path):
    held = []

    class Seen(FakeTeacher):
        async def respond(self, record, sampling, **place):
            held.append(given - len(self.asked))
            return await super().respond(record, sampling, **place)

    given = 0

    def stream():
        nonlocal given
        for record in prompts(2000):
            given += 1
            yield record

    config = GenerationConfig(pilot=0)
    work = generate(Seen(), stream(), tmp_path / "a", task=QA, config=config, requested=2000)
    assert asyncio.run(work).answered == 2000
    assert max(held) <= 300, "records are not read far ahead of the requests"


def test_few_answers_wait_for_the_disk_at_any_moment(tmp_path):
    """What a crash would have asked again: requests in flight and 256 more."""
    disk = threading.Event()

    async def main():
        teacher = FakeTeacher()
        with Ledger(tmp_path / "a", sync=lambda file: disk.wait()) as ledger:
            ledger.begin("train")
            config = GenerationConfig(pilot=0)
            asker = Asker(teacher, QA, config, ledger, 900, 0, lambda state: None)
            places = (Place(n, record, 0) for n, record in enumerate(prompts(900)))
            work = asyncio.create_task(asker.ask_all(places))
            before = -1
            while len(teacher.asked) > before:
                before = len(teacher.asked)
                await asyncio.sleep(0.1)
            disk.set()
            await work
            return before

    assert asyncio.run(main()) == 256 + 4


def test_two_inputs_share_one_ledger(tmp_path):
    """A row that moves from one split to the other is not paid for again."""
    out = tmp_path / "a"
    ask(FakeTeacher(), prompts(6), out, part="train")
    teacher = FakeTeacher()
    ask(teacher, prompts(4, start=4), out, part="validation")
    assert [record.id for record in teacher.asked] == ["r6", "r7"]
    assert sorted(key[0] for key in answers(out, "validation")) == ["r4", "r5", "r6", "r7"]
    assert len(answers(out, "train")) == 6


def test_progress_says_how_fast_how_dear_and_what_failed(tmp_path):
    told = []
    teacher = FakeTeacher(failing_on("r3"), price=PriceConfig(input=1))
    teacher.num_retries = 0
    work = generate(
        teacher, prompts(10), tmp_path / "a", task=QA,
        config=GenerationConfig(pilot=0, min_success_ratio=0.5), on_asking=told.append,
    )  # fmt: skip
    asyncio.run(work)
    last = told[-1]
    assert (last.requested, last.answered, last.failed, last.in_flight) == (10, 9, 1, 0)
    assert last.reasons == {"other": 1}
    assert last.cost == last.projected_cost == pytest.approx(0.009)
    assert last.seconds_left == 0
    assert "1 failed (other 1)" in last.text and "cost 0.0090 of about 0.009" in last.text


@pytest.mark.parametrize("comes", [True, False])
def test_sigterm_ends_in_order_and_then_has_its_usual_effect(tmp_path, comes):
    out, seen = tmp_path / "a", []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("the usual effect"))

    def say(record, sampling):
        if comes and record.id == "r0":
            signal.raise_signal(signal.SIGTERM)
        return "fine"

    try:
        if comes:
            with pytest.raises(asyncio.CancelledError):
                ask(FakeTeacher(say, delay=0.02), prompts(80), out)
        else:
            ask(FakeTeacher(say), prompts(80), out)
        assert seen == ["the usual effect"] * comes
        assert {r.text for r in answers(out).values()} == {"fine"}
        assert len(answers(out)) in (range(4, 13) if comes else [80])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("lost", ["in the ledger", "in the run's own counts"])
def test_counts_that_do_not_agree_end_the_run(tmp_path, monkeypatch, lost):
    """However it comes about: a number that is reported is one that was kept."""
    if lost == "in the ledger":
        counts = Ledger.counts
        monkeypatch.setattr(Ledger, "counts", lambda ledger: {**counts(ledger), State.DONE: 5})
    else:
        ended, seen = Tally.ended, []

        def forgets(tally, response, **more):
            seen.append(response.record_id)
            if len(seen) != 3:
                ended(tally, response, **more)

        monkeypatch.setattr(Tally, "ended", forgets)
    with pytest.raises(AssertionError):
        ask(FakeTeacher(), prompts(6), tmp_path)
