"""How we print: the answer on standard output, the conversation on standard error.

Nothing that a model or a file wrote reaches a terminal as it is: rich's markup is off, and
control characters are shown, not sent.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from potstill.examine import numbers
from potstill.examine.numbers import count, duration, parameters, size
from potstill.examine.report_judge import judge_lines, judge_table
from potstill.examine.report_markdown import metric_names
from potstill.examine.report_speed import claim_lines
from potstill.examine.report_verdict import metric_text, role_text
from potstill.types import Estimate, Evaluation, Report

__all__ = [
    "Progress",
    "Watch",
    "clean",
    "clock",
    "count",
    "duration",
    "parameters",
    "print_error",
    "print_json",
    "print_line",
    "print_next",
    "print_note",
    "print_report",
    "print_table",
    "size",
    "stage_line",
]

INDENT = 20
"""Width of the column of stage names."""

WIDEST = 100
PIPE_WIDTH = 1000
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.1
ELSEWHERE = ("latency", "memory", "disk")
SHOWN = {"latency": "latency", "memory": "memory", "disk": "on disk"}


def clean(text: object) -> str:
    """Text without power over a terminal: control and direction characters become U+FFFD."""
    return "".join(
        character
        if character in "\n\t"
        or (
            unicodedata.category(character) not in ("Cc", "Cs")
            and character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        )
        else "\N{REPLACEMENT CHARACTER}"
        for character in str(text)
    )


def clock(moment: datetime.datetime | float | None) -> str:
    """A point in time as the clock on the wall shows it; empty for None."""
    if moment is None:
        return ""
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def print_line(text: str = "") -> None:
    """One line of the answer, on standard output."""
    print(clean(text))


def print_json(value: Any) -> None:
    """One JSON value and nothing else, on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


def print_note(text: str) -> None:
    """A remark of the conversation, on standard error."""
    print(f"note: {clean(text)}", file=sys.stderr)


def print_story(text: str) -> None:
    """What is going to happen, in a few lines of the conversation."""
    print(f"{clean(text)}", file=sys.stderr)


def print_error(text: str) -> None:
    """What went wrong, on standard error."""
    print(f"error: {clean(text)}", file=sys.stderr)


def print_next(lines: Sequence[str]) -> None:
    """What can be done next: the last line of a success, on standard error."""
    print(f"\nnext: {clean('      '.join(lines))}", file=sys.stderr)


def stage_line(name: str, text: str, seconds: float | None = None) -> None:
    """What a stage did, `teach        1,786 responses      6 min 12 s`, on standard error."""
    print("\n".join(stage_lines(name, text, seconds, _width(sys.stderr))), file=sys.stderr)


