"""An endpoint in trouble is left in peace, and found again when it is well."""

import math

import pytest

from potstill.models.breaker import Breaker


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def fail(breaker, clock, times, *, every=1.0, **settings):
    for _ in range(times):
        clock.now += every
        breaker.failed("status 500", clock.now, **settings)


def test_nearly_fifty_failures_in_a_row_pause_it(breaker, clock):
    for _ in range(100):
        breaker.answered()
    fail(breaker, clock, 47)
    assert not breaker.is_paused
    fail(breaker, clock, 1)
    assert "48 of the last 50 requests failed; the last time: status 500" == breaker.reason


def test_three_answers_in_fifty_keep_it_running(breaker, clock):
    for _ in range(4):
        fail(breaker, clock, 15)
        breaker.answered()
    fail(breaker, clock, 15)
    assert not breaker.is_paused


def test_failures_that_are_rare_do_not_pause_it(breaker, clock):
    for _ in range(60):
        fail(breaker, clock, 1, every=3.0)
        breaker.answered()
        breaker.failed("status 500", clock.now)
    fail(breaker, clock, 49, every=3.0)  # 50 requests take more than two minutes
    assert not breaker.is_paused


def test_five_minutes_without_an_answer_pause_it(breaker, clock):
    breaker.answered()
    fail(breaker, clock, 1)
    fail(breaker, clock, 1, every=299.0)
    assert not breaker.is_paused
    fail(breaker, clock, 1)
    assert breaker.reason == "no answer has come for 300 seconds; the last time: status 500"


def test_an_hour_of_rest_is_no_failure(breaker, clock):
    breaker.answered()
    clock.now += 3600
    fail(breaker, clock, 1)
    assert not breaker.is_paused


def test_refusals_for_speed_count_only_when_nothing_else_comes(breaker, clock):
    fail(breaker, clock, 200, is_busy=True)
    assert not breaker.is_paused
    fail(breaker, clock, 101, is_busy=True)
    assert breaker.is_paused


def paused(breaker, clock):
    fail(breaker, clock, 50, every=0.0)
    assert breaker.is_paused
    return breaker


def test_probes_come_at_growing_intervals(breaker, clock):
    paused(breaker, clock)
    waits = []
    for _ in range(7):
        waits.append(breaker.seconds_to_probe())
        clock.now += waits[-1]
        assert breaker.seconds_to_probe() == 0
        breaker.probe_starts()
        assert breaker.seconds_to_probe() == math.inf
        breaker.failed("status 500", clock.now, is_probe=True)
        breaker.probe_ends()
    assert waits == [15, 30, 60, 120, 240, 300, 300]


def test_a_failure_from_before_the_pause_says_nothing_new(breaker, clock):
    paused(breaker, clock)
    breaker.failed("status 500", clock.now)
    assert breaker.seconds_to_probe() == 15


def test_no_probe_is_earlier_than_the_endpoint_asked_for(breaker, clock):
    fail(breaker, clock, 50, every=0.0, told_seconds=400.0)
    assert breaker.seconds_to_probe() == 400


def test_one_answer_ends_the_pause_and_the_count_begins_anew(breaker, clock):
    paused(breaker, clock)
    breaker.answered()
    assert not breaker.is_paused
    fail(breaker, clock, 40)
    assert not breaker.is_paused


def test_after_six_hours_nobody_needs_to_wait(breaker, clock):
    paused(breaker, clock)
    clock.now += 6 * 3600 - 1
    breaker.failed("status 500", clock.now, is_probe=True)
    assert not breaker.has_given_up
    clock.now += 1
    assert breaker.has_given_up
    clock.now += breaker.seconds_to_probe()
    assert not breaker.has_given_up  # one may try again
