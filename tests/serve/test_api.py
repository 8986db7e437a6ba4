"""OpenAI's own client is answered by weights of this machine as it is by OpenAI."""

import asyncio
import http.client
import json
import socket
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from serve.running import client, counted, running
from tiny import tiny_llama

from potstill.errors import ConfigError
from potstill.models.endpoint import EndpointModel
from potstill.models.local import LocalModel
from potstill.models.logprobs import Capture
from potstill.serve.asked import MOST_LOGPROBS
from potstill.serve.run import open_door
from potstill.types import Message, Record, Response, Sampling

ASK = [{"role": "user", "content": "Where is my order?"}]
RECORD = Record(id="a", messages=(Message(role="user", content="Where is my order?"),))


def opened(folder):
    return LocalModel(folder, dtype="float32", batch_size=4, capture=Capture(MOST_LOGPROBS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def server(folder):
    with running(opened(folder)) as found:
        yield found


@pytest.fixture
def chat(server):
    def ask(**changes):
        asked = {"model": "student", "messages": ASK, "max_tokens": 12, **changes}
        return client(server).chat.completions.create(**asked)

    return ask


def by_the_house(folder, sampling):
    """What the same weights answer when nobody stands between."""

    async def main():
        model = opened(folder)
        try:
            return await model.respond(RECORD, sampling)
        finally:
            await model.close()

    return asyncio.run(main())


def refused(ask, **request):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(**request)
    return caught.value


def test_a_chat_is_answered_as_the_weights_answer(chat, folder):
    found = chat(temperature=0)
    wanted = by_the_house(folder, Sampling(max_new_tokens=12))
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason == "length"
    assert found.object == "chat.completion" and found.model == "student"
    assert found.usage.prompt_tokens == wanted.num_prompt_tokens
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == wanted.num_prompt_tokens + 12


def test_a_stream_adds_up_to_the_answer(chat):
    whole = chat(temperature=1, seed=3).choices[0].message.content
    chunks = list(chat(temperature=1, seed=3, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_asking_for_it_no_chunk_counts_tokens(chat):
    assert all(chunk.choices and chunk.usage is None for chunk in chat(stream=True))


def test_a_stop_sequence_ends_the_answer_and_none_of_it_is_streamed(chat):
    whole = chat().choices[0].message.content
    stop = whole[4:7]
    before = whole[: whole.index(stop)]
    found = chat(stop=[stop]).choices[0]
    assert (found.message.content, found.finish_reason) == (before, "stop")
    chunks = list(chat(stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before


def test_a_seed_makes_an_answer_come_again(chat):
    def said(**changes):
        return chat(temperature=1.5, **changes).choices[0].message.content

    assert said(seed=1) == said(seed=1)
    assert len({said(seed=seed) for seed in range(4)}) > 1
    assert len({said() for _ in range(4)}) > 1


def test_several_answers_have_random_numbers_of_their_own(chat):
    found = chat(n=3, temperature=1.5, seed=7)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in found.choices]
    assert len(set(texts)) == 3
    assert found.usage.completion_tokens == 36
    streamed = dict.fromkeys(range(3), "")
    for chunk in chat(n=3, temperature=1.5, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_log_probabilities_are_those_of_the_weights(chat):
    found = chat(logprobs=True, top_logprobs=3).choices[0]
    told = found.logprobs.content
    assert len(told) == 12
    said = b"".join(bytes(position.bytes) for position in told)
    assert said.decode(errors="replace") == found.message.content
    for position in told:
        tops = [top.logprob for top in position.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert position.logprob == tops[0] <= 0  # greedy
    chunks = list(chat(logprobs=True, top_logprobs=3, stream=True))
    streamed = [c for chunk in chunks if (c := chunk.choices[0].logprobs)]
    assert [p.logprob for c in streamed for p in c.content] == [p.logprob for p in told]


def test_a_plain_completion_goes_on_with_the_text_as_it_stands(server, folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The old man", return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(wanted[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    asked = {"model": "student", "max_tokens": 8, "temperature": 0}
    found = client(server).completions.create(prompt=["The old man", "Hi"], **asked)
    assert found.choices[0].text == text
    assert [choice.index for choice in found.choices] == [0, 1]
    chunks = client(server).completions.create(prompt="The old man", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_models_and_health_are_told(server):
    assert [model.id for model in client(server).models.list()] == ["student"]
    assert client(server).models.retrieve("student").id == "student"
    with urllib.request.urlopen(f"{server.url}/health") as reply:
        assert json.load(reply) == {"status": "ok"}


def test_who_knows_no_words_for_tokens_says_so(folder):
    with running(Slow()) as server:
        create = client(server).chat.completions.create
        error = refused(create, model="student", messages=ASK, logprobs=True)
        assert (error.status_code, error.param) == (400, "logprobs")
        error = refused(client(server).completions.create, model="student", prompt="Hi")
        assert (error.status_code, error.param) == (400, "prompt")


def test_health_tells_of_an_engine_that_has_ended():
    model = Slow()
    with running(model) as server:
        model.is_alive = False
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/health")
        assert caught.value.code == 503


@pytest.mark.parametrize(
    ("request_", "status", "param", "words"),
    [
        ({"model": "gpt-9"}, 404, "model", "'gpt-9' is not here; 'student' is"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, 400, "messages", "user turn"),
        ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"stop": [""]}, 400, "stop", "none of them empty"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "'text'"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty", "no penalties"),
        ({"extra_body": {"top_k": 5}}, 400, "top_k", "no such field"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(chat, request_, status, param, words):
    error = refused(chat, **request_)
    assert (error.status_code, error.param) == (status, param)
    assert words in error.body["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_called_so(chat, stream):
    error = refused(chat, messages=[{"role": "user", "content": "order " * 600}], stream=stream)
    assert (error.status_code, error.code) == (400, "context_length_exceeded")
    assert "reads 512" in error.body["message"]


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b'{"messages": [', {"Content-Type": "application/json"}, 400),
        (b"[]", {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/json", "Host": "evil.example"}, 403),
        (b" " * (9 * 2**20), {"Content-Type": "application/json"}, 413),
    ],
)
def test_a_body_that_is_none_is_refused(server, data, headers, status):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/chat/completions", body=data, headers=headers)
    reply = connection.getresponse()
    assert reply.status == status
    assert json.load(reply)["error"]["message"]
    connection.close()


def test_the_house_itself_can_ask_the_server(server, folder):
    async def main():
        model = EndpointModel(server.url)
        try:
            plain = await model.respond(RECORD, Sampling(max_new_tokens=12))
            told = await model.respond(RECORD, Sampling(max_new_tokens=12, top_logprobs=4))
            return plain, told
        finally:
            await model.close()

    plain, told = asyncio.run(main())
    wanted = by_the_house(folder, Sampling(max_new_tokens=12))
    assert plain.text == told.text == wanted.text
    assert (plain.num_prompt_tokens, plain.num_new_tokens) == (wanted.num_prompt_tokens, 12)
    assert told.logprobs.sampled == wanted.logprobs.sampled  # token ids of the weights


def test_metrics_count_requests_tokens_and_times(folder):
    with running(opened(folder)) as server:
        ask = client(server).chat.completions.create
        ask(model="student", messages=ASK, max_tokens=5)
        list(ask(model="student", messages=ASK, max_tokens=5, stream=True))
        refused(ask, model="other", messages=ASK)
        with urllib.request.urlopen(f"{server.url}/metrics") as reply:
            assert "version=0.0.4" in reply.headers["Content-Type"]
            reply.read()
        requests = 'potstill_requests_total{endpoint="chat",status="%s"}'
        assert counted(server, requests % 200) == 2
        assert counted(server, requests % 404) == 1
        assert counted(server, 'potstill_tokens_total{kind="answer"}') == 10
        assert counted(server, 'potstill_request_seconds_count{endpoint="chat"}') == 2
        assert counted(server, 'potstill_first_token_seconds_count{endpoint="chat"}') == 1
        assert counted(server, "potstill_open_requests") == 0


def test_a_key_is_demanded_where_one_is_set(folder, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "s3cret-key")
    with running(opened(folder), settings={"api_key": "env:OUR_KEY"}) as server:
        ask = client(server, "s3cret-key").chat.completions.create
        assert ask(model="student", messages=ASK, max_tokens=3).choices
        with pytest.raises(openai.AuthenticationError) as caught:
            client(server, "wrong").chat.completions.create(model="student", messages=ASK)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client(server, "wrong").models.list()
        with urllib.request.urlopen(f"{server.url}/health") as reply:
            assert reply.status == 200


def test_other_machines_are_let_in_only_with_a_key():
    with pytest.raises(ConfigError, match="--api-key env:NAME"):
        open_door("0.0.0.0", 0)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"cannot be listened on.*--port"):
            open_door(port=other.getsockname()[1])


class Slow:
    """Answers once it is let to, and knows whether it was cancelled."""

    name, max_in_flight = "slow", 1

    def __init__(self):
        self.may_answer = asyncio.Event()
        self.num_asked = self.num_cancelled = 0
        self.is_closed = False
        self.loop = None

    async def respond(self, record, sampling, *, turn=0, sample=0):
        return await self.stream(record, sampling, lambda: None)

    async def stream(self, record, sampling, on_token, *, on_text=None):
        self.loop = asyncio.get_running_loop()
        self.num_asked += 1
        try:
            if on_text is not None:
                on_text("At ")
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return Response(record_id=record.id, text="At last.", finish_reason="stop")

    async def close(self):
        self.is_closed = True

    def let_go(self):
        self.loop.call_soon_threadsafe(self.may_answer.set)


def until(is_so):
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def sent(server, **changes):
    """A connection with a request on its way."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    body = json.dumps({"messages": ASK, **changes})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
    return connection


def test_too_many_requests_are_turned_away_with_a_time_to_come_again():
    model = Slow()
    with running(model, settings={"most_open": 2}) as server:
        waiting = [sent(server), sent(server)]
        until(lambda: model.num_asked == 2)
        reply = sent(server).getresponse()
        assert reply.status == 429
        assert int(reply.headers["Retry-After"]) >= 1
        assert json.load(reply)["error"]["code"] == "server_busy"
        model.let_go()
        assert [one.getresponse().status for one in waiting] == [200, 200]
        assert sent(server).getresponse().status == 200


def test_no_piece_of_a_stream_waits_until_the_one_before_has_arrived():
    model = Slow()
    with running(model) as server:
        connection = sent(server, stream=True)
        until(lambda: model.num_asked == 1)
        (taken,) = server._uvicorn.server_state.connections
        line = taken.transport.get_extra_info("socket")
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        model.let_go()
        connection.getresponse().read()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_is_cancelled(stream):
    model = Slow()
    with running(model) as server:
        connection = sent(server, stream=stream)
        line = connection.sock
        until(lambda: model.num_asked == 1)
        if stream:
            assert b"At " in connection.getresponse().read1()
        line.shutdown(socket.SHUT_RDWR)
        until(lambda: model.num_cancelled == 1)
        gone = 'potstill_requests_total{endpoint="chat",status="499"}'
        until(lambda: counted(server, "potstill_open_requests") == 0)
        assert counted(server, gone) == 1


def test_open_requests_are_finished_before_the_server_ends():
    model = Slow()
    with running(model) as server:
        connection = sent(server, stream=True)
        until(lambda: model.num_asked == 1)
        server.stop()
        model.let_go()
        said = connection.getresponse().read().decode()
    assert "last." in said and said.endswith("data: [DONE]\n\n")
    assert model.is_closed and model.num_cancelled == 0


def test_a_request_that_takes_too_long_does_not_keep_the_server_from_ending():
    model = Slow()
    with running(model, settings={"grace_seconds": 1}) as server:
        connection = sent(server)
        until(lambda: model.num_asked == 1)
        server.stop()
    connection.close()
    assert model.is_closed and model.num_cancelled == 1
