"""An answer that comes piece by piece is the same answer, and says when its first piece came."""

import asyncio
import json
import struct
import time
from socket import SO_LINGER, SOL_SOCKET

import pytest
from aiohttp import web
from examine.streaming import OnePiece, StreamingEndpoint, chunk, spoken
from fake_anthropic import message as anthropic_message
from fake_endpoint import serving

from potstill.errors import TeacherError, TeacherRefused
from potstill.models.endpoint import EndpointModel
from potstill.models.streaming import AnthropicPieces, Lines, OpenAIPieces
from potstill.models.wire_anthropic import AnthropicWire
from potstill.types import Message, Record, Sampling

ASK = Record(id="a", messages=(Message(role="user", content="Is it?"),))


def _note(moments, start):
    moments.append(time.perf_counter() - start)


class OnceEach(StreamingEndpoint):
    """Answers one request on each connection, keeps it open, and closes it on the next one.

    Args:
        cut: How: `close` or `reset`.
        num_dead: So many new connections, from the second on, are closed unanswered too.
        after_line: Whether the next one gets the first line of its reply.
    """

    def __init__(self, *, cut="close", num_dead=0, after_line=False):
        super().__init__()
        self.cut, self.num_dead, self.after_line = cut, num_dead, after_line
        self.used, self.num_requests = [], 0

    async def handle(self, request):
        self.num_requests += 1
        transport = request.transport
        if transport not in self.used and not (self.used and self.num_dead):
            self.used.append(transport)
            return await super().handle(request)
        self.num_dead -= transport not in self.used
        await request.read()
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if self.after_line:
            await reply.prepare(request)
            await reply.write(b'data: {"choices": [{"delta": {"content": "Ye"}}]}\n\n')
            await asyncio.sleep(0.01)  # it is on its way before the connection breaks
        if self.cut == "reset":
            at_once = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, at_once)
        transport.abort()
        await asyncio.sleep(0)
        return reply


def streamed(fake, *, key=None, times=1, **settings):
    """Responses, and the moments of their pieces after each call."""

    async def main():
        async with serving(fake):
            model = EndpointModel(fake.url, "fake", key=key, **settings)
            try:
                found = []
                for _ in range(times):
                    moments, start = [], time.perf_counter()
                    response = await model.stream(
                        ASK,
                        Sampling(),
                        lambda m=moments, s=start: m.append(time.perf_counter() - s),
                    )
                    found.append((response, moments))
                return found
            finally:
                await model.close()

    return asyncio.run(main())


@pytest.mark.parametrize("cuts", [False, True])
def test_pieces_make_the_answer_that_one_piece_would_have_been(cuts):
    fake = StreamingEndpoint([(0, e) for e in spoken("Yes", ", ", "हाँ")], cuts=cuts)
    [(response, moments)] = streamed(fake)
    assert (response.text, response.finish_reason) == ("Yes, हाँ", "stop")
    assert (response.num_prompt_tokens, response.num_new_tokens) == (7, 3)
    assert len(moments) == 3, "a chunk with a role or a count is no token"
    assert fake.bodies[0]["stream"] and fake.bodies[0]["stream_options"] == {"include_usage": True}


def test_the_first_piece_is_told_when_it_comes_and_not_at_the_end():
    events = [(0.05 * (n > 0), e) for n, e in enumerate(spoken("a", "b", "c"))]
    [(_, moments)] = streamed(StreamingEndpoint(events))
    assert 0.05 <= moments[0] < moments[1] - 0.04 < moments[2] - 0.08


def test_what_a_model_thinks_before_it_answers_is_its_first_token():
    events = [chunk(reasoning_content="Hm."), chunk(content="Yes."), chunk("stop")]
    [(response, moments)] = streamed(StreamingEndpoint([(0, e) for e in events]))
    assert (response.reasoning, response.text, len(moments)) == ("Hm.", "Yes.", 2)
    assert response.num_new_tokens == 0, "nobody counted, so nothing is made up"


def test_a_server_that_knows_no_streams_answers_in_one_piece_without_a_first():
    [(response, moments)] = streamed(OnePiece())
    assert (response.text, response.num_new_tokens, moments) == ("Yes.", 3, [])


def test_a_field_that_a_server_does_not_know_is_left_out_from_then_on():
    fake = StreamingEndpoint(knows_options=False)
    found = streamed(fake, times=2)
    assert [response.text for response, _ in found] == ["Yes.", "Yes."]
    assert ["stream_options" in body for body in fake.bodies] == [True, False, False]


