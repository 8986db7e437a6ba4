"""Requests are tried again as often as that may help, for hours if need be, in virtual time."""

import asyncio
import email.utils
import logging
import random

import aiohttp
import pytest
import yarl
from pydantic import SecretStr
from virtual_time import START, VirtualEndpoint, now, reply, virtually

from potstill.config import TeacherConfig
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.chat import open_chat_model
from potstill.types import Message, Record, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))
CANARY = "sk-canary-5f0c7e"
SHORT = Sampling(max_new_tokens=16)
URL = yarl.URL("http://h/v1")
SENT = aiohttp.RequestInfo(URL, "POST", {"Authorization": f"Bearer {CANARY}"}, URL)


async def ask(model):
    """The answer's text, or the error."""
    try:
        return (await model.respond(ASK, SHORT)).text
    except TeacherError as error:
        return error


async def ask_all(model, number, workers=256, outcomes=None):
    """What became of so many requests, asked as `generate` does."""
    outcomes, todo = [] if outcomes is None else outcomes, iter(range(number))

    async def work():
        for _ in todo:
            outcomes.append(await ask(model))

    await asyncio.gather(*(work() for _ in range(workers)))
    return outcomes


def scripted(*script):
    """Serves the script, then answers."""
    steps = list(script)
    return lambda body: steps.pop(0) if steps else reply()


def play(*script, number=1, workers=1, seconds=0.0, **settings):
    """Outcomes, the endpoint that was asked, and the second at the end."""

    async def main():
        endpoint = VirtualEndpoint(scripted(*script), seconds)
        outcomes = await ask_all(endpoint.model(**settings), number, workers)
        return outcomes, endpoint, now()

    return virtually(main())


@pytest.mark.parametrize(
    "fault",
    [
        *(reply(status) for status in (408, 409, 425, 429, 500, 502, 503, 529)),
        reply(body=b'{"choices": [{"mess'),
        reply(body=b"<html>welcome</html>"),
        reply(body=b""),
        reply(body=b"null"),
        reply(body=b'{"error": {"message": "out of memory"}}'),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("not all there"),
        ConnectionResetError("gone"),
        TimeoutError(),
    ],
)
def test_what_may_pass_is_tried_again(fault):
    outcomes, endpoint, _ = play(fault)
    assert outcomes == ["Yes."]
    assert len(endpoint.sent) == 2


@pytest.mark.parametrize("status", [400, 413, 415, 422, 451])
def test_other_refusals_of_a_prompt_are_dead_at_once(status):
    async def main():
        endpoint = VirtualEndpoint(scripted(reply(status, {"error": {"message": "x" * 9000}})))
        response = await endpoint.model().respond(ASK, SHORT)
        assert response.finish_reason == "error"
        assert len(endpoint.sent) == 1
        assert 4096 <= len(response.error) < 4200  # what it said is kept, up to 4 KiB

    virtually(main())


def test_waits_are_drawn_from_ever_longer_times_up_to_a_minute():
    _, endpoint, _ = play(*[reply(500)] * 5, jitter=lambda: 0.99)
    waits = [b - a for a, b in zip(endpoint.sent, endpoint.sent[1:], strict=False)]
    assert waits == pytest.approx([0.99 * s for s in (2, 4, 8, 16, 32)])
    _, endpoint, _ = play(*[reply(429)] * 9, jitter=lambda: 0.99)
    assert endpoint.sent[9] - endpoint.sent[8] == pytest.approx(0.99 * 60)


def test_six_failures_are_the_end():
    (error,), endpoint, _ = play(*[reply(500)] * 20)
    assert "failed 6 times" in str(error)
    assert len(endpoint.sent) == 6


def test_bodies_that_are_no_answer_and_failures_count_together():
    (error,), endpoint, _ = play(*[reply(500), reply(body=b"?")] * 20)
    assert "failed 6 times" in str(error)
    assert len(endpoint.sent) == 6


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7.5),
        (email.utils.formatdate(START + 30, usegmt=True), 30.5),
        ("-7", 1.0),
        ("NaN", 1.0),
        ("1e9", 600.5),
        ("in a while", 1.0),
        (None, 1.0),
    ],
)
def test_retry_after_is_heeded_in_all_its_forms(told, seconds):
    headers = {} if told is None else {"Retry-After": told}
    outcomes, endpoint, end = play(reply(429, headers=headers))
    assert outcomes == ["Yes."]
    assert end == pytest.approx(seconds)
    assert len(endpoint.sent) == 2


def test_a_waiting_retry_holds_no_slot():
    def serve(body):
        return reply(429, headers={"Retry-After": "100"}) if now() == 0 else reply()

    async def main():
        endpoint = VirtualEndpoint(serve)
        model = endpoint.model(max_in_flight=1)
        asked = [asyncio.create_task(ask(model)) for _ in range(3)]
        await asyncio.gather(*asked)
        # One was sent away at 0; the other two are answered while it waits.
        assert endpoint.sent == pytest.approx([0.0, 1.0, 2.0, 101.5])

    virtually(main())


