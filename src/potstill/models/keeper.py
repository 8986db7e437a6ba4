"""Runs a command and ends it, with all that it started, once whoever wanted it is gone.

keeper.py COMMAND ...: it leads a process group of its own, and its owner holds its standard
input open. A program of others cannot be asked to watch its owner; this one does it for them.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

GRACE_SECONDS = 10.0
"""How long the command may take to end in order before it is killed."""

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Runs the command to its end; returns its exit code, 128 and more for a signal."""
    owner = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The group's signals are for the command. An empty handler, unlike SIG_IGN, is not
        # handed on to it.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_dies_with_us())
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        return 127
    left = threading.Event()
    threading.Thread(target=_watch, args=(owner, left), daemon=True).start()
    code = child.wait()
    if left.is_set():
        os.kill(0, signal.SIGKILL)  # what the command left behind, and this process
    return 128 - code if code < 0 else code


def _watch(owner: int, left: threading.Event) -> None:
    """Ends the group once the owner has closed the pipe, or has another process in its place.

    A copy of the owner may hold the pipe open, so the owner itself is looked for too.
    """
    while os.getppid() == owner:
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            break
    left.set()
    os.kill(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(0, signal.SIGKILL)


def _dies_with_us() -> Callable[[], object] | None:
    """What the child does first: Linux kills it should this process be killed."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