def stage_lines(name: str, text: str, seconds: float | None, width: int) -> list[str]:
    """The lines of `stage_line` in a terminal of a width; the time ends the first line."""
    took = "" if seconds is None else duration(seconds)
    head = f"{clean(name):<{INDENT}}" if len(name) < INDENT else f"{clean(name)}  "
    room = max(20, width - INDENT - len(took) - 2)
    lines = textwrap.wrap(clean(text), room, break_on_hyphens=False) or [""]
    first = head + lines[0]
    if took:
        first += " " * max(2, width - len(first) - len(took)) + took
    return [first.rstrip(), *(" " * INDENT + line for line in lines[1:])]


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns that fit the terminal; the last one wraps. Numbers stand right."""
    table = _table()
    for i, heading in enumerate(headings):
        values = [row[i] for row in rows]
        is_number = bool(values) and all(_is_number(value) for value in values)
        is_last = i == len(headings) - 1
        table.add_column(
            Text(clean(heading)),
            justify="right" if is_number else "left",
            no_wrap=not is_last,
            overflow="fold" if is_last else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(clean(value)) for value in row))
    _print_table(table)


def print_report(report: Report) -> None:
    """Verdict, models with intervals, speed and size, and gates, on standard output."""
    width = _width(sys.stdout)
    print_line()
    for line in textwrap.wrap(clean(report.verdict), width):
        print_line(line)
    print_line()
    _print_table(_main_table(report))
    others = _other_metrics(report, width)
    if others is not None:
        print_line()
        _print_table(others)
    _print_legend(report, width)
    if report.judge.get("preferences"):
        print_table(*judge_table(report.judge))
    for line in [*claim_lines(report), *judge_lines(report.judge)]:
        print_line(line)
    for gate in report.gates:
        state = "passed" if gate["passed"] else "FAILED"
        print_line(f"gate {state}: {gate['rule']} ({gate['found']})")
    if report.num_regressions or report.num_wins:
        print_line()
        cases = (
            f"Of the distilled student's answers {count(report.num_regressions)} are wrong where "
            f"another model is right, and {count(report.num_wins)} right where no other is."
        )
        for line in textwrap.wrap(cases, width):
            print_line(line)


def _print_legend(report: Report, width: int) -> None:
    """What the rows are whose names do not say it."""
    named = {role: role_text(role) for role in report.models}
    named = {r: t for r, t in named.items() if t != r and r not in ("teacher", "distilled")}
    if named:
        print_line()
    indent = max(map(len, named), default=0) + 2
    for role, text in named.items():
        line = clean(role).ljust(indent) + text
        for part in textwrap.wrap(line, width, subsequent_indent=" " * indent):
            print_line(part)


def _main_table(report: Report) -> Table:
    primary = report.primary_metric
    table = _table()
    table.add_column(Text(""), no_wrap=True)
    table.add_column(Text(clean(metric_text(primary))), justify="right", no_wrap=True)
    table.add_column(Text("95 % interval"), no_wrap=True)
    shown = [name for name in ELSEWHERE if any(_cost(e, name) for e in report.models.values())]
    for name in shown:
        table.add_column(Text(SHOWN[name]), justify="right", no_wrap=True)
    for role, evaluation in report.models.items():
        found = evaluation.metrics.get(primary)
        table.add_row(
            Text(clean(role)),
            Text(numbers.number(found.value, found.unit) if found else ""),
            Text(numbers.interval(found.low, found.high, found.unit) if found else ""),
            *(Text(_cost(evaluation, name)) for name in shown),
        )
    return table


def _cost(evaluation: Evaluation, name: str) -> str:
    if name == "disk":
        return size(evaluation.disk_bytes) if evaluation.disk_bytes else ""
    found: Estimate | None = evaluation.metrics.get(name)
    return numbers.number(found.value, found.unit) if found and found.value is not None else ""


def _other_metrics(report: Report, width: int) -> Table | None:
    """The metrics beside the primary one, as many as there is room for."""
    skipped = (report.primary_metric, *ELSEWHERE)
    names = [
        name
        for name in metric_names(report)
        if name not in skipped and any(_has_value(e, name) for e in report.models.values())
    ]
    room = width - max((len(role) for role in report.models), default=0)
    table = _table()
    table.add_column(Text(""), no_wrap=True)
    shown = []
    for name in names:
        heading = clean(metric_text(name))
        room -= max(len(heading), 9) + 2
        if room < 0:
            break
        shown.append(name)
        table.add_column(Text(heading), justify="right", no_wrap=True)
    if not shown:
        return None
    for role, evaluation in report.models.items():
        cells = [evaluation.metrics.get(name) for name in shown]
        table.add_row(
            Text(clean(role)),
            *(Text(numbers.number(found.value, found.unit) if found else "") for found in cells),
        )
    return table


def _has_value(evaluation: Evaluation, name: str) -> bool:
    found = evaluation.metrics.get(name)
    return found is not None and found.value is not None


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _print_table(table: Table) -> None:
    """Prints without the blanks at the ends of lines; a pipe gets lines as wide as they are."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    rich = RichConsole(file=sys.stdout, markup=False, highlight=False, emoji=False, width=width)
    with rich.capture() as capture:
        rich.print(table)
    print("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def _is_number(text: str) -> bool:
    return bool(text) and text.replace(",", "").replace(".", "", 1).rstrip(" %").isdigit()


def _width(stream: TextIO) -> int:
    """Columns to fill: the terminal's up to 100, and 80 where there is none."""
    if not stream.isatty():
        return 80
    return max(40, min(WIDEST, shutil.get_terminal_size().columns))


class Progress:
    """Where a piece of work is, on standard error.

    A terminal has one line that changes; a file or a pipe gets a line every ten seconds.
    """

    def __init__(self, name: str, *, stream: TextIO | None = None, now: Any = time.monotonic):
        self.name = name
        self._stream = stream or sys.stderr
        self._now = now
        self._is_live = self._stream.isatty()
        self._last = now()
        # Time left is reckoned from the first piece that was done: loading is no measure.
        self._first: tuple[float, int] | None = None
        self._drawn = False

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Shows that so many of so many are done; drawn only now and then."""
        wait = SECONDS_BETWEEN_DRAWINGS if self._is_live else SECONDS_BETWEEN_LINES
        now = self._now()
        if self._first is None and done:
            self._first = (now, done)
        if now - self._last < wait:
            return
        self._last = now
        line = self._line(done, total, text, now)
        if self._is_live:
            line = line[: _width(self._stream) - 1]
            self._stream.write(f"\r\x1b[2K{line}")
            self._drawn = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Takes the changing line away."""
        if self._drawn:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._drawn = False

    def _line(self, done: int, total: int | None, text: str, now: float) -> str:
        parts = [f"{count(done)} of {count(total)}" if total else count(done)] if done else []
        if total:
            parts.append(f"{done / total:.0%}")
        started, before = self._first or (now, done)
        if total and before < done < total and now - started >= 1:
            left = (now - started) / (done - before) * (total - done)
            parts.append(f"about {duration(left)} left")
        if text:
            parts.append(" ".join(clean(text).split()))
        return f"{clean(self.name):<{INDENT}}" + "   ".join(parts)


class Watch:
    """Prints what happens in a run: give it to the pipeline as `on_event`.

    An event has `stage`, `kind` (start, progress, done, skipped, note), `done`, `total`,
    `text` and `seconds`.
    """

    def __init__(self, *, quiet: bool = False):
        self._quiet = quiet
        self._progress: Progress | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Any) -> None:
        """Shows one event."""
        if self._quiet:
            return
        if event.kind == "progress":
            if self._progress is None or self._progress.name != event.stage:
                self._close()
                self._progress = Progress(event.stage)
            self._progress.update(event.done or 0, event.total, event.text)
            return
        self._close()
        if event.kind == "start":
            self._progress = Progress(event.stage)
        elif event.kind == "done":
            stage_line(event.stage, event.text, event.seconds)
        elif event.kind == "skipped":
            stage_line(event.stage, f"{event.text}   (done before)".strip())
        else:
            stage_line(event.stage, event.text)

    def title(self, config: Any, folder: Any) -> None:
        """The first line: name, models, loss, folder."""
        if self._quiet:
            return
        loss = config.loss.kind
        if loss != "sft":
            loss += f", T = {config.loss.temperature:g}"
        teachers = ", ".join(_short(teacher.place) for teacher in config.teachers)
        parts = [
            config.name,
            f"{teachers} -> {_short(config.student.place)}",
            loss,
            str(folder.path),
        ]
        print(clean("   ".join(parts)) + "\n", file=sys.stderr)

    def note(self, text: str) -> None:
        """A remark before or between the stages."""
        if not self._quiet:
            self._close()
            print_note(text)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def _short(place: str) -> str:
    """A model's place for a line: the folder's own name for a path."""
    return place if "://" in place else place.rstrip("/").rpartition("/")[2]
