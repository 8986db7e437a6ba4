"""Checks as a user might write them, that do what a poison row can make them do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from potstill.types import Rejection

_hog = []


def misbehaves(record, response):
    """Does what the answer says: hang, crash, eat, raise, exit, print, lie, reject."""
    match response.text:
        case "hang":
            _note(record, os.getpid())
            while True:
                time.sleep(0.05)
        case "deaf":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            _note(record, child.pid)
            child.wait()
        case "crash":
            os.kill(os.getpid(), 11)
        case "eat":
            while True:
                _hog.append(bytearray(1 << 24))
        case "raise":
            raise ZeroDivisionError("divided by nothing")
        case "exit":
            raise SystemExit(0)
        case "print":
            print("what a check prints is no verdict", flush=True)
        case "lie":
            return "no good"
        case "reject":
            return Rejection(
                record_id=record.id, check="misbehaves", reason="own", detail="as asked"
            )
    return None


def _note(record, pid):
    """Writes a process's number where the row says, whole."""
    if place := record.metadata.get("note"):
        with open(f"{place}.new", "w") as file:
            file.write(str(pid))
        os.replace(f"{place}.new", place)


def length(record, response):
    """Scores an answer."""
    return float(len(response.text))


class NotTwice:
    """Remembers what it saw, as a check with a memory does."""

    def __init__(self):
        self.seen = set()

    def __call__(self, record, response):
        if response.text in self.seen:
            return Rejection(record_id=record.id, check="NotTwice", reason="seen")
        self.seen.add(response.text)
        return None
