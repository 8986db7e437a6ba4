"""--offline closes the process to everything but loopback. Run in processes of their own."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


START = "from potstill.models.offline import *; forbid_network(); forbid_network()\n"


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import socket; socket.getaddrinfo('example.com', 443)",
        "import socket; socket.gethostbyname('example.com')",
        "import socket; socket.socket().connect_ex(('192.0.2.1', 80))",
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'', ('192.0.2.1', 5))",
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
    ],
)
def test_nothing_leaves_the_machine(attempt):
    code = f"{START}try:\n    {attempt}\nexcept Exception as error:\n    print(repr(error))"
    said = run(code)
    assert "OfflineError" in said and "--offline" in said
    assert "192.0.2.1" in said or "example.com" in said


def test_an_endpoint_outside_is_refused_without_retries():
    code = START + (
        "import asyncio\n"
        "from potstill.models.endpoint import EndpointModel\n"
        "from potstill.types import *\n"
        "async def main():\n"
        "    model = EndpointModel('http://teacher.example/v1', 'm')\n"
        "    record = Record(id='a', messages=[Message(role='user', content='x')])\n"
        "    try:\n"
        "        await model.respond(record, Sampling())\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "    await model.close()\n"
        "asyncio.run(main())\n"
    )
    said = run(code)
    assert said.startswith("OfflineError") and "teacher.example" in said


def test_loopback_stays_open():
    code = START + (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(('localhost', server.getsockname()[1])).close()\n"
        "import os; print(is_offline(), os.environ['HF_HUB_OFFLINE'])\n"
    )
    assert run(code) == "True 1"
