"""A process that may take so much memory and no more.

What counts is resident memory: the process's own pages and the pages of files that it maps, such
as the weights of a GGUF file. The limits that a kernel enforces count something else. RLIMIT_AS
counts addresses, of which engines take gigabytes that they never touch; RLIMIT_DATA leaves mapped
files out; a control group needs rights, and is not charged for pages of a file that another
process has read before, such as the proof of the artefact a moment ago.

The kernel keeps the peak itself, so nothing that happens between two looks is missed; only the
end may come some hundredths of a second late.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

from potstill.errors import ConfigError

SECONDS_BETWEEN_LOOKS = 0.01
_COUNTED = (("VmHWM",), ("VmRSS", "VmSwap"))
"""The peak as the kernel kept it; and what is there now, swapped out or not."""


class MemoryLimit:
    """Looks at a process while it is entered, and kills it when it has taken more than it may."""

    def __init__(self, process: subprocess.Popen[bytes], limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        """Most that the process has taken, as far as anybody looked."""

        self._process = process
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def is_exceeded(self) -> bool:
        """Whether it took more; it is dead then, or about to be."""
        return self.peak_bytes > self.limit_bytes

    def look(self) -> None:
        """Looks now."""
        self.peak_bytes = max(self.peak_bytes, taken_bytes(self._process.pid))
        if self.is_exceeded:
            self._process.kill()

    def __enter__(self) -> MemoryLimit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self.is_exceeded and not self._left.wait(SECONDS_BETWEEN_LOOKS):
            self.look()


def taken_bytes(pid: int) -> int:
    """Most resident memory of a process until now; 0 once it has ended, or where there is no
    /proc."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        told = {name: int(value.split()[0]) for name, value in found.items() if name[:2] == "Vm"}
        return max(sum(told.get(name, 0) for name in names) for names in _COUNTED) * 1024
    return 0


def refuse_untold() -> None:
    """Refuses where nobody tells what a process takes.

    Raises:
        ConfigError: On any system but Linux.
    """
    if not Path("/proc/self/status").exists():
        raise ConfigError("a device is tried on Linux, which tells the memory that a process takes")
