"""Equality of formulas, decided in a process of its own that can be killed.

Computer algebra hangs on some inputs, and its own time-out works only in the main thread. So
one child process answers questions line by line, and is killed when it takes too long. Run as
a module this file is that child.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import queue
import subprocess
import sys
import threading

TIMEOUT_SECONDS = 5.0
START_SECONDS = 60.0
"""Loading computer algebra takes seconds on a busy machine; this is not part of the question."""


class Verifier:
    """Compares formulas in one child process, started at the first question."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS):
        self.timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._answers_here = False

    def answer_here(self) -> None:
        """Decides in this process from now on: for a process that is killed itself."""
        import math_verify  # noqa: F401 - loading it must not count as the first question's time

        self._answers_here = True

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two formulas (LaTeX or plain) are equal; False after the time-out."""
        if self._answers_here:
            return _equal(gold, answer)
        with self._lock:
            try:
                child = self._started()
                assert child.stdin is not None
                child.stdin.write(json.dumps([gold, answer]) + "\n")
                child.stdin.flush()
                reply = self._answers.get(timeout=self.timeout_seconds)
            except (queue.Empty, OSError):
                self._stop()
                return False
            if not reply:  # the child died of this question
                self._stop()
                return False
            return json.loads(reply)

    def close(self) -> None:
        """Ends the child process."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._answers = queue.Queue()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "potstill.tasks.verifier"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            threading.Thread(target=_pump, args=(self._child, self._answers), daemon=True).start()
            self._answers.get(timeout=START_SECONDS)
        return self._child

    def _stop(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._child = None


def _pump(child: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    with contextlib.suppress(ValueError):  # the pipe was closed while we waited
        for line in child.stdout:
            answers.put(line)
    answers.put("")


VERIFIER = Verifier()
"""The one that all of this process shares."""
atexit.register(VERIFIER.close)


def _answer_questions() -> None:
    import math_verify  # noqa: F401 - before the first question's time runs

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        gold, answer = json.loads(line)
        sys.stdout.write(json.dumps(_equal(gold, answer)) + "\n")
        sys.stdout.flush()


def _equal(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    try:
        # Its own time-outs are off: this process is killed instead.
        return bool(
            verify(
                parse(_formula(gold), parsing_timeout=None),
                parse(_formula(answer), parsing_timeout=None),
                timeout_seconds=None,
            )
        )
    except MemoryError:
        raise
    except Exception:  # whatever a formula can break is not equal to anything
        return False


def _formula(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


if __name__ == "__main__":
    _answer_questions()
