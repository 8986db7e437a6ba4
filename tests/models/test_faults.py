"""What a network and a server can do to a request, done to it over a real socket."""

import asyncio
import json
import logging
import shutil
import socket
import ssl
import subprocess
import time

import pytest
from fake_endpoint import completion
from fault_server import (
    FaultServer,
    answers,
    bombs,
    cuts,
    drips,
    floods,
    hangs,
    redirects,
    resets,
    says,
    serving,
)
from pydantic import SecretStr

from potstill.config import PriceConfig
from potstill.errors import TeacherError, TeacherRefused
from potstill.models.endpoint import EndpointModel
from potstill.models.transport import Transport
from potstill.types import Message, Record, Sampling

ASK = Record(id="r1", messages=(Message(role="user", content="Is it?"),))
CANARY = "sk-canary-5f0c7e"
GOOD = json.dumps(completion()).encode()
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Le"


async def no_wait(seconds):
    """Waits between attempts are tested in virtual time."""
    await asyncio.sleep(0)


def ask(*script, number=1, timeout_seconds=10.0, largest_bytes=2**20, url=None, **settings):
    """Responses or errors of so many requests at once, and the server."""

    async def main():
        async with serving(FaultServer(*script)) as server:
            model = EndpointModel(
                url or server.url,
                "fake",
                key=SecretStr(CANARY),
                sleep=no_wait,
                transport=Transport(timeout_seconds=timeout_seconds, largest_bytes=largest_bytes),
                **settings,
            )
            try:
                asked = (model.respond(ASK, Sampling()) for _ in range(number))
                return await asyncio.gather(*asked, return_exceptions=True), server
            finally:
                await model.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "fault",
    [
        resets(),
        resets(HALF_HEAD),
        resets(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
        cuts(GOOD[:40]),
        says(GOOD[:40]),
        says(b"<html>It works!</html>", **{"Content-Type": "text/html"}),
        says(b""),
        says(b"\xff\xfe\x00garbage"),
        says(b"not gzip at all", **{"Content-Encoding": "gzip"}),
        says(b"no HTTP at all\r\n\r\n", "\r\n\x00"),
        says(b"", "503 Service Unavailable", **{"Retry-After": "NaN"}),
        says(b"{}", "500 Internal Server Error"),
    ],
    ids=range(12),
)
def test_a_fault_that_passes_costs_one_more_attempt(fault):
    (response,), server = ask(fault)
    assert response.text == "Yes."
    assert server.num_requests == 2


@pytest.mark.parametrize("fault", [hangs(), hangs(HALF_HEAD), drips(0.01)])
def test_a_request_takes_no_longer_than_its_time(fault):
    started = time.monotonic()
    (response,), server = ask(fault, timeout_seconds=0.2)
    assert response.text == "Yes."
    assert server.num_requests == 2
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "retry_after", ["1", "Fri, 09 Jan 2099 00:00:00 GMT", "-1", "NaN", "1e9", "soon", None]
)
def test_a_storm_of_refusals_for_speed_passes(retry_after):
    headers = {"Retry-After": retry_after} if retry_after else {}
    storm = [says(b"busy", "429 Too Many Requests", **headers) for _ in range(60)]
    responses, server = ask(*storm, number=30)
    assert [response.text for response in responses] == ["Yes."] * 30
    assert server.num_requests == 90


def test_a_burst_of_server_errors_passes():
    burst = [says(b"oops", "502 Bad Gateway") for _ in range(20)]
    responses, server = ask(*burst, number=30)
    assert [response.text for response in responses] == ["Yes."] * 30
    assert server.num_requests == 50


def test_nobody_at_the_port_is_an_error_with_the_host():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        (error,), _ = ask(url=f"http://{host}/v1")
    assert type(error) is TeacherError
    assert host in str(error)


def test_a_server_without_tls_is_refused_at_once():
    async def main():
        async with serving(FaultServer()) as server:
            model = EndpointModel(server.url.replace("http:", "https:"), "fake", sleep=no_wait)
            try:
                with pytest.raises(TeacherRefused, match="cannot be reached"):
                    await model.respond(ASK, Sampling())
            finally:
                await model.close()

    asyncio.run(main())


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tmp_path):
    """As behind a company's proxy; the message says how to name who vouches for it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    make = [*make.split(), "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    num_greeted = 0

    async def serve(reader, writer):
        nonlocal num_greeted
        num_greeted += 1
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(completion("Yes.")).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async def main():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            model = EndpointModel(f"https://localhost:{port}/v1", "fake", sleep=no_wait)
            try:
                return await model.respond(ASK, Sampling())
            finally:
                await model.close()

    with pytest.raises(TeacherRefused, match=r"certificate verify failed.*SSL_CERT_FILE"):
        asyncio.run(main())
    assert num_greeted == 0


def test_a_redirect_is_not_followed_even_in_a_loop():
    (error,), server = ask(*[redirects("/v1/chat/completions")] * 20)
    assert isinstance(error, TeacherRefused)
    assert server.num_requests == 1


def test_a_gibibyte_is_not_read_to_its_end():
    sent = []
    (error,), server = ask(floods(2**30, sent))
    assert "sent more than 1 MiB" in str(error)
    assert sent[0] < 2**26
    assert server.num_requests == 1


def test_a_small_body_that_unpacks_to_a_large_one_is_not_unpacked():
    (error,), server = ask(bombs(2**26))
    assert "sent more than 1 MiB" in str(error)
    assert server.num_requests == 1


def test_a_packed_answer_is_an_answer():
    import gzip

    (response,), _ = ask(says(gzip.compress(GOOD), **{"Content-Encoding": "gzip"}))
    assert response.text == "Yes."


@pytest.mark.parametrize(
    ("tree", "text", "tokens"),
    [
        (completion(None), "", 3),
        (completion("x", usage=None), "x", 0),
        ({k: v for k, v in completion("x").items() if k != "usage"}, "x", 0),
    ],
)
def test_an_answer_without_content_or_usage_is_one(tree, text, tokens):
    (response,), _ = ask(answers(tree), price=PriceConfig(input=1, output=1))
    assert (response.text, response.num_new_tokens) == (text, tokens)
    assert (response.cost is None) == (tokens == 0)


def test_the_key_is_in_no_error_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    echo = f"who is Bearer {CANARY}?".encode()
    said = []
    for fault in (
        says(echo, "500 Oops"),
        says(echo),
        says(echo, f"200 {CANARY}", **{"Content-Encoding": "gzip"}),
        resets(echo),
        cuts(echo),
        redirects(f"http://127.0.0.1/{CANARY}"),
        hangs(echo),
    ):
        (error,), _ = ask(*[fault] * 9, timeout_seconds=0.05)
        links = [error, error.__cause__, error.__context__]
        said.extend(f"{link} {link!r}" for link in links if link)
    assert len(said) >= 7
    assert "canary" not in "".join(said) + caplog.text
