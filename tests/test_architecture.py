"""The walls of the house. These tests read imports; they never run the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "potstill"

# A module may import from its own folder and from anything higher up in this
# list. Names on one line are siblings and never import each other.
LAYERS = [
    ["errors"],
    ["types"],
    ["config", "entities"],
    ["dialects"],
    ["protocols", "rundir"],
    ["data"],
    ["tasks"],
    ["models"],
    ["targets"],
    ["teach", "train", "examine", "export"],
    ["pipeline"],
    ["tune", "demo", "library"],
    ["jobs"],
    ["serve"],
    ["console"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Imports that climb on purpose, each with its reason.
ALLOWED = {
    # the facade of plain functions is reached from the package's own __getattr__ only
}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "fastapi", "uvicorn", "sklearn"}
MAY_PRINT = {"console", "cli"}
LIGHT = [
    "potstill",
    "potstill.config",
    "potstill.protocols",
    "potstill.rundir",
    "potstill.entities",
    "potstill.dialects",
    "potstill.jobs.client",
    "potstill.cli",
]
MODULES = sorted(SRC.rglob("*.py"))
IDS = [str(path.relative_to(SRC)) for path in MODULES]


def part_of(dotted: str) -> str:
    """'potstill.train.losses' -> 'train', 'potstill.errors' -> 'errors'."""
    return dotted.split(".")[1]


def own_part(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Dotted names a file imports, at its top and inside functions; not for type checking."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            found.add(node.module)
            if node.module == "potstill":
                found.update(f"potstill.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_down(path):
    own = own_part(path)
    if own == "__init__":
        return
    for name in imports_of(path):
        if not name.startswith("potstill.") or (own, name) in ALLOWED:
            continue
        other = part_of(name)
        if other.startswith("__"):
            continue
        assert other == own or RANK[other] < RANK[own], f"{own} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_file_fits_in_the_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_function_fits_on_a_screen(path):
    limit = 80 if path.relative_to(SRC).as_posix() == "train/loop.py" else 60
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_only_the_console_prints(path):
    if own_part(path) in MAY_PRINT:
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not calls, f"print() on lines {calls}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_nothing_is_pickled(path):
    assert not {"pickle", "cPickle", "joblib", "dill", "shelve"} & {
        name.split(".")[0] for name in imports_of(path)
    }


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_only_serve_knows_a_web_framework(path):
    if own_part(path) == "serve":
        return
    frameworks = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
    assert not frameworks & {name.split(".")[0] for name in imports_of(path)}


def test_only_rundir_spells_the_names_inside_a_run_folder():
    names = (
        "accepted.jsonl",
        "rejected.jsonl",
        "metrics.jsonl",
        "events.jsonl",
        "report.json",
        "report.html",
        "environment.json",
    )
    for path in MODULES:
        if own_part(path) in ("rundir", "demo", "cli", "console"):
            continue  # the last three name files in help texts only
        text = path.read_text(encoding="utf-8")
        strings = {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & set(names), f"{path.name} spells {strings & set(names)}"


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_light_modules_load_nothing_heavy():
    modules = ", ".join(name for name in LIGHT if _exists(name))
    loaded = _run(f"import sys, {modules}; print(*{{m.split('.')[0] for m in sys.modules}})")
    assert not HEAVY & set(loaded.split())


def test_importing_the_package_takes_less_than_a_tenth_of_a_second():
    code = "import time; t = time.perf_counter(); import potstill; print(time.perf_counter() - t)"
    assert min(float(_run(code)) for _ in range(5)) < 0.1


def test_every_public_name_exists():
    import potstill

    for name in potstill.__all__:
        assert getattr(potstill, name) is not None


def _exists(dotted: str) -> bool:
    path = SRC.joinpath(*dotted.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()
