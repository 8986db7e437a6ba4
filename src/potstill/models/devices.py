"""Devices by name: what one app may take of their memory, on how many threads, how long a talk."""

from __future__ import annotations

import difflib
import re

from potstill.errors import ConfigError
from potstill.types import Noun

LEAST_CONTEXT = 256
MOST_THREADS = 64
_GB = 1_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(mb|gb)", re.IGNORECASE)
_BYTES = {"mb": 1_000_000, "gb": _GB}


class Device(Noun):
    """A place to fit into. It says nothing of its processor's speed."""

    name: str
    memory_bytes: int
    """What one app may take: the system and other apps need the rest."""

    threads: int = 2
    context: int = 2048
    """Tokens of prompt and answer that there must be room for."""


def _device(name: str, gigabytes: float, threads: int, context: int) -> Device:
    return Device(name=name, memory_bytes=int(gigabytes * _GB), threads=threads, context=context)


DEVICES = {
    device.name: device
    for device in (
        _device("edge-1gb", 0.5, 1, 1024),
        _device("phone-4gb", 2, 2, 2048),
        _device("phone-6gb", 3, 4, 2048),
        _device("phone-8gb", 4, 4, 4096),
        _device("pi-2gb", 1, 4, 2048),
        _device("pi-4gb", 3, 4, 2048),
        _device("pi-8gb", 7, 4, 4096),
        _device("laptop-8gb", 4, 4, 4096),
        _device("laptop-16gb", 8, 4, 8192),
    )
}
"""Half of the memory for one app; on a Raspberry Pi without a desktop all but 1 GB. Our
assumptions, no vendor's promise."""


def read_device(text: str) -> Device:
    """Reads `NAME` or `MEMORY`, each with `:THREADS` and `:THREADS:CONTEXT` behind it.

    A memory, such as 3gb, is what the app itself may take.

    Raises:
        ConfigError: If there is no such device, or a number is none; the nearest name is told.
    """
    name, *numbers = text.split(":")
    found = DEVICES.get(name.lower())
    if found is None and (size := _SIZE.fullmatch(name)):
        memory = int(float(size[1]) * _BYTES[size[2].lower()])
        found = Device(name=text, memory_bytes=memory)
    if found is None:
        near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"no device is called {name!r}: {hint}There are: {', '.join(DEVICES)}; or by numbers, "
            f"MEMORY:THREADS:CONTEXT of one app, such as 3gb:2:2048"
        )
    changes = dict(zip(("threads", "context"), map(_whole, numbers), strict=False))
    threads, context = (changes.get(key, getattr(found, key)) for key in ("threads", "context"))
    if len(numbers) > 2 or None in (threads, context):
        raise ConfigError(
            f"{text!r} is no device: after its name or memory come threads and then the context "
            f"in tokens, such as {name}:2:2048"
        )
    if not 1 <= threads <= MOST_THREADS or context < LEAST_CONTEXT or found.memory_bytes < 1:
        raise ConfigError(
            f"{text!r} is no device: it needs memory, 1 to {MOST_THREADS} threads, and a context "
            f"of {LEAST_CONTEXT} tokens or more"
        )
    return found.model_copy(update={"name": text.lower(), "threads": threads, "context": context})


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
