"""Headers of rate limits are read as providers write them; a bucket keeps to what they say."""

import pytest

from potstill.models.limits import Allowance, Bucket, seconds_until, told_allowance

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("12", 12.0),
        ("0.5", 0.5),
        ("2023-11-14T22:13:50Z", 30.0),
        ("2023-11-14T22:13:50+00:00", 30.0),
        ("2023-11-14T22:13:50", 30.0),
        ("2023-11-14T22:13:00Z", 0.0),
        ("-1s", None),
        ("-1", None),
        ("nan", None),
        ("1e999", None),
        ("1s of peace", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_reset_is_read_in_all_its_forms(text, seconds):
    assert seconds_until(text, NOW) == (None if seconds is None else pytest.approx(seconds))


def openai(limit, remaining, reset, kind="requests"):
    return {
        f"x-ratelimit-limit-{kind}": limit,
        f"x-ratelimit-remaining-{kind}": remaining,
        f"x-ratelimit-reset-{kind}": reset,
    }


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (openai("60", "59", "1s"), Allowance(60, 60, 59)),
        (openai("10000", "9999", "6ms"), Allowance(10000, 60, 9999)),
        (openai("10", "4", "600ms"), Allowance(10, 1, 4)),
        (openai("600", "0", "60s"), Allowance(600, 60, 0)),
        (openai("600", "600", "0s"), Allowance(600, 60, 600)),
        ({"x-ratelimit-limit-requests": "60"}, Allowance(60, 60, 60)),
        (openai("14400", "14370", "2m59.56s"), None),  # Groq's requests are per day
        (openai("0", "0", "1s"), None),
        (openai("nan", "1", "1s"), None),
        (openai("-5", "1", "1s"), None),
        (openai("60", "lots", "later"), Allowance(60, 60, 60)),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:21Z",
            },
            Allowance(50, 60, 49),
        ),
        ({}, None),
    ],
)
def test_headers_tell_how_much_is_allowed_and_in_which_time(headers, told):
    assert told_allowance(headers, "requests", NOW) == told


def test_requests_and_tokens_are_told_apart():
    headers = openai("60", "59", "1s") | openai("30000", "29000", "2s", kind="tokens")
    assert told_allowance(headers, "tokens", NOW) == Allowance(30000, 60, 29000)


ANTHROPIC = {
    f"anthropic-ratelimit-{kind}-{name}": value
    for kind, limit in (("tokens", "8000"), ("input-tokens", "40000"), ("output-tokens", "8000"))
    for name, value in (
        ("limit", limit),
        ("remaining", "7000"),
        ("reset", "2023-11-14T22:13:50Z"),
    )
}


def test_tokens_of_prompts_and_of_answers_have_limits_of_their_own():
    assert told_allowance(ANTHROPIC, "input_tokens", NOW) == Allowance(40000, 60, 7000)
    assert told_allowance(ANTHROPIC, "output_tokens", NOW) == Allowance(8000, 60, 7000)
    assert told_allowance(ANTHROPIC, "tokens", NOW) is None, "it repeats the nearer one of both"
    alone = {name: ANTHROPIC[name] for name in ANTHROPIC if "put-" not in name}
    assert told_allowance(alone, "tokens", NOW) == Allowance(8000, 60, 7000)


def spend(bucket, amount, until):
    """What is taken by callers who always want more; seconds are only waited for."""
    now = total = 0.0
    while (now := now + bucket.seconds_to(amount, now)) < until:
        total += bucket.take(amount)
    return total


@pytest.mark.parametrize("limit", [1, 3, 60, 600, 6000])
def test_a_bucket_gives_its_limit_each_minute_and_a_second_more_at_once(limit):
    spent = spend(Bucket(limit, 60.0, now=0.0), 1, 600.0)
    assert spent == pytest.approx(10 * limit, rel=0.02, abs=1)
    bucket = Bucket(limit, 60.0, now=0.0)
    at_once = 0
    while bucket.seconds_to(1, 0.0) == 0:
        at_once += bucket.take(1)
    assert at_once <= max(1, limit / 60)


def test_a_request_larger_than_a_second_is_given_credit_and_paid_back():
    assert spend(Bucket(6000, 60.0, now=0.0), 2000, 600.0) == pytest.approx(60_000, rel=0.05)


def test_a_request_larger_than_a_minute_waits_a_minute_and_no_more():
    bucket = Bucket(1000, 60.0, now=0.0)
    bucket.take(1_000_000)
    assert 0 < bucket.seconds_to(1_000_000, 0.0) <= 60


def test_what_was_not_used_is_given_back():
    bucket = Bucket(6000, 60.0, now=0.0)
    bucket.take(1000)
    assert bucket.seconds_to(100, 0.0) == pytest.approx(10.0)
    bucket.give_back(900, 0.0)
    assert bucket.seconds_to(100, 0.0) == pytest.approx(1.0)


def test_a_server_that_has_less_left_is_believed():
    bucket = Bucket(6000, 60.0, now=0.0)
    taken = bucket.taken + bucket.take(10)
    bucket.take(40)  # another request, which the server had not seen by then
    bucket.agree(Allowance(6000, 60, 0), sent_at=0.0, taken=taken, now=0.1)
    # 0 were left, 0.1 seconds brought 10, and 40 went: 130 short of a full second's worth.
    assert bucket.seconds_to(100, 0.1) == pytest.approx(1.3)


def test_a_server_that_has_more_left_allows_no_burst():
    bucket = Bucket(60, 60.0, now=0.0)
    taken = bucket.take(1)
    bucket.agree(Allowance(60, 60, 59), sent_at=0.0, taken=taken, now=0.0)
    assert bucket.seconds_to(1, 0.0) == pytest.approx(1.0)


def test_what_is_given_back_does_not_stop_what_flows_in():
    bucket = Bucket(6000, 60.0, now=0.0)
    bucket.take(600)
    bucket.give_back(600, 4.0)  # to -500 and the 400 that flowed in
    assert bucket.seconds_to(100, 4.0) == 0
    bucket.take(600)
    assert bucket.seconds_to(100, 4.0) == pytest.approx(2.0)
