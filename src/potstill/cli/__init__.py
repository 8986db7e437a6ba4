"""The command line: one short function a command, which parses, calls and prints."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer

from potstill import console
from potstill.cli import (
    audition,
    bench,
    chat,
    compare,
    demo,
    estimate,
    export,
    jobs,
    look,
    run,
    seeds,
    serve,
    targets,
)
from potstill.cli.options import ended

app = typer.Typer(
    name="potstill",
    help="Distil an expensive large language model into a small one that you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
demo.add_to(app)
run.add_to(app)
compare.add_to(app)
export.add_to(app)
audition.add_to(app)
estimate.add_to(app)
bench.add_to(app)
jobs.add_to(app)
look.add_to(app)
seeds.add_to(app)
targets.add_to(app)
serve.add_to(app)
chat.add_to(app)


# typer brings its own click, so its exceptions are reached through the ones it exports.
UsageError: Any = typer.BadParameter.__base__


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `potstill` command; ends the process with the command's exit code."""
    command = typer.main.get_command(app)

    def work() -> None:
        try:
            code = command.main(args=arguments, prog_name="potstill", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except UsageError as error:
            _explain(error)
            sys.exit(2)
        if code == 128 + signal.SIGINT:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt

    sys.exit(ended(work))


def _explain(error: Any) -> None:
    """A usage error with the way out; the whole help where no command was given."""
    where = error.ctx.command_path if error.ctx else "potstill"
    text = error.format_message()
    if text.startswith("Usage:"):
        console.print_story(text)
    else:
        console.print_error(f"{text.rstrip('.')}; see {where} --help")
