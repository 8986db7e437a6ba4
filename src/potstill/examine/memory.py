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
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.examine.footprint import cache_bytes_per_token, tensor_bytes
from potstill.types import Estimate

TIMEOUT_SECONDS = 600.0
_IMPORTS = "import torch, transformers; from transformers import AutoModelForCausalLM"
_TOLD = """
import json
from potstill.examine.memory import own_peak_bytes
told = {"peak": own_peak_bytes()}
"""
_PRINT = "print(json.dumps(told))\n"
_EMPTY = _IMPORTS + _TOLD + _PRINT
_EMPTY_ENGINE = """
import json, xllamacpp
import potstill.models.llama_server
status = open("/proc/self/status", encoding="ascii").read().splitlines()
peak = next(line for line in status if line.startswith("VmHWM:"))
print(json.dumps({"peak": int(peak.split()[1]) * 1024}))
"""
# It imports no more than the server does, of which it is subtracted.
_LOADED = f"""
import sys
{_IMPORTS}, AutoTokenizer
torch.set_num_threads(int(sys.argv[4]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], local_files_only=True, dtype=getattr(torch, sys.argv[5])
)
ids = tokenizer(sys.argv[2], return_tensors="pt")
if torch.cuda.is_available():
    torch.cuda.reset_peak_memory_stats()
    model, ids = model.to("cuda"), ids.to("cuda")
model.generate(**ids, max_new_tokens=int(sys.argv[3]), do_sample=False)
{_TOLD}
told["loaded"] = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
if torch.cuda.is_available():
    told["gpu_allocated"] = torch.cuda.max_memory_allocated()
    told["gpu_reserved"] = torch.cuda.max_memory_reserved()
{_PRINT}
"""

_empty_peaks: dict[str, int] = {}
_measuring_empty = threading.Lock()

# Without a folder it imports the same and loads nothing.
_EMBEDDED = f"""
import sys, transformers
from pathlib import Path
from potstill.models.embedded import open_embedded
from potstill.types import Sampling
__import__(sys.argv[1].replace("-", "_"))
if len(sys.argv) > 2:
    engine = open_embedded(Path(sys.argv[2]), threads=1)
    engine.generate(engine.encode(sys.argv[3]), Sampling(max_new_tokens=32))
{_TOLD}
{_PRINT}
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
) -> dict[str, Estimate]:
    """What a Hugging Face folder takes while it answers one prompt in a fresh process.

    Args:
        dtype: Number format of the weights in memory, as `load_weights` has it.

    Returns:
        `memory` (peak resident bytes above an empty interpreter's), `memory.weights`,
        `memory.cache_token`, and on a GPU `memory.gpu_allocated` and `memory.gpu_reserved`.

    Raises:
        DataError: If the folder cannot be loaded; the message ends with the loader's.
    """
    from potstill.models.weights import resolve_dtype

    dtype = str(resolve_dtype(dtype)).removeprefix("torch.")
    empty = _empty_peak(_EMPTY, "an empty interpreter")
    settings = (prompt, str(max_new_tokens), str(num_threads), dtype)
    told = _told(["-c", _LOADED, str(model_dir), *settings], str(model_dir))
    note = f"{empty / 1e6:.0f} MB of the empty interpreter are subtracted; weights in {dtype}"
    found = {
        "memory": _bytes(
            told["peak"] - empty,
            "peak resident, minus an interpreter with torch and transformers imported",
            note,
        ),
        "memory.weights": _bytes(
            told["loaded"], "weights and buffers as loaded, shared ones once", f"in {dtype}"
        ),
        "memory.cache_token": cache_bytes_per_token(model_dir, dtype=dtype),
    }
    for name, what in (("allocated", "tensors"), ("reserved", "all that torch took")):
        if f"gpu_{name}" in told:
            value = told[f"gpu_{name}"]
            found[f"memory.gpu_{name}"] = _bytes(value, f"peak on the GPU: {what}", "")
    return found


def memory_of_engine(
    file: Path, peak_bytes: int | None, setting: dict[str, Any]
) -> dict[str, Estimate]:
    """What llama.cpp's server takes for a GGUF file, from its own peak.

    Args:
        peak_bytes: Most resident memory that the server had; None where nobody tells it.
        setting: The engine's: `context` tokens for each of `batch` answers at once are held
            ready, whether they are used or not.
    """
    found = {
        "memory.weights": _bytes(tensor_bytes(file), "weights in the file", "as they are stored"),
        "memory.cache_token": cache_bytes_per_token(file),
    }
    if peak_bytes is None:
        return found
    empty = _empty_peak(_EMPTY_ENGINE, "an empty engine")
    note = f"{empty / 1e6:.0f} MB of an interpreter with the engine imported are subtracted"
    if "context" in setting:
        ready = setting["context"] * setting.get("batch", 1)
        note += f"; with room for {ready:,} tokens of cache"
    signature = "peak resident memory of the engine's process, minus an empty one"
    return {"memory": _bytes(peak_bytes - empty, signature, note), **found}


def memory_of_embedded(folder: Path, package: str, prompt: str) -> dict[str, Estimate]:
    """What a folder of an embedded engine takes while it answers one prompt in a fresh process.

    Args:
        package: The engine, such as ctranslate2.

    Raises:
        DataError: If the engine cannot load the folder.
    """
    empty = _told(["-c", _EMBEDDED, package], package)["peak"]
    peak = _told(["-c", _EMBEDDED, package, str(folder), prompt], str(folder))["peak"]
    note = f"{empty / 1e6:.0f} MB of the empty interpreter are subtracted"
    what = f"peak resident, minus an interpreter with {package} and transformers imported"
    return {"memory": _bytes(peak - empty, what, note)}


def memory_of_processes(peak_bytes: int | None) -> Estimate:
    """What the processes of a launched engine took at most, all in all."""
    return Estimate(
        value=peak_bytes,
        n=1,
        unit="bytes",
        method="none",
        signature="peak resident memory of the engine's processes",
        higher_is_better=False,
        note="memory of a GPU is not in it" if peak_bytes else "nobody tells it here",
    )


def _bytes(value: float, signature: str, note: str) -> Estimate:
    return Estimate(
        value=float(value),
        n=1,
        unit="bytes",
        method="none",
        signature=signature,
        higher_is_better=False,
        note=note,
    )


def _empty_peak(program: str, what: str) -> int:
    """Measured once for all models of a comparison: the same is subtracted from each."""
    with _measuring_empty:
        if program not in _empty_peaks:
            _empty_peaks[program] = _told(["-c", program], what)["peak"]
        return _empty_peaks[program]


def _told(arguments: Sequence[str], what: str) -> dict[str, int]:
    """What a fresh interpreter says of its memory at its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"{what}: its memory could not be measured: {last}")
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder.

    Raises:
        DataError: If there is nothing at the path.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist, so it has no size")
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
