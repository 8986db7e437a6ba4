"""Options that every command shares, and how a command ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill import console
from potstill.dialects import Dialect, read_job
from potstill.errors import ConfigError, PotstillError
from potstill.rundir import RunDir

RUNS = Path("runs")

ConfigFile = Annotated[
    Path, typer.Argument(help="The config file, or the folder of an earlier run.", metavar="CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the config, such as train.num_epochs=1.", metavar="KEY=VALUE"),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that run folders are made in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Refuse every connection but those on this machine.")
]


def read_config(path: Path, overrides: list[str] | None, runs: Path) -> tuple[Dialect, RunDir]:
    """The job of a config file, an Azure job file or a run folder, and where it works."""
    if path.is_dir():
        run = RunDir(path)
        if not run.config.exists():
            raise ConfigError(f"{path} is no run folder: it has no {run.config.name}")
        return read_job(run.config, overrides or ()), run
    job = read_job(path, overrides or ())
    return job, RunDir(runs / job.config.name)


def existing_run(place: str, runs: Path) -> RunDir:
    """The run folder called `place`, by path or by name below `runs`.

    Raises:
        ConfigError: If there is none.
    """
    for path in (Path(place), runs / place):
        if RunDir(path).config.exists():
            return RunDir(path)
    known = sorted(p.name for p in runs.glob("*") if RunDir(p).config.exists())[:5]
    there = f"in {runs} there are: {', '.join(known)}" if known else f"{runs} holds no runs"
    raise ConfigError(f"no run is called {place!r}; {there}")


def go_offline(offline: bool) -> None:
    """Closes the machine to everything but loopback, for this process and its children."""
    if offline:
        from potstill.models.offline import forbid_network

        os.environ["POTSTILL_OFFLINE"] = "1"
        forbid_network()


def ended(work: Callable[[], Any]) -> int:
    """Runs a command and turns every way it can end into an exit code and a message."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
        return 0
    except PotstillError as error:
        console.print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.print_error("stopped; the same command continues where it was")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            console.print_error(
                f"no space left on the disk ({error.filename or 'while writing'}); "
                "free some, and run the same command again to continue"
            )
            return 1
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            console.print_error(
                f"no permission to write {error.filename}; choose another folder "
                "with --runs, or change its owner"
            )
            return 1
        raise


def _terminate(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)
