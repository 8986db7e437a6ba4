"""Requests go through in order, no faster than the endpoint allows, and not while it is down."""

import asyncio
import math

import pytest
from virtual_time import START, now, virtually

from potstill.models.admission import Admission


def admission(most=256, **settings):
    loop = asyncio.get_running_loop()
    return Admission(
        "host",
        most=most,
        clock=loop.time,
        wall_clock=lambda: START + loop.time(),
        sleep=asyncio.sleep,
        **settings,
    )


async def hold(door, seconds=1.0, *, tokens=0, used=None, outcome="answered", told=0.0, new=(0, 0)):
    """One request; returns when it was let through.

    Args:
        new: Tokens of the answer, of those asked for and of those used.
    """
    async with door.slot(tokens, new[0]) as slot:
        at = now()
        await asyncio.sleep(seconds)
        if outcome == "answered":
            door.answered(slot, used, new[1])
        elif outcome == "busy":
            door.refused_for_speed(slot, "status 429", told)
        else:
            door.failed(slot, "status 500", told)
        return at


async def crowd(door, number, **request):
    return await asyncio.gather(*(hold(door, **request) for _ in range(number)))


def test_twenty_are_let_through_at_first():
    async def main():
        door = admission()
        asked = asyncio.gather(*(hold(door) for _ in range(50)))
        await asyncio.sleep(0.5)
        assert door.num_open == 20
        await asked
        assert door.num_open == 0

    virtually(main())


def test_a_lower_limit_of_the_users_is_kept():
    async def main():
        assert max(await crowd(admission(most=3), 9)) == 2.0

    virtually(main())


def test_callers_are_let_through_in_the_order_of_arrival():
    async def main():
        door, order = admission(most=2), []

        async def ask(i):
            async with door.slot(0) as slot:
                order.append(i)
                await asyncio.sleep(1 + i % 3)
                door.answered(slot, None)

        await asyncio.gather(*(ask(i) for i in range(20)))
        assert order == list(range(20))

    virtually(main())


def test_a_clean_round_allows_five_percent_more():
    async def main():
        door = admission()
        await crowd(door, 19)
        assert door.limit == 20
        await crowd(door, 1)
        assert door.limit == 21
        await crowd(door, 21)
        assert door.limit == pytest.approx(22.05)

    virtually(main())


def test_it_grows_up_to_what_the_user_allows():
    async def main():
        door = admission(most=24)
        await crowd(door, 2000, seconds=0.01)
        assert door.limit == 24

    virtually(main())


def test_a_failure_spoils_the_round():
    async def main():
        door = admission()
        for _ in range(5):
            await crowd(door, 19)
            await hold(door, outcome="failed")
        assert door.limit == 20

    virtually(main())


def test_a_refusal_for_speed_takes_a_fifth_once_in_fifteen_seconds():
    async def main():
        door = admission()
        await crowd(door, 20, outcome="busy")
        assert door.limit == 16
        await asyncio.sleep(13.9)
        await hold(door, outcome="busy")  # ends after 14.9
        assert door.limit == 16
        await hold(door, outcome="busy")
        assert door.limit == pytest.approx(12.8)

    virtually(main())


def test_it_takes_a_fifth_once_in_the_time_that_the_endpoint_asks_for():
    async def main():
        door = admission()
        await hold(door, outcome="busy", told=100.0)
        await asyncio.sleep(98.0)
        await hold(door, outcome="busy", told=100.0)
        assert door.limit == 16
        await hold(door, outcome="busy", told=100.0)
        assert door.limit == pytest.approx(12.8)

    virtually(main())


def test_one_request_is_always_allowed():
    async def main():
        door = admission()
        for _ in range(40):
            await hold(door, seconds=20.0, outcome="busy")
            await hold(door)
        assert int(door.limit) == 1

    virtually(main())


def test_a_caller_that_goes_away_takes_no_place():
    async def main():
        door = admission(most=1)
        first = asyncio.create_task(hold(door, 10.0))
        waiting = [asyncio.create_task(hold(door)) for _ in range(3)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        waiting[1].cancel()
        assert await waiting[2] == 10.0
        await first
        assert door.num_open == 0

    virtually(main())


def test_requests_keep_to_their_minute():
    async def main():
        at = await crowd(admission(requests_per_minute=30), 60, seconds=0.1)
        assert at == pytest.approx([2.0 * i for i in range(60)])

    virtually(main())


def test_tokens_keep_to_their_minute_by_what_was_really_used():
    async def main():
        door = admission(tokens_per_minute=60_000)
        at = await crowd(door, 2000, seconds=0.5, tokens=600, used=100)
        # 1,000 tokens a second are ten requests a second, once the first have shown it.
        assert 195 <= max(at) <= 220

    virtually(main())


def test_without_usage_the_estimate_stands():
    async def main():
        at = await crowd(admission(tokens_per_minute=60_000), 100, tokens=600, used=None)
        assert max(at) == pytest.approx(60.0, rel=0.05)

    virtually(main())


def test_a_refused_request_costs_no_tokens():
    async def main():
        door = admission(tokens_per_minute=6000)
        await hold(door, seconds=0.0, tokens=6000, outcome="busy")
        assert await hold(door, tokens=100) == 0.0

    virtually(main())


OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
}


