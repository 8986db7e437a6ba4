"""The answer goes to standard output, the conversation to standard error, and nothing is run."""

import io
import json

import pytest
from examine.fake_report import fake_report

from potstill import console
from potstill.examine import numbers
from potstill.types import Estimate


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0011, "1.1 ms"), (0.042, "42 ms"), (0.21, "0.21 s"), (1.31, "1.3 s"), (48.2, "48 s"),
     (59.7, "1 min 00 s"), (372, "6 min 12 s"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_a_duration_is_written_as_people_say_it(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(512, "512 B"), (1_204_000, "1.2 MB"), (269_060_552, "269 MB"), (2.4e9, "2.4 GB")],
)
def test_a_size_is_decimal(num_bytes, text):
    assert console.size(num_bytes) == text


def test_numbers_have_their_unit_and_a_true_minus():
    assert numbers.number(0.81549) == "0.815"
    assert numbers.number(-0.02, sign=True) == "\N{MINUS SIGN}0.020"
    assert numbers.number(0.175, sign=True) == "+0.175"
    assert numbers.number(-0.0001) == "0.000"
    assert numbers.number(31.25, "points") == "31.2"
    assert numbers.number(None) == "\N{EN DASH}"
    assert console.parameters(134_515_008) == "135 M"
    assert console.parameters(1_711_376_384) == "1.71 B"


def test_a_stage_line_ends_with_its_time(capsys):
    console.stage_line("teach", "1,786 responses", 372)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{'teach':<{console.INDENT}}1,786 responses   ")
    assert err.endswith(" 6 min 12 s\n") and len(err) == 81


def test_long_texts_wrap_under_themselves():
    lines = console.stage_lines("check", "word " * 40, 1.2, 80)
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].endswith("1.2 s") and lines[1].startswith(" " * console.INDENT + "word")


def test_json_is_the_only_thing_on_standard_output(capsys):
    console.print_error("wrong")
    console.print_note("a remark")
    console.print_next(["potstill chat faq"])
    console.print_json({"text": "पार्सल"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"text": "पार्सल"} and "पार्सल" in out
    assert "error: wrong" in err and "next: potstill chat faq" in err


def test_a_report_fits_eighty_columns(capsys):
    console.print_report(fake_report(n=60))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "On 60 test answers" in out and "95 % interval" in out
    line = next(line for line in out.splitlines() if line.startswith("distilled "))
    assert "[" in line and "MB" in line


def test_rows_whose_names_say_little_are_explained_under_the_tables(capsys):
    report = fake_report(n=60)
    console.print_report(report)
    out = capsys.readouterr().out
    role = next(role for role in report.models if role in ("text", "gold_few", "untouched"))
    lines = [line for line in out.splitlines() if line.startswith(f"{role}  ")]
    assert "student" in lines[-1]


def test_a_column_without_any_value_is_left_out(capsys):
    report = fake_report(n=60)
    empty = Estimate(value=None, n=60, note="needs 100 calls")
    models = {
        role: found.model_copy(update={"metrics": {**found.metrics, "latency.p95": empty}})
        for role, found in report.models.items()
    }
    console.print_report(report.model_copy(update={"models": models}))
    assert "slowest" not in capsys.readouterr().out


def test_markup_and_terminal_codes_are_shown_and_not_obeyed(capsys):
    console.print_table(["A", "B"], [["[red]x[/red]", "y\x1b[31m\x07"], ["\u202ez", ":smile:"]])
    console.print_line("\x1b]0;title\x07")
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and ":smile:" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_columns_of_numbers_stand_right(capsys):
    console.print_table(["NAME", "COUNT", "WHAT"], [["a", "1,200", "x"], ["b", "7", "y"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  COUNT  WHAT", "a     1,200  x", "b         7  y"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_file_gets_a_line_every_ten_seconds():
    stream, clock = io.StringIO(), Clock()
    progress = console.Progress("teach", stream=stream, now=clock)
    for second in range(41):
        clock.now = float(second)
        progress.update(second, 100)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and "\r" not in stream.getvalue()
    assert lines[0].split("   ")[-1] == "about 1 min 30 s left"
    assert lines[0].startswith("teach ")


def test_a_terminal_has_one_line_that_is_taken_away():
    stream, clock = Terminal(), Clock()
    progress = console.Progress("teach", stream=stream, now=clock)
    for tick in range(1, 4):
        clock.now = tick / 2
        progress.update(tick, 3, "good\x1b[31m")
    progress.close()
    text = stream.getvalue()
    assert "\n" not in text and text.endswith("\r\x1b[2K")
    assert text.count("\x1b") == 4  # three drawings and the removal: none came from the text


class Event:
    def __init__(self, kind, stage="teach", text="", done=None, total=None, seconds=None):
        self.kind, self.stage, self.text = kind, stage, text
        self.done, self.total, self.seconds = done, total, seconds


def test_a_watch_prints_what_happens(capsys):
    with console.Watch() as watch:
        watch(Event("start"))
        watch(Event("progress", done=1, total=2))
        watch(Event("done", text="2 responses", seconds=3.0))
        watch(Event("skipped", stage="check", text="2 accepted"))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["teach", "check"]
    assert "(done before)" in err


def test_a_quiet_watch_says_nothing(capsys):
    with console.Watch(quiet=True) as watch:
        watch(Event("start"))
        watch(Event("done", text="x", seconds=1.0))
        watch.note("n")
    assert capsys.readouterr() == ("", "")
