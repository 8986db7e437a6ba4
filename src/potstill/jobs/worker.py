"""`python -m potstill.jobs.worker NAME --home FOLDER`: runs the pipeline for one job.

Keys arrive on standard input as one JSON object and stay in this process's memory. All that
is printed or logged here goes to the job's log file.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from potstill.config import DistillConfig
from potstill.entities import JobStatus
from potstill.errors import JobError, PotstillError
from potstill.jobs.executor import own_group
from potstill.jobs.process import identity, is_running
from potstill.jobs.store import Store
from potstill.jobs.workspace import Workspace
from potstill.models.offline import forbid_network
from potstill.rundir import RunDir

log = logging.getLogger("potstill.jobs.worker")

BEAT_SECONDS = 2.0
PROGRESS_SECONDS = 0.5
"""At most one progress event of a stage is kept in so long."""
WAIT_SECONDS = 0.3

Distill = Callable[..., Any]
S = JobStatus


class Cancelled(KeyboardInterrupt):
    """SIGTERM arrived. An interrupt, so that event loops and task groups unwind for it."""


def main(arguments: Sequence[str] | None = None, distill: Distill | None = None) -> int:
    """Runs one job to its end and writes that end down.

    Args:
        distill: What runs the pipeline; `potstill.pipeline.distill` by default.

    Returns:
        0 when the job completed, 1 when it failed, 130 when it was cancelled.
    """
    parser = argparse.ArgumentParser(prog="potstill.jobs.worker")
    parser.add_argument("name")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _cancel)
    secrets = _read_secrets()
    _write_logs(secrets)
    if os.environ.get("POTSTILL_OFFLINE"):  # as its submitter was
        forbid_network()
    workspace = Workspace(home=options.home)
    store = Store(workspace.database)
    name = options.name
    if not _claim(store, name):
        return 1
    try:
        with _heartbeat(store, name), _slot(workspace, store, name):
            return _run(store, name, secrets, distill)
    except Cancelled:
        log.info("cancelled; what was done is kept")
        store.move(name, S.CANCELED, out_of=[S.CANCEL_REQUESTED, S.QUEUED, S.PREPARING, S.RUNNING])
        return 130
    except Exception as error:
        _write_failure(store, name, error, secrets)
        return 1
    finally:
        store.close()
        _end_children()


def _run(store: Store, name: str, secrets: Mapping[str, SecretStr], distill: Distill | None) -> int:
    if not store.move(name, S.PREPARING, out_of=[S.QUEUED], started_at=time.time()):
        raise Cancelled
    job = store.job(name)
    facts = store.facts(name)
    config = DistillConfig.model_validate(job.config)
    if facts["wants_key"] and "teacher" not in secrets:
        raise JobError(
            "the teacher's key was given in clear and is not kept: give it again with "
            "jobs.resume(name, teacher_key=...), or submit with teacher_key='env:NAME'"
        )
    if distill is None:
        from potstill.pipeline import distill
    if not store.move(name, S.RUNNING, out_of=[S.PREPARING]):
        raise Cancelled
    run = RunDir(job.run)
    distill(
        config,
        run,
        workspace=facts["workspace"].get("models", {}),
        secrets=secrets,
        on_event=_listener(store, name),
    )
    if not store.move(name, S.FINALIZING, out_of=[S.RUNNING]):
        raise Cancelled
    if not run.model.is_dir():
        raise JobError(f"the run ended without a model in {run.model}")
    untouched = run.untouched if run.untouched.is_dir() else Path(config.student.place)
    if not store.publish(name, distilled=run.model, untouched=untouched):
        raise Cancelled
    log.info("completed; the model is %s", job.model)
    return 0


def _listener(store: Store, name: str) -> Callable[[Any], None]:
    """Keeps events as rows; of a stage's progress no more than anybody can look at."""
    last: dict[str, float] = {}

    def on_event(event: Any) -> None:
        now = time.monotonic()
        share = event.done / event.total if event.done is not None and event.total else None
        if event.kind == "progress":
            if now - last.get(event.stage, 0.0) < PROGRESS_SECONDS and event.done != event.total:
                return
            last[event.stage] = now
        elif event.kind in ("done", "skipped"):
            share = 1.0
        counts = f" {event.done:,}/{event.total:,}" if share is not None and event.total else ""
        log.info("%s %s%s %s", event.stage, event.kind, counts, event.text)
        store.add_event(
            name,
            share,
            stage=event.stage,
            kind=event.kind,
            done=event.done,
            total=event.total,
            text=event.text,
            seconds=event.seconds,
        )

    return on_event


def _claim(store: Store, name: str) -> bool:
    """Makes the job this process's own, unless it is somebody else's or not to be started."""
    own, other = identity(os.getpid()), store.facts(name)["process"]
    status = store.job(name).status
    if status is not S.QUEUED or (other != own and is_running(other)):
        log.error("%s is %s and not this worker's to run", name, status)
        return False
    store.note_process(name, own)
    return True


@contextlib.contextmanager
def _heartbeat(store: Store, name: str) -> Iterator[None]:
    """Says every few seconds that this process lives."""
    process = identity(os.getpid())
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                store.beat(name, process)
            except JobError as error:
                log.warning("no heart-beat: %s", error)

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _slot(workspace: Workspace, store: Store, name: str) -> Iterator[None]:
    """Waits, Queued, for one of the places to run in; a place ends with its process."""
    workspace.prepare()
    number = int(store.facts(name)["workspace"].get("parallel_jobs", 1))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(workspace.slot(i).open("a")) for i in range(number)]
        told = False
        while not any(_try_lock(file) for file in files):
            if not told:
                log.info("queued: %d of %d places to run in are taken", number, number)
                told = True
            if store.job(name).status is not S.QUEUED:
                raise Cancelled
            time.sleep(WAIT_SECONDS)
        yield


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _cancel(_number: int, _frame: Any) -> None:
    # A second signal must not interrupt what ends the job in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancelled


def _read_secrets() -> dict[str, SecretStr]:
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    text = sys.stdin.read()
    return {whom: SecretStr(key) for whom, key in json.loads(text or "{}").items()}


def _write_logs(secrets: Mapping[str, SecretStr]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutKeys(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _WithoutKeys(logging.Formatter):
    """Lines of the log, in which no key appears: some libraries log what they send."""

    def __init__(self, secrets: Mapping[str, SecretStr]):
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """The line, with tracebacks, and with *** in place of keys."""
        return _without_keys(super().format(record), self._secrets)


def _without_keys(text: str, secrets: Mapping[str, SecretStr]) -> str:
    for key in secrets.values():
        text = text.replace(key.get_secret_value(), "***")
    return text


def _write_failure(
    store: Store, name: str, error: Exception, secrets: Mapping[str, SecretStr]
) -> None:
    """The error's text in the job; its traceback, where nobody raised it on purpose, in the log."""
    if isinstance(error, PotstillError):
        text = str(error)
        log.error("%s", text)
    else:
        text = f"{type(error).__name__}: {error}"
        log.error("failed", exc_info=error)
    facts = {"error": _without_keys(text, secrets), "error_kind": type(error).__name__}
    active = [S.QUEUED, S.PREPARING, S.RUNNING, S.FINALIZING, S.NOT_RESPONDING]
    if not store.move(name, S.FAILED, out_of=active, **facts):
        store.move(name, S.CANCELED, out_of=[S.CANCEL_REQUESTED])


def _end_children() -> None:
    """Ends what this worker started and did not end; the worker itself is not interrupted."""
    if own_group():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
