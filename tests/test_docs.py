"""What the documentation shows is true: examples run, links lead somewhere, pages are fresh."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import blocks

from potstill.config import load_config, parse_config
from potstill.models.workspace import read_workspace

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_config_examples_are_valid(page):
    found = blocks(page)
    for language, text in found.items():
        if language.startswith("yaml") and "train_data" in text:
            parse_config(yaml.safe_load(text))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_names_a_place_on_somebodys_machine(page):
    assert not re.search(r"/(root|home|work|tmp)/[a-z.]", page.read_text(encoding="utf-8"))


def test_the_generated_reference_is_fresh():
    check = [sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_in_the_readme_exist():
    import typer.main

    from potstill.cli import app

    known = typer.main.get_command(app).commands
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in re.findall(r"(?:^|`)potstill ([a-z]+)", text, re.MULTILINE):
        assert command in known, command


@pytest.mark.journey
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_python_example_runs(page, tmp_path, monkeypatch, capsys):
    """The files of the page as they are, only the two models replaced by tiny ones."""
    from tiny import tiny_llama

    found = blocks(ROOT / page)
    (tmp_path / "train.jsonl").write_text(found["jsonl"], encoding="utf-8")
    tree = yaml.safe_load(found["yaml"])
    small = {"max_steps": 2, "precision": "fp32"}
    tree["train"] = {**tree.get("train", {}), **small}
    tree |= {"teacher": str(tiny_llama(tmp_path / "t")), "student": str(tiny_llama(tmp_path / "s"))}
    tree["generation"] = {"max_new_tokens": 8, "pilot": 0, "min_success_ratio": 0}
    tree["checks"] = []
    tree["evaluate"] = {"num_latency_calls": 0}
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    exec(compile(found["python"], page, "exec"), {})
    verdict, accuracies = capsys.readouterr().out.strip().splitlines()[-2:]
    assert verdict
    assert len(accuracies.split()) == 2


def test_the_quick_starts_workspace_file_is_valid(tmp_path):
    file = tmp_path / "potstill.yaml"
    file.write_text(blocks(ROOT / "docs" / "quickstart.md")["yaml workspace"])
    assert set(read_workspace(file).models) == {"deepseek-v3", "phi-4-mini"}


def test_the_schema_page_is_the_schema_that_a_config_is_checked_with(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs/reference/potstill.schema.json").read_text())
    tree = yaml.safe_load(blocks(ROOT / "docs" / "quickstart.md")["yaml"])
    jsonschema.validate(tree, schema)
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    assert load_config(tmp_path / "distill.yaml").name == "faq-student"
