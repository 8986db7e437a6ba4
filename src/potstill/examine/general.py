"""What a student can still do besides its task: public benchmarks, asked by lm-eval.

lm-eval needs packages that conflict with ours, so its command comes from an environment of its
own, and only its results are read. It is found on disk, never installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.resample import Z
from potstill.types import Estimate

PREFIX = "general"
"""What the names of these metrics begin with: general.TASK.METRIC."""

_NOT_HANDED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def ask_lm_eval(
    command: Path,
    model_dir: Path,
    tasks: Sequence[str],
    *,
    limit: int | None,
    batch_size: int,
    out: Path,
) -> dict[str, Estimate]:
    """Runs lm-eval on a Hugging Face folder, in its own environment and process.

    Args:
        command: The executable `lm_eval` of that environment.
        limit: Questions of each task; all where None.
        out: Folder for its results.

    Returns:
        general.TASK.METRIC -> estimate.

    Raises:
        ConfigError: If there is no such command.
        PotstillError: If it fails; with its last words.
        DataError: If its results cannot be read.
    """
    if not command.is_file():
        raise ConfigError(
            f"evaluate.lm_eval: {command} is no file; it is the command of an environment of its "
            f"own: python -m venv lm-eval && lm-eval/bin/pip install lm-eval[hf], and then "
            f"lm-eval/bin/lm_eval"
        )
    out.mkdir(parents=True, exist_ok=True)
    before = _written(out)
    arguments = [
        *("--model", "hf", "--model_args", f"pretrained={model_dir.absolute()}"),
        *("--tasks", ",".join(tasks), "--batch_size", str(batch_size)),
        *("--output_path", str(out.absolute())),
        *(("--limit", str(limit)) if limit else ()),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_HANDED_ON}
    done = subprocess.run(
        [str(command.absolute()), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = " / ".join(line.strip() for line in lines[-3:]) or "nothing"
        raise PotstillError(
            f"lm-eval ended with code {done.returncode} on {', '.join(tasks)}; its last words: "
            f"{said}"
        )
    files = sorted(_written(out) - before)
    if not files:
        raise DataError(f"lm-eval ended well, but wrote no results into {out}")
    return read_results(json.loads(files[-1][1].read_text(encoding="utf-8")))


def _written(folder: Path) -> set[tuple[int, Path]]:
    """Results files of a folder, with their time of change in nanoseconds."""
    return {(file.stat().st_mtime_ns, file) for file in folder.rglob("results*.json")}


def read_results(tree: Mapping[str, Any]) -> dict[str, Estimate]:
    """The figures of lm-eval's results file, each with the interval of its standard error.

    Raises:
        DataError: If it is none.
    """
    results = tree.get("results")
    if not isinstance(results, Mapping) or not results:
        raise DataError("lm-eval's results hold no `results`; is this a file that it wrote?")
    found = {}
    for task, figures in results.items():
        counts = tree.get("n-samples", {}).get(task, {})
        directions = tree.get("higher_is_better", {}).get(task, {})
        for key, value in figures.items():
            name, _, how = key.partition(",")
            if name.endswith("_stderr") or isinstance(value, bool | str) or value is None:
                continue
            error = figures.get(f"{name}_stderr,{how}")
            has_error = isinstance(error, int | float)
            shots = tree.get("n-shot", {}).get(task)
            said = [f"lm-eval {tree.get('lm_eval_version', '')}".strip(), f"filter {how or 'none'}"]
            said += [f"{shots}-shot"] if shots is not None else []
            said += [f"task version {tree['versions'][task]}"] if "versions" in tree else []
            found[f"{PREFIX}.{task}.{name}"] = Estimate(
                value=float(value),
                low=float(value - Z * error) if has_error else None,
                high=float(value + Z * error) if has_error else None,
                n=int(counts.get("effective", 0)),
                method="normal, lm-eval's standard error" if has_error else "none",
                signature=", ".join(said),
                higher_is_better=bool(directions.get(name, True)),
            )
    return found


def with_drift(
    student: Mapping[str, Estimate], before: Mapping[str, Estimate]
) -> dict[str, Estimate]:
    """The student's figures, each with its distance from what it was before, in a note.

    Both answered the same questions, but only standard errors are told, so the interval is that
    of independent answers: too wide rather than too narrow.
    """
    found = {}
    for name, ours in student.items():
        theirs = before.get(name)
        if theirs is None or ours.low is None or theirs.low is None:
            found[name] = ours
            continue
        moved = ours.value - theirs.value
        half = ((ours.value - ours.low) ** 2 + (theirs.value - theirs.low) ** 2) ** 0.5
        note = (
            f"untouched {theirs.value:.3f}; {moved:+.3f} [{moved - half:+.3f}, {moved + half:+.3f}]"
        )
        found[name] = ours.model_copy(update={"note": f"{note}, unpaired"})
    return found
