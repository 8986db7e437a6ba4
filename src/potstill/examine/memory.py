"""How much memory a model needs, measured in a process of its own.

Peak resident memory of a fresh process that loads the model and answers one prompt, minus
the peak of a fresh process that only imports the same libraries. What is subtracted is
written beside the number. File pages that the kernel maps in count as resident.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from potstill.errors import DataError
from potstill.types import Estimate

TIMEOUT_SECONDS = 600.0
_IMPORTS = "import torch, transformers; from transformers import AutoModelForCausalLM"
_EMPTY = f"""
import json
{_IMPORTS}
from potstill.examine.memory import own_peak_bytes
print(json.dumps(own_peak_bytes()))
"""
_LOADED = f"""
import json, sys
{_IMPORTS}, AutoTokenizer
from potstill.examine.memory import own_peak_bytes
torch.set_num_threads(int(sys.argv[4]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], local_files_only=True, dtype=getattr(torch, sys.argv[5])
)
ids = tokenizer(sys.argv[2], return_tensors="pt")
model.generate(**ids, max_new_tokens=int(sys.argv[3]), do_sample=False)
print(json.dumps(own_peak_bytes()))
"""


def own_peak_bytes() -> int:
    """Peak resident memory of this process since its program started."""
    try:
        return peak_resident_bytes(os.getpid())
    except FileNotFoundError:  # no /proc: ru_maxrss is in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_resident_bytes(pid: int) -> int:
    """Peak resident memory of a running process, such as an engine's server (Linux).

    Not ru_maxrss: a child inherits that from the process that started it.

    Raises:
        FileNotFoundError: If there is no such process, or no /proc.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise FileNotFoundError(f"/proc/{pid}/status names no VmHWM")


def memory_of(
    model_dir: Path,
    prompt: str,
    *,
    dtype: str = "auto",
    max_new_tokens: int = 32,
    num_threads: int = 1,
) -> Estimate:
    """Peak resident bytes that a Hugging Face folder adds to an interpreter.

    Args:
        dtype: Number format of the weights in memory, as `load_weights` has it.

    Raises:
        DataError: If the folder cannot be loaded; the message ends with the loader's.
    """
    from potstill.models.weights import resolve_dtype

    dtype = str(resolve_dtype(dtype)).removeprefix("torch.")
    empty = _peak([sys.executable, "-c", _EMPTY], "an empty interpreter")
    loaded = _peak(
        [
            sys.executable,
            "-c",
            _LOADED,
            str(model_dir),
            prompt,
            str(max_new_tokens),
            str(num_threads),
            dtype,
        ],
        str(model_dir),
    )
    return Estimate(
        value=float(loaded - empty),
        n=1,
        unit="bytes",
        method="none",
        signature="peak resident, minus an interpreter with torch and transformers imported",
        higher_is_better=False,
        note=f"{empty / 1e6:.0f} MB of the empty interpreter are subtracted; weights in {dtype}",
    )


def _peak(command: Sequence[str], what: str) -> int:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"{what}: its memory could not be measured: {last}")
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder.

    Raises:
        DataError: If there is nothing at the path.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist, so it has no size")
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
