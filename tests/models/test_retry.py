"""Waiting follows the server where it says something sensible, and chance otherwise."""

import email.utils

import pytest

from potstill.models.retry import retry_after_seconds, wait_seconds

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", None),
        ("nan", None),
        ("1e9", 600.0),
        ("inf", 600.0),
        ("soon", None),
        ("", None),
        (email.utils.formatdate(NOW + 30, usegmt=True), 30.0),
        (email.utils.formatdate(NOW - 30, usegmt=True), 0.0),
        (email.utils.formatdate(NOW + 1e6, usegmt=True), 600.0),
    ],
)
def test_retry_after_in_all_its_forms(text, seconds):
    assert retry_after_seconds({"Retry-After": text}, NOW) == seconds


def test_milliseconds_are_understood_too():
    assert retry_after_seconds({"retry-after-ms": "1500"}, NOW) == 1.5


def test_without_a_word_the_wait_is_full_jitter_up_to_a_minute():
    def wait(attempt, jitter):
        return wait_seconds(attempt, {}, jitter=jitter, wall_clock=NOW)

    assert wait(3, 0.0) == 0.0
    assert wait(3, 0.5) == 4.0
    assert wait(30, 0.999) < 60
