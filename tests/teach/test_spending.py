"""What was paid and is of no use is told apart, wherever money is told."""

import asyncio

import pytest
from teach.fakes import FakeTeacher, prompts
from teach.test_generate import QA, ask

from potstill.config import GenerationConfig, PriceConfig
from potstill.errors import TeacherError
from potstill.models.failures import Failure, gave_up
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.teach.spending import Bill, spending_lines, waste_of
from potstill.types import Rejection, Response, Sampling


def response(number=0, text="fine", **changes):
    return Response(
        **{
            "record_id": f"r{number}",
            "text": text,
            "finish_reason": "stop",
            "num_prompt_tokens": 10,
            "num_new_tokens": 5,
            "cost": 0.5,
            **changes,
        }
    )


FATES = {
    "": response(0),
    "length": response(1, finish_reason="length"),
    "refusal": response(2, finish_reason="content_filter"),
    "empty": response(3, text=" "),
    "error": response(4, text="", finish_reason="error", error="unfinished: ended", num_unread=1),
    "cancelled": response(
        5, text="", finish_reason="error", error="cancelled: x", cost=None,
        num_prompt_tokens=0, num_new_tokens=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fate", FATES)
def test_an_answer_is_of_use_or_has_a_reason_why_not(fate):
    assert waste_of(FATES[fate]) == fate


def teacher():
    """Gives each fate in turn; the dead one fails with what it may have cost."""
    lost = gave_up(Failure.TRUNCATED, "cut six times", num_unread=6)
    said = [*(FATES[fate] for fate in ("", "length", "refusal", "empty", "error")), lost]

    def say(record, sampling):
        found = said[int(record.id[1:])]
        return found if found is lost else found.model_copy(update={"record_id": record.id})

    return FakeTeacher(say, price=PriceConfig(input=1, output=1))


def test_a_call_of_generate_counts_its_waste_apart(tmp_path):
    told = []
    config = GenerationConfig(pilot=0, min_success_ratio=0)
    work = generate(
        teacher(), prompts(6), tmp_path / "a", task=QA, config=config, on_asking=told.append
    )
    counts = asyncio.run(work)
    assert (counts.cost, counts.unused_cost) == (2.5, 2.0)
    assert (counts.num_unused, counts.num_unused_tokens, counts.num_unread) == (5, 60, 7)
    last = told[-1]
    assert (last.num_unused, last.num_unused_tokens, last.unused_cost) == (5, 60, 2.0)
    assert last.num_unread == 7
    assert last.reasons == {"unfinished": 1, "truncated": 1}
    with Ledger(tmp_path / "a") as ledger:
        found = ledger.verify()
    assert (found.num_tokens, found.num_unused_tokens, found.num_unread) == (75, 60, 7)
    assert (found.cost, found.unused_cost) == (2.5, 2.0)
    assert "75 tokens (cost 2.5), 60 (cost 2) unused; 7 attempts unread" in found.text


def test_reasons_add_up_to_the_failures(tmp_path):
    """A later turn of a conversation whose first one failed was never asked."""
    from teach.test_generate import TALK

    from potstill.tasks import get_task

    told = []
    fails = FakeTeacher(lambda record, sampling: gave_up(Failure.BUSY, "no"))
    config = GenerationConfig(pilot=0, min_success_ratio=0)
    asyncio.run(
        generate(
            fails, [TALK], tmp_path / "a", task=get_task("conversation"), config=config,
            on_asking=told.append,
        )
    )  # fmt: skip
    assert told[-1].reasons == {"busy": 1, "blocked": 1}
    assert told[-1].failed == 2


def test_attempts_that_may_have_been_paid_count_against_the_limit(tmp_path):
    """Each may have cost as much as a whole answer at most."""
    lost = gave_up(Failure.TIMEOUT, "too slow", num_unread=6)
    slow = FakeTeacher(lambda record, sampling: lost, price=PriceConfig(input=10, output=10))
    with pytest.raises(TeacherError, match=r"max_cost = 0\.02 is reached: .* of it unread, and"):
        ask(
            slow,
            prompts(50),
            tmp_path / "a",
            max_cost=0.02,
            max_new_tokens=100,
            min_success_ratio=0,
        )
    assert len(slow.asked) < 6


def test_a_bill_follows_the_checks_and_a_conversation_has_one_fate():
    bill = Bill()
    first = [response(0), response(0, turn=1), response(0, sample=1, num_unread=2)]
    rejected = [Rejection(record_id="r0", sample=1, check="task", reason="off_label")]
    bill.add_sorted(first, rejected)
    bill.add_sorted([response(1, cost=None)], [])
    one = {"num": 1, "num_prompt_tokens": 10, "num_new_tokens": 5, "cost": 0.5, "num_unread": 2}
    assert bill.facts["accepted"] == {
        "num": 3, "num_prompt_tokens": 30, "num_new_tokens": 15, "cost": 1.0
    }  # fmt: skip
    assert bill.facts["by_reason"] == {"off_label": one} and bill.facts["unused"] == one
    lines = spending_lines({**bill.facts, "elsewhere": 0.25})
    assert lines == [
        "Tokens paid: 45 for 3 accepted answers (cost 1); 15 for 1 that are not used (cost 0.5), "
        "25.0% of all.",
        "2 attempts brought nothing that could be read, and may have been paid for besides: the "
        "provider's bill says whether.",
        "0.25 more were spent on other answers, which are kept: to write new prompts, for "
        "auditions, or to prompts and settings of an earlier run.",
    ]


def test_nothing_is_said_where_nothing_was_counted():
    bill = Bill()
    bill.add_sorted([response(0, num_prompt_tokens=0, num_new_tokens=0, cost=None)], [])
    assert spending_lines(bill.facts) == []


def test_an_answer_with_the_cost_of_a_failure_is_spent(tmp_path):
    """A server that ends an answer in its own way has counted its tokens."""
    from potstill.teach.purse import Purse

    purse = Purse(PriceConfig(input=1, output=1), None, spent=0.0)
    reserved = asyncio.run(purse.reserve(prompts(1)[0], Sampling()))
    purse.settle(reserved, FATES["error"])
    assert (purse.spent_now, purse.unsure) == (0.5, reserved)
