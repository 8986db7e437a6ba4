"""The command line: one short function a command, which parses, calls and prints."""

from __future__ import annotations

import sys

import click
import typer

from potstill import console
from potstill.cli import demo, jobs, look, run
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
jobs.add_to(app)
look.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `potstill` command; ends the process with the command's exit code."""
    command = typer.main.get_command(app)

    def work() -> None:
        command.main(args=arguments, prog_name="potstill", standalone_mode=False)

    try:
        code = ended(work)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        console.print_error(error.format_message())
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
