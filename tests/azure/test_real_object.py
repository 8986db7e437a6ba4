"""The stand-in is equal to the real SDK's object, in an environment of the SDK's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-azure"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKAGES = ("azure-ai-ml==1.35.*", "pydantic>=2.11,<3", "PyYAML>=6")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment():
    """Made once: the SDK's dependencies do not belong beside ours."""
    mark = ENVIRONMENT / "complete"
    if not mark.exists():
        for command in (
            [sys.executable, "-m", "venv", str(ENVIRONMENT)],
            [str(PYTHON), "-m", "pip", "install", "-q", "--upgrade", "pip"],
            [str(PYTHON), "-m", "pip", "install", "-q", *PACKAGES],
        ):
            subprocess.run(command, check=True, capture_output=True)
        mark.touch()
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def found(environment, tmp_path_factory):
    """What `compare_with_sdk.py` saw."""
    folder = tmp_path_factory.mktemp("azure")
    script = Path(__file__).parent / "compare_with_sdk.py"
    done = subprocess.run(
        [str(PYTHON), str(script), str(folder)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stand_in_has_what_the_real_object_has(found):
    assert found["real_tree"] == found["stand_in_tree"]


def test_the_real_object_becomes_the_same_config(found):
    assert found["real_config"] == found["stand_in_config"]


def test_the_sdks_own_reading_of_the_yaml_becomes_the_same_config(found):
    assert found["loaded_config"] == found["yaml_config"]


def test_the_sdk_accepts_what_we_refuse(found):
    problems = found["problems"]
    for reason in ("got 9", "got -3", "'poetry' is not known", "no such inference parameter"):
        assert reason in problems


def test_potstill_never_imports_azure(found):
    assert found["azure_imports"] == []
