"""What a measurement is only true for: this machine's processor, and whether it was left."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
from pathlib import Path
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


def available_memory_bytes() -> int | None:
    """What a further process may take here without swapping; None where nobody tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def work_seconds(pid: int | None = None) -> float | None:
    """Processor seconds that a process has taken, or all together since the machine started.

    None where nobody tells them.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = os.sysconf("SC_CLK_TCK")
        if pid is not None:
            # The name, in brackets, may hold blanks.
            told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            return (int(told[11]) + int(told[12])) / ticks
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()
        user, nice, system, _idle, _waiting, *interrupts = map(int, first[1:8])
        return (user + nice + system + sum(interrupts)) / ticks
    return None


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
