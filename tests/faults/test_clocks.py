"""The wall clock may jump by years: waits stay bounded, and nobody is asked in a rush."""

import asyncio

from seeds import chance, sizes
from virtual_time import START, VirtualEndpoint, now, reply, virtually

from potstill.types import Message, Record, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))


@sizes(150, 3000)
def test_a_wall_clock_that_jumps_ends_no_run_and_starts_no_rush(num):
    random = chance("clocks", num)
    jump, endpoint = 0.0, None

    def wall_clock():
        return max(0.0, START + now() + jump)

    def serve(body):
        nonlocal jump
        if len(endpoint.sent) > 20 and random.random() < 0.2:  # the limit is known by then
            jump = random.choice([0.0, 3600.0, -3600.0, 1e8, -1e9, 4e9])
        told = {
            "anthropic-ratelimit-requests-limit": "600",
            "anthropic-ratelimit-requests-remaining": "599",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:14:00Z",
        }
        if random.random() < 0.1:
            return reply(429, headers={"Retry-After": "Tue, 14 Nov 2023 22:20:00 GMT"})
        return reply(headers=told)

    async def main():
        nonlocal endpoint
        endpoint = VirtualEndpoint(serve, seconds=0.1)
        model = endpoint.model(wall_clock=wall_clock, jitter=random.random)
        asked = (model.respond(ASK, Sampling()) for _ in range(num))
        responses = await asyncio.gather(*asked)
        assert {response.text for response in responses} == {"Yes."}
        assert now() < 700 * (2 + num / 10)
        for place in range(60, len(endpoint.sent)):
            assert endpoint.sent[place] - endpoint.sent[place - 30] > 1, "600 a minute"

    virtually(main())
