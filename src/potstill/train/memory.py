"""How much memory there is, and how much of it this process holds: the GPU's where there is one."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

import torch


class Memory:
    """Most memory held since the last look, and since the start."""

    def __init__(self) -> None:
        self._most = 0

    def peak(self) -> int:
        """Bytes since the last call; begins anew where the system allows that."""
        if torch.cuda.is_available():
            found = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            found = _status_bytes("VmHWM")
            # Without this right peaks only grow, and a step that takes less is not seen.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._most = max(self._most, found)
        return found

    @property
    def most(self) -> int:
        """Bytes since the start."""
        self.peak()
        return self._most


def usable_memory_bytes() -> int:
    """What this process may hold: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    return free + _status_bytes("VmRSS")


def has_gpu() -> bool:
    """Whether memory is that of a GPU."""
    return torch.cuda.is_available()


def resident_bytes() -> int:
    """What this process holds at the moment."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status_bytes("VmRSS")


def peak_memory_bytes() -> int:
    """Most memory this process has held: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(name: str) -> int:
    """A figure of this process as the kernel tells it; 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
