"""What a measurement is only true for: this machine's processor, and whether it was left."""

from __future__ import annotations

import ipaddress
import os
import platform
from typing import Any
from urllib.parse import urlsplit


def processor() -> dict[str, Any]:
    """Name and number of the processor's cores that this process may use."""
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    name = line.partition(":")[2].strip()
                    break
    except OSError:
        name = name or platform.machine()
    return {"name": name, "cores": num_cores()}


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_elsewhere(place: str) -> bool:
    """Whether asking a place leaves this machine: a URL whose host is not loopback."""
    if not place.startswith(("http://", "https://")):
        return False
    host = urlsplit(place).hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