def test_nothing_that_is_timed_is_tried_again():
    fake = StreamingEndpoint()
    fake.script = [(503, {"error": {"message": "busy"}}), (200, {})]
    with pytest.raises(TeacherError, match="status 503: busy"):
        streamed(fake)
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("cut", ["close", "reset"])
def test_a_kept_connection_that_the_server_closed_is_replaced_at_once(cut):
    fake = OnceEach(cut=cut)
    found = streamed(fake, times=3)
    assert [response.text for response, _ in found] == ["Yes."] * 3
    assert [len(moments) for _, moments in found] == [2] * 3, "no piece is told twice"
    # First; second, dead; second, on a new one that is not kept; third, on another new one.
    assert fake.num_requests == 4


def test_the_second_try_takes_no_other_kept_connection_which_may_be_dead_too():
    fake = OnceEach()

    async def main():
        async with serving(fake):
            model = EndpointModel(fake.url, "fake")
            try:
                for num_at_once in (3, 1, 2):
                    asked = (model.stream(ASK, Sampling(), int) for _ in range(num_at_once))
                    found = await asyncio.gather(*asked)
                    assert [response.text for response in found] == ["Yes."] * num_at_once
                return model.num_retries
            finally:
                await model.close()

    assert asyncio.run(main()) == 3, "each of the three kept ones was found closed"
    assert fake.num_requests == 3 + 3 * 2


def test_a_new_connection_that_breaks_is_a_failure_and_not_tried_again():
    fake = OnceEach(num_dead=9)
    with pytest.raises(TeacherError, match="ServerDisconnectedError") as caught:
        streamed(fake, times=2)
    assert caught.value.reason == "connection"
    assert fake.num_requests == 3, "once on the kept one, once on a new one"
    fake.used, fake.num_requests = ["a connection of before"], 0
    with pytest.raises(TeacherError):
        streamed(fake)
    assert fake.num_requests == 1


@pytest.mark.parametrize("cut", ["close", "reset"])
def test_a_stream_that_breaks_after_its_first_line_is_not_asked_for_again(cut):
    fake = OnceEach(cut=cut, after_line=True)
    with pytest.raises(TeacherError) as caught:
        streamed(fake, times=2)
    assert caught.value.reason == "truncated"
    assert fake.num_requests == 2


def test_an_answer_that_breaks_off_is_none():
    events = [chunk(content="Ye"), {"error": {"code": 500, "message": "out of memory"}}]
    with pytest.raises(TeacherError, match="broke off: 500: out of memory"):
        streamed(StreamingEndpoint([(0, e) for e in events]))


def test_an_answer_without_an_end_is_an_error_row():
    [(response, _)] = streamed(StreamingEndpoint([(0, chunk(content="Ye"))]))
    assert response.finish_reason == "error"


def test_a_refused_key_is_refused_for_good_and_hidden():
    fake = StreamingEndpoint()
    fake.script = [(401, {"error": {"message": "no such key: sk-canary"}})]
    from pydantic import SecretStr

    with pytest.raises(TeacherRefused) as caught:
        streamed(fake, key=SecretStr("sk-canary"))
    assert "sk-canary" not in str(caught.value)


def test_anthropics_events_make_its_message():
    pieces = AnthropicPieces()
    told = [
        pieces.add(event)
        for event in (
            {"type": "message_start", "message": {"usage": {"input_tokens": 9}}},
            {"type": "content_block_start", "index": 0,
             "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "thinking_delta", "thinking": "Hm."}},
            {"type": "content_block_start", "index": 1,
             "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 1,
             "delta": {"type": "text_delta", "text": "Yes."}},
            {"type": "ping"},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
             "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        )
    ]  # fmt: skip
    assert told == [False, False, True, False, True, False, False, False]
    answer = AnthropicWire("http://a/v1").read(pieces.tree())
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Yes.", "Hm.", "stop")
    assert (answer.num_prompt_tokens, answer.num_new_tokens) == (9, 5)
    assert set(pieces.tree()) <= set(anthropic_message())


def test_lines_that_are_no_events_are_passed_over():
    came = []
    lines = Lines(OpenAIPieces(), lambda: came.append(1))
    for line in (b": hello", b"event: x", b"", b'data: {"choices": [{"delta": {"content": "a"}}]}',
                 b"data: [DONE]"):  # fmt: skip
        lines.add(line)
    assert came == [1] and lines.tree()["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (OpenAIPieces, [chunk(reasoning_content="Hm"), chunk(content="Ye"), chunk(content="s")]),
        (
            AnthropicPieces,
            [
                {"type": "content_block_delta", "delta": {"thinking": "Hm"}},
                {"type": "content_block_delta", "index": 1, "delta": {"text": "Ye"}},
                {"type": "content_block_delta", "index": 1, "delta": {"text": "s"}},
            ],
        ),
    ],
)
def test_the_text_is_told_as_it_comes_and_thoughts_are_not(pieces, lines):
    told = []
    stream = Lines(pieces(told.append), lambda: None)
    for event in lines:
        stream.add(f"data: {json.dumps(event)}".encode())
    assert told == ["Ye", "s"]