def test_retries_are_fifty_or_a_fifth_of_the_answers():
    """Four of ten requests fail, in a way that retries cannot keep up with."""
    chance = random.Random(0)

    async def main():
        endpoint = VirtualEndpoint(lambda body: reply(500 if chance.random() < 0.4 else 200), 0.1)
        outcomes = await ask_all(endpoint.model(), 2000)
        dead = [str(outcome) for outcome in outcomes if outcome != "Yes."]
        num_retries = len(endpoint.sent) - 2000
        assert dead and "was not asked again" in dead[0]
        assert num_retries <= max(50, 0.2 * len(endpoint.answered))
        assert num_retries >= 0.15 * len(endpoint.answered)

    virtually(main())


@pytest.mark.parametrize("start", [6, 100])
def test_an_outage_of_ten_minutes_costs_no_prompt(start):
    """Not even at the beginning, when there are few answers that retries could be paid from."""
    end = start + 600

    def serve(body):
        return ConnectionRefusedError("no") if start <= now() < end else reply()

    async def main():
        endpoint = VirtualEndpoint(serve, 5.0)
        model = endpoint.model(jitter=random.Random(0).random)
        watched = asyncio.create_task(watch(model))
        outcomes = await ask_all(model, 1500, workers=64)
        states = await watched
        assert outcomes == ["Yes."] * 1500
        assert sum(start + 60 <= at < end for at in endpoint.sent) < 8  # it was left in peace
        assert min(at for at in endpoint.answered if at > start + 20) < end + 310
        assert states[0] == "running"
        assert "requests failed; the last time: ConnectionRefusedError no" in states[1]
        assert model.state == "running"

    async def watch(model):
        found = []
        while now() < end + 400:
            if not found or model.state.split(" ")[0] != found[-1].split(" ")[0]:
                found.append(model.state)
            await asyncio.sleep(1)
        return found

    virtually(main())


def test_a_pause_says_until_when_and_why(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    seen = []

    def serve(body):
        return reply(503) if now() < 10 else reply()

    async def main():
        model = VirtualEndpoint(serve).model()
        asked = asyncio.create_task(ask_all(model, 60))
        await asyncio.sleep(9)
        seen.append(model.state)
        await asked
        seen.append(model.state)

    virtually(main())
    assert seen[0].startswith("paused until ") and seen[0].endswith("status 503: no")
    assert seen[1] == "running"
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "virtual is paused",
        "virtual answers again",
    ]


def test_one_poisonous_prompt_does_not_stop_the_others():
    def serve(body):
        poisoned = "poison" in body["messages"][0]["content"]
        return TimeoutError() if poisoned else reply()

    async def main():
        model = VirtualEndpoint(serve, 60.0).model()
        poison = Record(id="p", messages=(Message(role="user", content="poison"),))
        with pytest.raises(TeacherError, match="failed 6 times"):
            await model.respond(poison, SHORT)  # the only one left, and it pauses the endpoint
        assert await ask(model) == "Yes."

    virtually(main())


def test_an_endpoint_that_never_comes_back_ends_the_run_after_hours():
    def serve(body):
        return reply() if now() < 10 else ConnectionRefusedError("no")

    async def main():
        model = VirtualEndpoint(serve).model(jitter=random.Random(0).random)
        outcomes = await ask_all(model, 5000, workers=200)
        refused = [o for o in outcomes if isinstance(o, TeacherRefused)]
        assert "tried for hours in vain" in str(refused[0])
        assert 6 * 3600 < now() < 6.5 * 3600

    virtually(main())


class Limited:
    """A server that allows so many requests a minute and refuses the rest.

    Args:
        counts_refused: A refused request uses up allowance too, so that a crowd that does not
            let go is never served.
    """

    def __init__(self, per_minute, *, headers=False, retry_after=None, counts_refused=False):
        self.limit = self.left = float(per_minute)
        self.headers, self.retry_after, self.counts_refused = headers, retry_after, counts_refused
        self.at = 0.0

    def __call__(self, body):
        rate = self.limit / 60
        self.left = min(self.limit, self.left + (now() - self.at) * rate)
        self.at = now()
        is_allowed = self.left >= 1
        if is_allowed or self.counts_refused:
            self.left = max(0.0, self.left - 1)
        told = {}
        if self.headers:
            told = {
                "x-ratelimit-limit-requests": f"{self.limit:.0f}",
                "x-ratelimit-remaining-requests": f"{int(self.left)}",
                "x-ratelimit-reset-requests": f"{int(1000 * (self.limit - self.left) / rate)}ms",
            }
        if is_allowed:
            return reply(headers=told)
        if self.retry_after is not None:
            told["Retry-After"] = self.retry_after
        return reply(429, headers=told)