async def learn(door, headers):
    async with door.slot(0) as slot:
        door.learn(slot, headers)
        door.answered(slot, None)


def test_limits_are_learned_from_the_first_reply():
    async def main():
        door = admission()
        await learn(door, OPENAI)
        assert await crowd(door, 5, seconds=0.1) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])

    virtually(main())


def test_limits_that_the_user_gave_win_over_headers():
    async def main():
        door = admission(requests_per_minute=6000)
        await learn(door, OPENAI)
        assert max(await crowd(door, 150, seconds=0.1)) < 2

    virtually(main())


def apart(num_input, num_output):
    """Limits for the tokens of prompts and of answers, as Anthropic tells them."""
    return {
        f"anthropic-ratelimit-{kind}-tokens-{name}": str(limit)
        for kind, limit in (("input", num_input), ("output", num_output))
        for name in ("limit", "remaining")
    }


@pytest.mark.parametrize(
    ("limits", "seconds"), [((6000, 10**6), 100), ((10**6, 6000), 25), ((6000, 600), 250)]
)
def test_tokens_of_prompts_and_of_answers_keep_to_limits_of_their_own(limits, seconds):
    """100 requests of 100 and at most 50 tokens, of which 25 are used."""

    async def main():
        door = admission(most=8)
        await learn(door, apart(*limits))
        at = await crowd(door, 100, seconds=0.1, tokens=150, used=125, new=(50, 25))
        assert max(at) == pytest.approx(seconds, rel=0.1)

    virtually(main())


def test_a_token_limit_of_the_users_wins_over_those_for_prompts_and_answers():
    async def main():
        door = admission(tokens_per_minute=10**6)
        await learn(door, apart(60, 60))
        assert max(await crowd(door, 20, seconds=0.0, tokens=150, used=125)) < 1

    virtually(main())


async def broken(**settings):
    door = admission(**settings)
    await crowd(door, 50, seconds=0.0, outcome="failed")
    assert door.breaker.is_paused
    return door


def test_while_it_is_paused_one_probe_goes_through_at_a_time():
    async def main():
        door = await broken()
        failing = [asyncio.create_task(hold(door, outcome="failed")) for _ in range(5)]
        at = [await task for task in failing]
        # 15 after the pause; then 30, 60, 120 and 240 after each probe, which takes a second
        assert at == [15.0, 46.0, 107.0, 228.0, 469.0]

    virtually(main())


def test_an_answer_to_a_probe_lets_the_others_through_twenty_at_a_time():
    async def main():
        door = admission()
        await crowd(door, 2000, seconds=0.01)
        assert door.limit > 40
        await crowd(door, 48, seconds=0.0, outcome="failed")
        start = now()
        at = sorted(await crowd(door, 41))
        assert door.limit < 25
        assert at[0] == pytest.approx(start + 15)
        assert at[1:21] == pytest.approx([at[0] + 1] * 20)
        assert at[21] == pytest.approx(at[0] + 2)

    virtually(main())


def test_an_answer_from_before_the_pause_ends_it_too():
    async def main():
        door = admission()
        slow = asyncio.create_task(hold(door, 5.0))
        await asyncio.sleep(0)
        await crowd(door, 50, seconds=0.0, outcome="failed")
        assert await hold(door) == 5.0
        await slow

    virtually(main())


def test_requests_that_hang_do_not_keep_a_probe_up():
    async def main():
        door = admission()
        hanging = [asyncio.create_task(hold(door, 5000.0)) for _ in range(17)]
        busy = asyncio.create_task(hold(door, 1.0, outcome="busy"))  # only 16 from now on
        await crowd(door, 1, seconds=300.0, outcome="failed")
        assert door.breaker.is_paused
        assert await hold(door) == 315.0
        await asyncio.gather(busy, *hanging)

    virtually(main())


def test_a_probe_that_is_cancelled_makes_room_for_the_next():
    async def main():
        door = await broken()
        probe = asyncio.create_task(hold(door, 1000.0))
        await asyncio.sleep(20)
        assert door.breaker.seconds_to_probe() == math.inf
        probe.cancel()
        assert await hold(door) == 20.0

    virtually(main())


def test_the_same_admission_serves_one_event_loop_after_another():
    door = Admission("host", most=1, clock=lambda: 0.0, wall_clock=lambda: 0.0, sleep=asyncio.sleep)
    for _ in range(2):
        virtually(crowd(door, 3))
    assert door.num_open == 0
