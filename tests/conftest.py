"""Nothing in the suite leaves this machine, touches a GPU or the user's home."""

import os
import socket

import pytest

# Tiny models are slower on two threads than on one, and much slower when cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _closed_house(monkeypatch, tmp_path):
    """Connections are refused unless they go to loopback; the home is a temporary folder."""
    connect = socket.socket.connect

    def loopback_only(self, address):
        if self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        raise RuntimeError(f"a test wanted to reach {address}; use a server on loopback")

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def smollm2():
    """The demo's weights. `make test` installs them, and goes on where it could not."""
    from potstill.errors import MissingExtra
    from potstill.models.catalog import find_model

    try:
        return find_model("smollm2-135m")
    except MissingExtra as error:
        pytest.skip(str(error))
