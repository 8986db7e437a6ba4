"""Long work on the event loop leaves room for everybody else."""

import asyncio
import gc
import json

import pytest
from virtual_time import VirtualEndpoint, reply, virtually

from potstill.models.turns import Turns
from potstill.types import Message, Record, Sampling


def test_between_two_turns_the_loop_comes_round():
    async def main():
        turns, order = Turns(), []

        async def work(name):
            async with turns.next():
                order.append(name)

        async def others():
            for _ in range(12):
                order.append(".")
                await asyncio.sleep(0)

        await asyncio.gather(work("a"), work("b"), work("c"), others())
        return "".join(order)

    order = asyncio.run(main())
    assert order.replace(".", "") == "abc"
    assert all(pair not in order for pair in ("ab", "bc"))


def test_turns_follow_a_change_of_event_loop():
    turns = Turns()

    async def work():
        async with turns.next():
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(work(), work())

    asyncio.run(main())
    asyncio.run(main())


def test_a_failure_ends_its_turn():
    async def main():
        turns = Turns()
        with pytest.raises(ValueError):
            async with turns.next():
                raise ValueError
        async with turns.next():
            pass

    asyncio.run(main())


def long_completion(num_positions):
    entries = [{"token": f" {n}", "bytes": [32, n], "logprob": -float(n)} for n in range(1, 21)]
    position = {**entries[0], "top_logprobs": entries}
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    return {"choices": [{**choice, "logprobs": {"content": [position] * num_positions}}]}


@pytest.mark.parametrize("is_on", [True, False])
def test_a_long_answer_is_read_without_a_search_for_cycles(is_on):
    """Its ten thousand dicts would set it off a dozen times."""
    body, collected = json.dumps(long_completion(400)).encode(), []

    async def main():
        model = VirtualEndpoint(lambda asked: reply(body=body)).model()
        asked = Record(id="r", messages=(Message(role="user", content="?"),))
        gc.collect()
        gc.callbacks.append(lambda phase, info: collected.append(phase))
        return await model.respond(asked, Sampling(top_logprobs=20))

    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        response = virtually(main())
        assert gc.isenabled() == is_on
    finally:
        gc.callbacks.pop()
        (gc.enable if was_on else gc.disable)()
    assert len(response.logprobs.sampled) == 4 * 400
    assert collected.count("start") <= 3
