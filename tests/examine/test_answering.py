"""A test set is answered once: by turn, on gold or own history, kept through kills and runs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from examine.fake_models import Answering, Topics, failing, record

from potstill.examine.answering import UNANSWERED
from potstill.examine.reuse import AnswerStore, answer_store, store_path
from potstill.examine.run import evaluate
from potstill.rundir import read_jsonl
from potstill.tasks.conversation import conversation
from potstill.types import Message, Record, Response, Sample, Sampling

RECORDS = [record(i, reference="ab"[i % 2]) for i in range(8)]


def talk(name, *contents, reference=None, **metadata):
    roles = ("user", "assistant")
    turns = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(contents))
    return Record(id=name, messages=turns, reference=reference, metadata=metadata)


TALK = talk("t", "Two for 7?", "Booked for 7.", "Where?", "At Mario.", "Bye", reference="Bye then")


class Weights(Answering):
    """A model that is known by what its answers depend on."""

    def __init__(self, answer, known_as="these weights", **more):
        super().__init__(answer, **more)
        self.known_as = known_as
        self.prompts = []

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.prompts.append([message.content for message in record.messages])
        return await super().respond(record, sampling, turn=turn, sample=sample)


def run(model, path, records=RECORDS, task=None, **more):
    more = {"role": "distilled", "sampling": Sampling(), "format": "fake", **more}
    path.mkdir(exist_ok=True)
    return asyncio.run(
        evaluate(model, records, task or Topics(), out_samples=path / "samples.jsonl", **more)
    )


def samples(path):
    return read_jsonl(path / "samples.jsonl", Sample)


def test_a_second_run_does_not_ask_the_same_weights_again(tmp_path):
    with answer_store("weights") as store:
        first = run(Weights(lambda r: r.reference), tmp_path / "one", store=store)
    again = Weights(lambda r: "other")
    with answer_store("weights") as store:
        second = run(again, tmp_path / "two", store=store)
    assert again.asked == []
    assert second == first


@pytest.mark.parametrize(
    ("known_as", "more"),
    [("other weights", {}), ("these weights", {"sampling": Sampling(max_new_tokens=5)})],
)
def test_other_weights_or_another_decoding_are_asked(tmp_path, known_as, more):
    with answer_store("weights") as store:
        run(Weights(lambda r: "a"), tmp_path / "one", store=store)
        again = Weights(lambda r: "a", known_as)
        run(again, tmp_path / "two", store=store, **more)
    assert len(again.asked) == 8


def test_an_answer_is_reused_under_the_id_of_whoever_asks(tmp_path):
    with answer_store("weights") as store:
        run(Weights(lambda r: "a"), tmp_path / "one", store=store)
        renamed = [r.model_copy(update={"id": f"{r.id}-again"}) for r in RECORDS]
        run(Weights(lambda r: "b"), tmp_path / "two", renamed, store=store)
    found = [(s.record_id, s.text) for s in samples(tmp_path / "two")]
    assert found == [(r.id, "a") for r in renamed]


def test_a_model_known_by_its_name_is_reused_only_on_demand(tmp_path):
    for reuse, num_asked in (("weights", 8), ("all", 0)):
        with answer_store(reuse) as store:
            run(Answering(lambda r: "a"), tmp_path / f"{reuse}-1", store=store)
            again = Answering(lambda r: "a")
            run(again, tmp_path / f"{reuse}-2", store=store)
        assert len(again.asked) == num_asked


def test_switched_off_nothing_is_kept(tmp_path):
    with answer_store("off") as store:
        assert store is None
        run(Weights(lambda r: "a"), tmp_path / "one", store=store)
    assert not store_path().exists()


def test_failures_are_not_kept_for_other_runs(tmp_path):
    def answer(r):
        failed = Response(record_id=r.id, text="", finish_reason="error", error="no memory")
        return failed if r.id == "r3" else "a"

    with answer_store("weights") as store:
        run(Weights(answer), tmp_path / "one", store=store)
        again = Weights(lambda r: "a")
        run(again, tmp_path / "two", store=store)
    assert again.asked == [("r3", 0)]


def test_the_file_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path):
    long = Weights(lambda r: "word " * 100)
    prompts = [record(i, question="q") for i in range(40)]
    path = tmp_path / "answers.sqlite"
    ask = Sampling()

    def store():
        return AnswerStore(path, max_bytes=8_000)

    first = store()
    for prompt in prompts[:10]:
        first.put(long, prompt, ask, asyncio.run(long.respond(prompt, ask)))
    assert first.get(long, prompts[0], ask) is not None
    first.close()
    second = store()
    for prompt in prompts[10:15]:
        second.put(long, prompt, ask, asyncio.run(long.respond(prompt, ask)))
    there = [second.get(long, prompt, ask) is not None for prompt in prompts]
    assert second._total() <= 8_000
    assert there[0] and there[14] and not there[1]
    second.close()


def test_a_broken_file_costs_no_run(tmp_path, caplog):
    store_path().parent.mkdir(parents=True, exist_ok=True)
    store_path().write_bytes(b"no database at all, but long enough to look at" * 40)
    with answer_store("weights") as store:
        found = run(Weights(lambda r: r.reference), tmp_path / "one", store=store)
    assert found["accuracy"] == 1.0
    assert "cannot be used, so answers are not reused" in caplog.text


def test_another_thread_may_ask_for_whoever_opened_the_file(tmp_path, caplog):
    with answer_store("weights") as store, ThreadPoolExecutor(1) as pool:
        asked = [pool.submit(run, Weights(lambda r: "a"), tmp_path / n, store=store) for n in "ab"]
        assert asked[0].result() == asked[1].result()
    assert "cannot be used" not in caplog.text


def test_only_this_user_may_read_the_file(tmp_path):
    with answer_store("weights"):
        assert store_path().stat().st_mode & 0o077 == 0


def test_prompts_of_like_length_are_asked_together(tmp_path):
    mixed = [record(i, question="q" * (1 + 50 * (i % 2)), reference="a") for i in range(8)]
    model = Weights(lambda r: "a", max_in_flight=1)
    run(model, tmp_path, mixed)
    lengths = [len(prompt[0]) for prompt in model.prompts]
    assert lengths == sorted(lengths, reverse=True)


def test_a_turn_is_asked_on_the_gold_history(tmp_path):
    model = Weights(lambda r: "Yes", max_in_flight=1)
    found = run(model, tmp_path, [TALK], conversation)
    assert sorted(model.prompts, key=len)[1:] == [
        ["Two for 7?", "Booked for 7.", "Where?"],
        ["Two for 7?", "Booked for 7.", "Where?", "At Mario.", "Bye"],
    ]
    assert found.metrics["accuracy"].signature.endswith("; each turn on the gold history")
    assert found.decoding["history"] == "gold"


def test_a_turn_is_asked_on_the_models_own_answers(tmp_path):
    model = Weights(lambda r: f"answer {len(r.messages)}")
    found = run(model, tmp_path, [TALK], conversation, history="own")
    assert model.prompts[2] == ["Two for 7?", "answer 1", "Where?", "answer 3", "Bye"]
    assert [s.references for s in samples(tmp_path)] == [
        ("Booked for 7.",),
        ("At Mario.",),
        ("Bye then",),
    ]
    assert found.metrics["accuracy"].signature.endswith(
        "; each turn on the model's own answers before it"
    )


def test_thoughts_are_no_part_of_the_history(tmp_path):
    model = Weights(lambda r: "<think>hm</think> Fine")
    run(model, tmp_path, [TALK], conversation, history="own")
    assert model.prompts[1][1] == "Fine"


def test_after_a_turn_without_an_answer_the_rest_is_wrong_and_asked_the_next_time(tmp_path):
    said = iter(["Booked for 7.", failing()])
    found = run(Weights(lambda r: next(said)), tmp_path, [TALK], conversation, history="own")
    assert [bool(s.error) for s in samples(tmp_path)] == [False, True, True]
    assert samples(tmp_path)[2].error == UNANSWERED
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found.metrics["accuracy"].n_error == 2
    again = Weights(lambda r: "Mario")
    run(again, tmp_path, [TALK], conversation, history="own")
    assert [turn for _, turn in again.asked] == [1, 2]


def test_user_turns_without_known_answers_are_asked_on_the_models_own(tmp_path):
    row = Record(id="u", messages=tuple(Message(role="user", content=c) for c in "abc"))
    model = Weights(lambda r: "so", max_in_flight=1)
    run(model, tmp_path, [row, record(1, reference="x")], conversation, metrics=["truncation_rate"])
    assert ["a", "so", "b", "so", "c"] in model.prompts


def test_turns_of_one_conversation_are_one_group_and_named_groups_are_larger(tmp_path):
    talks = [TALK.model_copy(update={"id": f"t{i}", "metadata": {"who": i // 2}}) for i in range(4)]
    alone = run(Weights(lambda r: "7"), tmp_path / "a", talks, conversation)
    named = run(Weights(lambda r: "7"), tmp_path / "b", talks, conversation, group_by="who")
    assert "12 answers in 4 groups" in alone.metrics["accuracy"].note
    assert "12 answers in 2 groups" in named.metrics["accuracy"].note
    assert alone.by_slice["turn: first"]["accuracy"].n == 4


ANSWERS_SLOWLY = """
import asyncio, sys, time
from pathlib import Path
from examine.fake_models import Topics, record
from examine.test_answering import RECORDS, Weights, run
path = Path(sys.argv[1])
model = Weights(lambda r: r.reference, max_in_flight=1, seconds=0.02)
run(model, path)
"""


def test_a_kill_in_the_middle_loses_no_answer_that_was_kept(tmp_path):
    """SIGKILL, so that nothing is tidied up; the next run asks for what is missing."""
    here = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    command = [sys.executable, "-c", ANSWERS_SLOWLY, str(tmp_path)]
    process = subprocess.Popen(command, env=environment)
    file = tmp_path / "samples.jsonl"
    deadline = time.monotonic() + 30
    while not file.exists() or file.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_kept = file.read_text().count("\n")
    assert 3 <= num_kept < 8
    again = Weights(lambda r: r.reference)
    assert run(again, tmp_path)["accuracy"] == 1.0
    assert len(again.asked) == 8 - num_kept
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["record_id"] for row in rows] == [r.id for r in RECORDS]
