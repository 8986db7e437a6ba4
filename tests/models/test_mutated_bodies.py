"""Ten thousand spoilt answers: each is an answer, a fault or a refusal, and none is a crash."""

import copy
import json

import pytest
from fake_endpoint import completion
from seeds import chance as chances
from seeds import sizes
from virtual_time import VirtualEndpoint, reply, virtually

from potstill.config import PriceConfig
from potstill.errors import TeacherError
from potstill.models.failures import Failure, reason_of
from potstill.models.limits import seconds_until, told_allowance
from potstill.models.retry import retry_after_seconds
from potstill.types import Message, Record, Response, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))
TOP = [
    {"token": " a", "bytes": [32, 97], "logprob": -0.5},
    {"token": "é", "bytes": None, "logprob": -3.0},
]
LOGPROBS = {"content": [{**TOP[0], "top_logprobs": TOP}]}
OPENAI = [
    completion("Ja.", logprobs=LOGPROBS),
    completion("", message={"refusal": "I can't."}),
    completion([{"type": "text", "text": "in parts"}], message={"reasoning_content": "because"}),
    completion("cut", finish_reason="length"),
    {"error": {"message": "no", "code": "x", "type": "y", "innererror": {"code": "z"}}},
]
ANTHROPIC = [
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Ja."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 1},
    },
    {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
]
HALF = b'\\ud800"'
ODD = [
    *(None, True, False, 0, -1, 10**400, 1e308, 0.5),
    *("", "\0", "\ud800", "\u2028", "\x1b[31m", "NaN"),
    *([], {}, [None], [[]], {"": None}, {"text": 1}, [{"text": {}}], "x" * 10_000),
]


def damaged(data, chance):
    """Bytes changed, dropped, doubled or cut at random."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, to = (chance.randrange(len(data) + 1) for _ in range(2))
        kind = chance.randrange(5)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del data[min(at, to) : max(at, to)]
        elif kind == 2:
            data[at:at] = data[min(at, to) : max(at, to)]
        elif kind == 3:
            data[at:at] = chance.choice([b"[" * 5000, b"\xef\xbb\xbf", b"NaN", b"1e999", HALF])
        else:
            del data[at:]
    return bytes(data)


def twisted(tree, chance):
    """The JSON of a tree in which one or two values are something else, or gone."""
    tree = json.loads(json.dumps(tree))
    for _ in range(chance.randint(1, 2)):
        places = list(walk(tree))
        if not places:
            break
        parent, key = chance.choice(places)
        if chance.random() < 0.25:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(chance.choice(ODD))
    return json.dumps(tree, allow_nan=True).encode()


def walk(tree):
    """(container, key) of every value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from walk(value)


def spoilt(trees, number, chance):
    for i in range(number):
        tree = chance.choice(trees)
        kind = i % 3
        if kind == 0:
            yield damaged(json.dumps(tree).encode(), chance)
        elif kind == 1:
            yield twisted(tree, chance)
        else:
            yield chance.randbytes(chance.randrange(60))


@sizes(1000, 10_000)
@pytest.mark.parametrize(("api", "trees"), [("openai", OPENAI), ("anthropic", ANTHROPIC)])
@pytest.mark.parametrize("status", [200, 400, 403, 429, 500])
def test_a_spoilt_body_is_an_answer_or_an_error_of_ours(api, trees, status, num):
    chance = chances("bodies", api, status)
    sampling = Sampling(max_new_tokens=16, top_logprobs=2 if api == "openai" else 0)
    kinds = set()

    async def main():
        endpoint = VirtualEndpoint(seconds=0.0)
        for data in spoilt(trees, num, chance):
            script = [reply(body=trees[0]), reply(status, data)]
            endpoint.serve = lambda body, script=script: script.pop()
            model = endpoint.model(api=api, price=PriceConfig(input=1, output=1))
            try:
                response = await model.respond(ASK, sampling)
            except TeacherError as error:
                kinds.add(type(error).__name__)
                assert type(error) is not TeacherError or Failure(error.reason) != Failure.OTHER
            else:
                kinds.add(response.finish_reason if script else "asked again")
                if response.finish_reason == "error":
                    assert reason_of(response.error) != Failure.OTHER
                Response.model_validate_json(response.model_dump_json())

    virtually(main())
    expected = {200: {"stop", "asked again"}, 400: {"error"}, 403: {"TeacherRefused"}}
    assert expected.get(status, {"asked again"}) <= kinds


@sizes(3000, 100_000)
def test_random_headers_are_read_or_passed_over(num):
    chance = chances("headers")
    alphabet = "0123456789.-+eEinfaINF smhdTZ:,GMTÄ\0١"
    names = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
    for _ in range(num):
        text = "".join(chance.choice(alphabet) for _ in range(chance.randrange(12)))
        headers = {name: text for name in names} | {"x-ratelimit-reset-requests": text[::-1]}
        told = told_allowance(headers, "requests", 1e9)
        assert told is None or 1 <= told.limit < float("inf")
        for read in (seconds_until(text, 1e9), retry_after_seconds({"Retry-After": text}, 1e9)):
            assert read is None or 0 <= read < float("inf")
    dates = ("Fri, 9 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 -0000")
    for text in dates:
        assert retry_after_seconds({"Retry-After": text}, 1e9) in (None, 0.0)
