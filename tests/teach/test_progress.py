"""Rates are those of the last half minute, and a failure's kind is read from its text."""

import json

import pytest

from potstill.models.failures import Failure, of_status, reason_of
from potstill.pipeline.context import Context
from potstill.rundir import RunDir
from potstill.teach.progress import Asking, Meter


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_forget_what_is_long_ago():
    clock = Clock()
    meter = Meter(clock)
    for second in range(100):
        clock.now += 1
        for _ in range(10 if second < 60 else 2):
            meter.answered(5)
        meter.rates()
    assert meter.rates() == (pytest.approx(2, rel=0.05), pytest.approx(10, rel=0.05))
    assert meter.num_answers == 680


def test_there_is_no_rate_before_time_has_passed():
    assert Meter(Clock()).rates() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("http_400: status 400: no", Failure.HTTP_400),
        ("timeout: host failed 6 times; the last time: TimeoutError", Failure.TIMEOUT),
        ("ValueError: of a teacher of the user's own", Failure.OTHER),
        ("timeout", Failure.OTHER),
        ("", Failure.OTHER),
    ],
)
def test_an_error_begins_with_its_reason(error, reason):
    assert reason_of(error) is reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (429, "busy"),
        (500, "server_error"),
        (529, "server_error"),
        (422, "http_422"),
        (418, "http_4xx"),
    ],
)
def test_a_status_has_one_reason(status, reason):
    assert of_status(status) == reason


def test_the_text_says_what_a_person_wants_to_know():
    state = Asking(
        requested=500,
        answered=40,
        failed=3,
        reasons={"timeout": 2, "http_422": 1},
        answers_per_second=12.3,
        tokens_per_second=410.2,
        cost=0.0132,
        projected_cost=0.2094,
        unused_cost=0.001,
    )
    assert state.text == (
        "12.3/s, 410 tokens/s, 3 failed (timeout 2, http 422 1), "
        "cost 0.0132 of about 0.21, 0.001 unused"
    )
    assert Asking(requested=5, answered=0).text == ""


def test_figures_are_kept_for_other_viewers_every_few_seconds(tmp_path):
    run = RunDir(tmp_path)
    keep = Context(config=None, run=run).figures("teach")
    for answered in (1, 2, 3):
        keep(Asking(requested=5, answered=answered))
    (line,) = run.events.read_text().splitlines()
    row = json.loads(line)
    assert (row["stage"], row["kind"], row["answered"]) == ("teach", "figures", 1)


def test_a_paused_teacher_and_a_stopping_run_say_so():
    state = Asking(requested=5, answered=1, in_flight=3, is_stopping=True, state="paused until 3")
    assert state.text == "stopping: 3 on their way, paused until 3"
