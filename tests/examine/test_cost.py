"""What answers cost is reckoned from counted tokens, measured rates and dated prices."""

import numpy as np
import pytest

from potstill.config import PriceConfig
from potstill.examine.cost import break_even, by_machine, by_tokens, one_at_a_time, one_off_cost
from potstill.examine.measured import OneOff, money
from potstill.types import Estimate

PRICE = PriceConfig(input=2.0, output=10.0, as_of="2026-11")
LATENCY = Estimate(value=0.5, n=30)


def rate(value, low=None, high=None):
    return Estimate(value=value, low=low, high=high, n=100)


def test_a_thousand_requests_cost_their_tokens():
    found = by_tokens([(1000, 100), (3000, 300)], PRICE, seed=0)
    assert found.value == pytest.approx(1000 * (2000 * 2 + 200 * 10) / 1e6)  # 6.0
    assert 3.0 <= found.low < found.value < found.high <= 9.0
    assert "prices read 2026-11" in found.note


def test_a_price_without_a_date_is_said_to_have_none():
    undated = PriceConfig(input=1.0)
    assert "without a date" in by_tokens([(5, 5)], undated, seed=0).note


def test_tokens_that_nobody_counted_have_no_price():
    found = by_tokens([(0, 0), (0, 7)], PRICE, seed=0)
    assert found.value is None and "not counted" in found.note


def test_turns_of_one_conversation_are_drawn_together():
    tokens = [(1000, 0)] * 5 + [(5000, 0)] * 5
    apart = by_tokens(tokens, PRICE, seed=0)
    together = by_tokens(tokens, PRICE, seed=0, units=np.array([0] * 5 + [1] * 5))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_a_machine_costs_its_hour_over_what_it_answers_in_it():
    found = by_machine(3.6, rate(2.0, 1.0, 4.0), how="goodput with 4 at once", as_of="2026-11-22")
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.25, 1.0))
    assert "goodput with 4 at once" in found.note and "read 2026-11-22" in found.note
    assert by_machine(3.6, rate(0.0), how="x", as_of=None).value is None


def test_one_at_a_time_answers_one_over_the_mean_time():
    found = one_at_a_time([0.4, 0.6], latency=LATENCY)
    assert found.value == pytest.approx(2.0) and found.low < 2.0


def test_the_break_even_is_the_cost_once_over_what_a_request_saves():
    once = OneOff(parts={"teacher": 30.0, "machine": 10.0, "preparation": 0.0})
    found = break_even(once, rate(5.0, 4.0, 6.0), rate(1.0, 0.5, 2.0))
    assert found.value == pytest.approx(40 * 1000 / 4.0)
    assert found.low == pytest.approx(40 * 1000 / 5.5) and found.high == pytest.approx(40e3 / 2.0)


def test_prices_that_may_be_equal_leave_the_far_end_open():
    once = OneOff(parts={"teacher": 1.0})
    found = break_even(once, rate(2.0, 1.0, 3.0), rate(1.5, 1.0, 2.0))
    assert found.value == pytest.approx(2000) and found.high is None and found.note


@pytest.mark.parametrize(
    ("once", "teacher", "student", "reason"),
    [
        ({"teacher": None}, rate(2.0), rate(1.0), "not all known"),
        ({"teacher": 1.0}, None, rate(1.0), "teacher's answers cost is not known"),
        ({"teacher": 1.0}, rate(2.0), rate(None), "student's answers cost is not known"),
        ({"teacher": 1.0}, rate(1.0), rate(1.0), "nothing is saved"),
    ],
)
def test_what_cannot_be_reckoned_is_null_with_its_reason(once, teacher, student, reason):
    found = break_even(OneOff(parts=once), teacher, student)
    assert found.value is None and reason in found.note


def test_the_cost_once_is_the_bill_and_the_machines_time():
    found = one_off_cost(
        teacher_cost=12.5, stage_seconds={"train": 3600.0, "score": 1800.0}, machine_price=2.0,
        preparation=5.0, is_teacher_paid=True,
    )  # fmt: skip
    assert found.parts == {"teacher": 12.5, "machine": 3.0, "preparation": 5.0}
    assert (found.total, found.machine_seconds, found.note) == (20.5, 5400.0, "")


def test_a_part_without_a_price_makes_no_sum_of_the_others():
    found = one_off_cost(
        teacher_cost=None, stage_seconds={"train": 1.0}, machine_price=None, preparation=0.0,
        is_teacher_paid=True,
    )  # fmt: skip
    assert found.total is None
    assert "teacher.price" in found.note and "machine_price" in found.note


def test_weights_on_this_machine_send_no_bill():
    found = one_off_cost(
        teacher_cost=None, stage_seconds={"teach": 3600.0}, machine_price=1.0, preparation=0.0,
        is_teacher_paid=False,
    )  # fmt: skip
    assert found.total == 1.0 and "teacher" not in found.parts


def test_an_amount_is_written_as_people_read_it():
    assert money(None, "USD") == "not known"
    assert money(0.012345, "USD") == "0.0123 USD"
    assert money(12345.6, "EUR") == "12,346 EUR"
