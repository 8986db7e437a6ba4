"""The page about serving is true: its example runs, its log is data, its options exist."""

import re
from pathlib import Path

import yaml
from pages import blocks
from serve.fakes import Sure
from serve.running import running

from potstill.cli import app
from potstill.config import parse_config

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_python_example_runs(capsys):
    code = blocks(PAGE)["python"]
    with running(Sure("faq-student"), settings={"name": "faq-student"}) as server:
        exec(compile(code.replace("http://127.0.0.1:8000", server.url), str(PAGE), "exec"), {})
    said = "faq-student says Can I return a gift?"
    assert capsys.readouterr().out.splitlines() == [said, said]


def test_the_config_that_learns_from_the_log_is_valid():
    assert parse_config(yaml.safe_load(blocks(PAGE)["yaml"])).name == "faq-student-2"


def test_every_option_on_the_page_exists():
    import typer.main

    commands = typer.main.get_command(app).commands
    known = {name for one in ("serve", "chat") for p in commands[one].params for name in p.opts}
    known |= {name for p in commands["serve"].params for name in p.secondary_opts}
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
