"""Each way to fail has its reason, and attempts that may have been paid for are counted."""

import asyncio
import json
import pickle
import socket
from pathlib import Path

import pytest
from fake_endpoint import completion
from fault_server import FaultServer, answers, bombs, cuts, hangs, resets, says, serving
from models.test_faults import GOOD, HALF_HEAD, ask
from teach.fakes import prompts

from potstill.config import GenerationConfig
from potstill.models.endpoint import EndpointModel
from potstill.models.failures import Failure, gave_up, named, reason_of
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger

PAGE = Path(__file__).parent.parent.parent / "docs" / "failures.md"


@pytest.mark.parametrize(
    ("fault", "reason", "num_unread"),
    [
        (hangs(), "timeout", 6),
        (resets(), "connection", 6),
        (resets(HALF_HEAD), "connection", 6),
        (cuts(GOOD[:40]), "truncated", 6),
        (says(GOOD[:40]), "truncated", 6),
        (says(b"<html>It works!</html>"), "unreadable", 6),
        (says(b""), "unreadable", 6),
        (says(b"no HTTP at all\r\n\r\n", "\r\n\x00"), "unreadable", 6),
        (says(b"oops", "503 Service Unavailable"), "server_error", 0),
        (says(b"slow", "408 Request Timeout"), "http_408", 0),
        (says(b"twice", "409 Conflict"), "http_409", 0),
        (bombs(2**21), "too_large", 1),
    ],
    ids=range(12),
)
def test_a_request_that_is_given_up_says_why_and_what_may_have_been_paid(fault, reason, num_unread):
    (error,), _ = ask(*[fault] * 6, timeout_seconds=0.05)
    assert (error.reason, error.num_unread) == (reason, num_unread)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        ("400 Bad Request", "no such field", "http_400"),
        ("422 Unprocessable Entity", "no", "http_422"),
        ("418 I'm a teapot", "no", "http_4xx"),
        ("413 Content Too Large", "no", "too_long"),
        ("400 Bad Request", "maximum context length is 8192 tokens", "too_long"),
    ],
)
def test_a_prompt_that_is_refused_has_the_reason_before_its_error(status, text, reason):
    body = json.dumps({"error": {"message": text}}).encode()
    (response,), _ = ask(says(body, status))
    assert reason_of(response.error) == reason
    assert response.num_unread == 0


def test_an_answer_that_ended_in_a_way_nobody_knows_is_unfinished():
    (response,), _ = ask(answers(completion("x", finish_reason="whim")))
    assert response.error == "unfinished: ended with finish_reason 'whim'"


def test_nobody_at_the_port_is_a_connection_that_cost_nothing():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (error,), _ = ask(url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
    assert (error.reason, error.num_unread) == ("connection", 0)


def test_an_answer_tells_what_was_lost_before_it_came():
    (response,), _ = ask(cuts(GOOD[:40]), says(b"oops", "500 Oops"), says(b""))
    assert (response.text, response.num_unread) == ("Yes.", 2)


def test_a_cancelled_request_may_have_been_paid_once_it_was_sent(tmp_path):
    """One is on its way and the other waits for its turn when the run ends."""

    async def main():
        async with serving(FaultServer(hangs())) as server:
            model = EndpointModel(server.url, "fake", max_in_flight=1)
            config = GenerationConfig(pilot=0, max_in_flight=2)
            work = asyncio.create_task(
                generate(model, prompts(9), tmp_path / "a", task=get_task("qa"), config=config)
            )
            while not server.num_requests:
                await asyncio.sleep(0.01)
            for _ in range(2):  # the second one does not wait for answers
                work.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await work
            await model.close()

    asyncio.run(main())
    with Ledger(tmp_path / "a") as ledger:
        rows = list(ledger.rows("train"))
    assert {reason_of(row.error) for row in rows} == {Failure.CANCELLED}
    assert sorted(row.num_unread for row in rows) == [0, 1]


def test_a_reason_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(gave_up(Failure.TIMEOUT, "too slow", num_unread=3)))
    assert (str(error), error.reason, error.num_unread) == ("too slow", "timeout", 3)


def test_what_a_teacher_of_the_users_says_stays_as_it_is():
    assert named("other", "no luck") == "no luck"
    assert reason_of("no luck") is Failure.OTHER


@pytest.mark.parametrize("reason", list(Failure))
def test_every_reason_is_on_its_page(reason):
    assert f"| `{reason}` |" in PAGE.read_text(encoding="utf-8")