async def share_used(serve, *, limit, seconds=1.0, minutes=5, **settings):
    """Answers in five minutes after the first one, over what the server allows in that time."""
    endpoint = VirtualEndpoint(serve, seconds)
    model = endpoint.model(jitter=random.Random(0).random, **settings)
    outcomes = []
    asked = asyncio.create_task(ask_all(model, 10**9, 64, outcomes))
    await asyncio.sleep(60 * (minutes + 1))
    asked.cancel()
    assert set(outcomes) == {"Yes."}
    answers = sum(60 <= at < 60 * (minutes + 1) for at in endpoint.answered)
    return answers / (limit * minutes), endpoint


@pytest.mark.parametrize("limit", [20, 240])
@pytest.mark.parametrize(
    ("server", "settings"),
    [
        ({}, {"given": True}),
        ({"headers": True}, {}),
        ({"headers": True, "retry_after": "1"}, {}),
        ({"retry_after": "5"}, {}),
        ({}, {}),
    ],
)
def test_nine_tenths_of_an_allowance_are_used(limit, server, settings):
    if settings:
        settings = {"requests_per_minute": limit}

    async def main():
        share, endpoint = await share_used(Limited(limit, **server), limit=limit, **settings)
        assert 0.9 <= share <= 1.05
        if settings or server.get("headers"):
            assert len(endpoint.sent) < 1.1 * len(endpoint.answered) + 30  # hardly any refusals

    virtually(main())


def test_nine_tenths_of_a_token_allowance_are_used():
    """18 tokens are asked for and 10 used; 2,400 a minute are 240 answers."""

    async def main():
        share, _ = await share_used(lambda body: reply(), limit=240, tokens_per_minute=2400)
        assert 0.9 <= share <= 1.05

    virtually(main())


def test_a_crowd_before_a_slow_counter_loses_nobody():
    """64 prompts share five answers a minute, so each is refused for a quarter of an hour."""

    async def main():
        share, _ = await share_used(Limited(5), limit=5, seconds=0.05, minutes=45)
        assert share > 0.9

    virtually(main())


def test_a_prompt_that_is_refused_for_speed_for_ever_is_given_up():
    """Larger than the account's tokens per minute, say; it is the only one left."""

    async def main():
        endpoint = VirtualEndpoint(lambda body: reply(429))
        with pytest.raises(TeacherError, match="failed 6 times"):
            await endpoint.model().respond(ASK, SHORT)
        assert now() < 3600

    virtually(main())


@pytest.mark.parametrize("retry_after", ["0", "1", "-1", "nan", "1e9", "soon", None])
def test_a_crowd_that_is_punished_for_asking_is_served_in_the_end(retry_after):
    """A server that counts refused requests gives nothing until it is left in peace."""

    async def main():
        server = Limited(6, retry_after=retry_after, counts_refused=True)
        server.left = 0.0
        endpoint = VirtualEndpoint(server)
        model = endpoint.model(jitter=random.Random(0).random)
        asked = asyncio.create_task(ask_all(model, 10**9))
        await asyncio.sleep(1200)
        asked.cancel()
        assert endpoint.answered

    virtually(main())


def test_limits_reach_the_endpoint_from_the_config():
    config = TeacherConfig(url="http://h/v1", model="m", requests_per_minute=7, tokens_per_minute=9)
    model = open_chat_model(config, max_in_flight=5)
    assert model.max_in_flight == 5
    assert {k: b.limit for k, b in model._client._admission._buckets.items()} == {
        "requests": 7,
        "tokens": 9,
    }
    assert open_chat_model(config).max_in_flight == 256


@pytest.mark.parametrize(
    "fault",
    [
        reply(500, {"error": {"message": f"who is {CANARY}?"}}),
        reply(500, f"<html>{'x' * 495}{CANARY}".encode()),
        reply(400, f"{' ' * 4090}{CANARY}".encode()),
        reply(401, {"error": {"message": f"bad key {CANARY}"}}),
        reply(302, headers={"Location": f"http://h/{CANARY}"}),
        reply(body=f"so you are {CANARY}".encode()),
        reply(body={"choices": [], "you": CANARY}),
        aiohttp.ClientPayloadError(f"cut after Bearer {CANARY}"),
        ConnectionResetError(f"Authorization: Bearer {CANARY}"),
        aiohttp.ClientResponseError(SENT, (), status=500, message=f"Bearer {CANARY}"),
    ],
)
def test_the_key_is_in_no_error_log_or_repr(fault, caplog):
    caplog.set_level(logging.DEBUG)
    said = []

    async def main():
        model = VirtualEndpoint(lambda body: fault, 0.0).model(key=SecretStr(CANARY))
        asked = asyncio.create_task(ask_all(model, 200))
        await asyncio.sleep(600)
        asked.cancel()
        try:
            said.append((await model.respond(ASK, SHORT)).model_dump_json())
        except TeacherError as error:
            links = [error, error.__cause__, error.__context__]
            said.extend(f"{link} {link!r} {vars(link)}" for link in links if link)
        said.append(f"{model!r} {model.state} {model.__dict__} {model._client.__dict__}")

    virtually(main())
    assert said[0]
    assert "canary" not in "".join(said) + caplog.text
