"""Checks that may hang, crash or eat memory, each row in a process that can be killed.

A verifier of formulas, or a function of the user's, may do anything with a poison row. So these
checks run in worker processes that read rows and write verdicts as lines of JSON. A worker that
takes too long is killed with all its children, one that dies is replaced, and only the row it
had in hand is rejected. Run as a module this file is such a worker.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from potstill.config import CheckLimits, GenerationConfig
from potstill.errors import ConfigError, PotstillError
from potstill.types import Record, Rejection, Response

START_SECONDS = 60.0
"""Loading a user's module or computer algebra takes seconds; this is not part of a row's time."""

_LONGEST_REPLY = 1 << 20
"""Bytes. A check's verdict is a few words; whatever is longer is not one."""


class Verdict(NamedTuple):
    """What the checks say about one answer."""

    rejection: Rejection | None = None
    score: float | None = None
    """What `generation.best_by` gave an answer that passed."""


class CheckPool:
    """Worker processes that check answers side by side; verdicts do not depend on how many.

    Args:
        names: Checks to run, in this order.
        task: Name of the task, or "module:attribute".
        best_by: Function that scores what passes; None for no score.
        one_worker: For checks that remember rows, which one process must see all.
    """

    def __init__(
        self,
        names: Sequence[str],
        task: str,
        config: GenerationConfig,
        limits: CheckLimits,
        *,
        best_by: str | None = None,
        one_worker: bool = False,
    ):
        self._setup = {
            "path": sys.path,
            "names": list(names),
            "task": task,
            "config": config.model_dump(mode="json"),
            "best_by": best_by,
            "timeout_seconds": limits.timeout_seconds,
            "memory_bytes": limits.memory_mb << 20,
        }
        self._timeout_seconds = limits.timeout_seconds
        num_workers = 1 if one_worker else limits.num_workers
        self.num_ahead = 8 * num_workers
        """Rows that are worth handing in before the first verdict is waited for."""

        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="check")
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> CheckPool:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all workers, those that are busy too."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()

    def submit(self, record: Record, turns: Mapping[int, Response]) -> Future[Verdict]:
        """Hands in one sample of a record; the future never holds a check's own exception.

        The future raises ConfigError where a check cannot be loaded.
        """
        return self._threads.submit(self._judge, record, dict(turns))

    def _judge(self, record: Record, turns: dict[int, Response]) -> Verdict:
        row = {
            "record": record.model_dump(mode="json"),
            "turns": [r.model_dump(mode="json", exclude={"logprobs"}) for r in turns.values()],
        }
        worker = self._take()
        found = worker.ask(json.dumps(row), self._timeout_seconds)
        if worker.is_fit:
            with self._lock:
                self._idle.append(worker)
        else:
            with self._lock:
                self._all.discard(worker)
            worker.kill()
            worker.close()
        if isinstance(found, Verdict):
            return found
        reason, detail = found
        response = next(iter(turns.values()))
        return Verdict(
            Rejection(
                record_id=response.record_id,
                sample=response.sample,
                check=worker.current or ", ".join(self._setup["names"]),
                reason=reason,
                detail=detail,
            )
        )

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._closed:
                raise PotstillError("the checks were stopped")
            worker = _Worker(self._setup)
            self._all.add(worker)
        worker.wait_until_ready()
        return worker


