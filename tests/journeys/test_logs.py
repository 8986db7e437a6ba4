"""From a production log to accepted answers, with an endpoint that is shown nothing personal."""

import contextlib
import json
import random

import pytest
from fake_endpoint import FakeEndpoint, completion, served
from tiny import tiny_llama

from potstill.config import parse_config
from potstill.pipeline.story import distill
from potstill.rundir import RunDir, read_jsonl
from potstill.types import Record

pytestmark = pytest.mark.journey

NAME, MAIL = "Ottilie Canary", "ottilie@canary.example"
NUM_ROWS = 12


def row(number, **changes):
    chance = random.Random(number)
    thing = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz  ", k=60))
    messages = [
        {"role": "user", "content": f"I am {NAME}. Where is my {thing}?"},
        {"role": "assistant", "content": "Which address?"},
        {"role": "user", "content": f"Mine is {MAIL}, number {number}, again"},
    ]
    answer = {"role": "assistant", "content": f"Logged answer {number} for {NAME}."}
    choices = [{"message": answer, "finish_reason": "stop"}]
    rating = str(1 + number % 5)
    return {"id": f"c{number}", "model": "gpt-4o", "messages": messages, "choices": choices,
            "metadata": {"rating": rating, "team": "shop"}, **changes}  # fmt: skip


@contextlib.contextmanager
def endpoint():
    """A server that repeats the last turn of what it is asked."""
    fake = FakeEndpoint(answer=lambda body: completion(f"Noted: {body['messages'][-1]['content']}"))
    with served(fake):
        yield fake


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("student")))


def run_of(tmp_path, student, fake, data, **tree):
    rows = [*(row(n) for n in range(NUM_ROWS)), row(99, model="mini")]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    where = {"not": {"field": "model", "equals": "mini"}}
    tree = {
        "name": "logs", "task": "conversation", "student": student, "train_data": str(log),
        "teacher": {"url": fake.url, "model": "fake"}, "generation": {"pilot": 0},
        "data": {"where": where, **data}, "checks": ["finished"], **tree,
    }  # fmt: skip
    told = []
    run = RunDir(tmp_path / "run")
    distill(parse_config(tree), run, stop_after="check", on_event=told.append)
    return run, [event.text for event in told]


def accepted(run):
    return [*read_jsonl(run.accepted, Record), *read_jsonl(run.accepted_validation, Record)]


def test_nothing_personal_leaves_and_the_student_learns_the_real_values(tmp_path, student):
    with endpoint() as fake:
        run, told = run_of(tmp_path, student, fake, {"privacy": {"names": [NAME]}})
    sent = json.dumps([fake.bodies, fake.headers]).casefold()
    num_asked = run.facts("split")["num_train"] + run.facts("split")["num_validation"]
    assert len(fake.bodies) == 1 + 2 * num_asked  # a dry call, and two turns each
    assert "canary" not in sent and "ottilie" not in sent
    assert f"hidden from the teacher: {num_asked} names, {num_asked} e-mail addresses" in told
    assert run.facts("teach")["hidden"] == {"email": num_asked, "name": num_asked}
    assert run.facts("load")["left_out"] == {"where": 1}
    records = accepted(run)
    assert len(records) == num_asked
    assert all(r.reference.startswith(f"Noted: Mine is {MAIL}, number ") for r in records)
    assert all(r.messages[1].content.startswith(f"Noted: I am {NAME}") for r in records)


def test_redacted_values_are_in_nothing_but_the_log(tmp_path, student):
    with endpoint() as fake:
        run, _ = run_of(tmp_path, student, fake, {"privacy": {"mode": "redact", "names": [NAME]}})
    kept = b"".join(path.read_bytes() for path in run.data.rglob("*") if path.is_file())
    assert b"canary" not in kept.lower()
    assert "canary" not in json.dumps(fake.bodies).casefold()
    assert "[EMAIL_1]" in accepted(run)[0].reference
    assert run.facts("load")["replaced"] == {"email": 12, "name": 12}


def test_logged_answers_are_learned_and_nobody_is_asked(tmp_path, student):
    data = {"logged_answers": "reuse", "feedback": {"field": "metadata.rating", "at_least": 4}}
    with endpoint() as fake:
        run, _ = run_of(tmp_path, student, fake, data)
    assert not fake.bodies
    records = accepted(run)
    assert {r.metadata["rating"] for r in records} == {"4", "5"}
    assert all(r.reference.startswith("Logged answer") for r in records)
    assert records[0].messages[1].content == "Which address?"
    assert run.facts("load")["left_out"] == {"where": 1, "feedback": 8}
