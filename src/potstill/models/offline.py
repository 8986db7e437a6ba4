"""`--offline`: nothing but loopback is reached from this process."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from potstill.errors import OfflineError

_allowed = threading.local()
_state: dict[str, bool] = {"closed": False}


def forbid_network() -> None:
    """Refuses every connection that leaves this machine, from here to the process's end.

    Names are not looked up either, because a look-up is a connection. Libraries for the
    Hugging Face hub are told to use what is on disk. Calling it again changes nothing.

    Raises:
        OfflineError: Later, in whoever wants to connect; it names the host.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if _state["closed"]:
        return
    _state["closed"] = True
    socket.socket.connect = _guarded(socket.socket.connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = _guarded(socket.socket.connect_ex)  # type: ignore[method-assign]
    socket.socket.sendto = _guarded_sendto(socket.socket.sendto)  # type: ignore[method-assign]
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, _guarded_look_up(getattr(socket, name)))


def is_offline() -> bool:
    """Whether connections are refused in this process, or the environment asks for it."""
    return _state["closed"] or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


@contextlib.contextmanager
def allow() -> Iterator[None]:
    """Lets this thread connect anywhere for a while; for tests of the guard itself."""
    before = getattr(_allowed, "yes", False)
    _allowed.yes = True
    try:
        yield
    finally:
        _allowed.yes = before


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_outside(address[0])
        return connect(self, address)

    return guarded


def _guarded_sendto(send: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, data: Any, *rest: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(rest[-1], tuple):
            _refuse_outside(rest[-1][0])
        return send(self, data, *rest)

    return guarded


def _guarded_look_up(look_up: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_outside(host)
        return look_up(host, *args, **kwargs)

    return guarded


def _refuse_outside(host: Any) -> None:
    if host is None or getattr(_allowed, "yes", False):
        return
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.lower() in ("", "localhost", "localhost.localdomain"):
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(name.partition("%")[0]).is_loopback:
            return
    raise OfflineError(
        f"--offline refuses connections that leave this machine, and something wanted to reach "
        f"{name}; leave --offline out, or use weights and endpoints on this machine"
    )