class _Worker:
    """One child process and its two pipes. Used by one thread at a time."""

    def __init__(self, setup: Mapping[str, Any]):
        self.current = ""
        """The check it was in when it was last heard of."""

        self.is_fit = True
        """Whether it can be given another row."""

        self._setup = setup
        self._read = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "potstill.teach.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that its children can be killed with it
        )

    def wait_until_ready(self) -> None:
        try:
            self._send(json.dumps(self._setup))
            found = self._line(time.monotonic() + START_SECONDS)
        except (OSError, TimeoutError, ValueError):
            found = {"error": "the process for checks did not start"}
        if "error" in found:
            self.kill()
            self.close()
            raise ConfigError(f"checks: {found['error']}")

    def ask(self, row: str, timeout_seconds: float) -> Verdict | tuple[str, str]:
        """The verdict on a row; (reason, detail) where there is none."""
        self.current = ""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._send(row)
            while "at" in (found := self._line(deadline)):
                self.current = found["at"]
            if "failed" in found:
                self.is_fit = not found["is_spent"]
                return "check_failed", found["failed"]
            rejection = found["rejection"]
            parsed = Rejection.model_validate(rejection) if rejection else None
            return Verdict(parsed, found["score"])
        except TimeoutError:
            fault = "timeout", f"no verdict within {timeout_seconds:g} s"
        except OSError:
            fault = "check_failed", f"the check's process ended ({self._end()})"
        except (ValueError, KeyError, TypeError):
            fault = "check_failed", "the check's process wrote something that is no verdict"
        self.is_fit = False
        return fault

    def kill(self) -> None:
        """Ends the process and its children at once. Safe from any thread, and twice."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Closes the pipes, once no thread reads them."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    def _send(self, line: str) -> None:
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, deadline: float) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = os.read(self._process.stdout.fileno(), 65_536)
                if not data:
                    raise BrokenPipeError
                self._read += data
                if len(self._read) > _LONGEST_REPLY:
                    raise ValueError("too long")
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "its output is closed"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work() -> None:
    """The worker: a set-up line, then rows, until the pipe closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a check prints must not get between the replies

    def say(**facts: Any) -> None:
        replies.write(json.dumps(facts) + "\n")
        replies.flush()

    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    try:
        judge = _judge_of(setup, say)
    except PotstillError as error:
        say(error=str(error))
        return
    _limit_memory(setup["memory_bytes"])
    say(ready=True)
    seconds = math.ceil(setup["timeout_seconds"]) + 5
    for line in sys.stdin:
        # The parent kills this process when it takes too long; without a parent the alarm does.
        signal.alarm(seconds)
        try:
            verdict = judge(json.loads(line))
        except MemoryError:
            say(failed=f"needs more than {setup['memory_bytes'] >> 20:,} MiB", is_spent=True)
        except BaseException as error:  # whatever it raises, it is this row's fault alone
            say(failed=f"{type(error).__name__}: {str(error)[:500]}", is_spent=False)
        else:
            rejection, score = verdict
            said = rejection.model_dump(mode="json") if rejection else None
            say(rejection=said, score=score)
        signal.alarm(0)


def _judge_of(setup: Mapping[str, Any], say: Any) -> Any:
    from potstill.protocols import resolve
    from potstill.tasks import get_task
    from potstill.tasks.verifier import VERIFIER
    from potstill.teach.checks import build_checks, first_fault

    task = get_task(setup["task"])
    config = GenerationConfig.model_validate(setup["config"])
    if task.name == "math":
        VERIFIER.answer_here()
    checks = [
        _told(name, *build_checks([name], task, config=config), say) for name in setup["names"]
    ]
    best_by = resolve("check", setup["best_by"]) if setup["best_by"] else None

    def judge(row: Mapping[str, Any]) -> Verdict:
        record = Record.model_validate(row["record"])
        responses = [Response.model_validate(response) for response in row["turns"]]
        prompts = task.turns(record)
        turns = {response.turn: response for response in responses}
        rejection = first_fault(prompts, turns, checks)
        if rejection is not None or best_by is None:
            return Verdict(rejection)
        say(at=setup["best_by"])
        score = float(best_by(prompts[-1], turns[len(prompts) - 1]))
        if math.isnan(score):
            raise ValueError("the score is not a number")
        return Verdict(None, score)

    return judge


def _told(name: str, check: Any, say: Any) -> Any:
    """A check that says its name before it begins, and may only answer as checks do."""

    def told(record: Record, response: Response) -> Rejection | None:
        say(at=name)
        found = check(record, response)
        if found is not None and not isinstance(found, Rejection):
            raise TypeError(f"returned {type(found).__name__}, not None or a Rejection")
        return found

    return told


def _limit_memory(num_bytes: int) -> None:
    """Lets this process grow by so much and no more; later allocations raise MemoryError."""
    used = 0
    with contextlib.suppress(OSError):
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):  # a lower limit of the system's stays
        resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, used + num_bytes))


if __name__ == "__main__":
    _work()
