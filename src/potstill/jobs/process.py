"""Processes by identity: a process id alone may belong to somebody else by now."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path


def identity(pid: int) -> str:
    """`pid:start`, which no other process ever has again; empty if it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            # The name in brackets may hold spaces; fields are counted after it.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        state, started = fields[0], fields[19]
    else:
        found = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True
        )
        state, _, started = found.stdout.strip().partition(" ")
        started = "-".join(started.split())
    return "" if not started or state.startswith("Z") else f"{pid}:{started}"


def is_running(process: str) -> bool:
    """Whether the process of this identity still runs; a zombie does not."""
    pid = process_id(process)
    return pid is not None and identity(pid) == process


def process_id(process: str) -> int | None:
    """The number in an identity; None where there is none."""
    number = process.partition(":")[0]
    return int(number) if number.isdigit() else None


def signal_group(process: str, number: int) -> None:
    """Sends a signal to the whole group that the process leads or led.

    The group may have outlived its leader. As long as it has a member its number is not
    given to a new process, so a running process of the same number and another start proves
    that the group is gone.
    """
    pid = process_id(process)
    if pid is None or identity(pid) not in ("", process):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_group(process: str) -> None:
    """Ends whatever is left of the group, at once."""
    signal_group(process, signal.SIGKILL)
