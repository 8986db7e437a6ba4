"""What a student can still do besides its task: public benchmarks, asked by lm-eval.

lm-eval needs packages that conflict with ours, so its command comes from an environment of its
own, and only its results are read. It is found on disk, never installed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, DataError, PotstillError
from potstill.examine.resample import Z, wilson
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
    include: Path | None = None,
) -> dict[str, Estimate]:
    """Runs lm-eval on a Hugging Face folder, in its own environment and process.

    Args:
        command: The executable `lm_eval` of that environment.
        limit: Questions of each task; all where None.
        out: Folder for its results.
        include: Folder of task files that are not its own; paths in them count from it.

    Returns:
        general.TASK.METRIC -> estimate.

    Raises:
        ConfigError: If there is no such command, or no such folder of tasks.
        PotstillError: If it fails; with its last words.
        DataError: If its results cannot be read.
    """
    _refuse_absent(command, include)
    out.mkdir(parents=True, exist_ok=True)
    before = results_files(out)
    arguments = [
        *("--model", "hf", "--model_args", f"pretrained={model_dir.absolute()}"),
        *("--tasks", ",".join(tasks), "--batch_size", str(batch_size)),
        *("--output_path", str(out.absolute())),
        *(("--limit", str(limit)) if limit else ()),
        *(("--include_path", str(include.absolute())) if include else ()),
        "--log_samples",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_HANDED_ON}
    done = subprocess.run(
        [str(command.absolute()), *arguments],
        env=environment,
        cwd=include,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise PotstillError(
            f"lm-eval ended with code {done.returncode} on {', '.join(tasks)}; its last words: "
            f"{_last_words(done.stderr or done.stdout)}"
        )
    files = sorted(results_files(out) - before)
    if not files:
        raise DataError(f"lm-eval ended well, but wrote no results into {out}")
    return read_results(json.loads(files[-1][1].read_text(encoding="utf-8")))


def _refuse_absent(command: Path, include: Path | None) -> None:
    if not command.is_file():
        raise ConfigError(
            f"evaluate.lm_eval: {command} is no file; it is the command of an environment of its "
            f"own: python -m venv lm-eval && lm-eval/bin/pip install lm-eval[hf], and then "
            f"lm-eval/bin/lm_eval"
        )
    if include and not include.is_dir():
        raise ConfigError(
            f"evaluate.general_include: {include} is no folder; "
            f"it is to hold task files (YAML) for lm-eval"
        )


def _last_words(text: str) -> str:
    """The last three lines, or what a traceback says at its end without its places."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if any(line.startswith("Traceback ") for line in lines):
        place = max(i for i, line in enumerate(lines) if line.startswith(" ")) + 1
        lines = lines[place:] or lines
    return " / ".join(line.strip() for line in lines[-3:]) or "nothing"


def results_files(folder: Path) -> set[tuple[int, Path]]:
    """Results files of a folder, with their time of change in nanoseconds."""
    return {(file.stat().st_mtime_ns, file) for file in folder.rglob("results*.json")}


def read_results(tree: Mapping[str, Any]) -> dict[str, Estimate]:
    """The figures of lm-eval's results file, each with an interval where it has an error.

    Raises:
        DataError: If it is none.
    """
    results = tree.get("results")
    if not isinstance(results, Mapping) or not results:
        raise DataError("lm-eval's results hold no `results`; is this a file that it wrote?")
    found = {}
    for task, figures in results.items():
        counts = tree.get("n-samples", {}).get(task, {})
        n = int(counts.get("effective") or figures.get("sample_len") or 0)
        directions = tree.get("higher_is_better", {}).get(task, {})
        for key, value in figures.items():
            name, _, how = key.partition(",")
            # Only figures name their filter; counts and the task's names stand beside them.
            if not how or name.endswith("_stderr") or not is_number(value):
                continue
            error = figures.get(f"{name}_stderr,{how}")
            low, high, method = _interval(value, error if is_number(error) else None, n)
            shots = tree.get("n-shot", {}).get(task)
            version = tree.get("versions", {}).get(task)
            said = [f"lm-eval {tree.get('lm_eval_version', '')}".strip(), f"filter {how}"]
            said += [f"{shots}-shot"] if shots is not None else []
            said += [f"task version {version}"] if version is not None else []
            found[f"{PREFIX}.{task}.{name}"] = Estimate(
                value=float(value),
                low=low,
                high=high,
                n=n,
                method=method,
                signature=", ".join(said),
                higher_is_better=bool(directions.get(name, True)),
            )
    return found


def is_number(value: Any) -> bool:
    """Whether a value of lm-eval's files is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(value: float, error: float | None, n: int) -> tuple[float | None, float | None, str]:
    """Wilson's interval of a share of right answers, else that of lm-eval's standard error.

    The mean of n marks between 0 and 1 has the standard error sqrt(p (1 - p) / (n - 1)) only
    where every mark is 0 or 1, so the error tells a share. Where all marks are equal the error
    is 0, which would make an interval of no width.
    """
    if error is None:
        return None, None, "none"
    if n > 1 and 0 <= value <= 1:
        of_share = math.sqrt(value * (1 - value) / (n - 1))
        if math.isclose(error, of_share, rel_tol=1e-6, abs_tol=1e-12):
            return *wilson(value * n, n), "wilson"
    if not error:
        return None, None, "none"
    return value - Z * error, value + Z * error, "normal, lm-eval's standard error"


def with_drift(
    student: Mapping[str, Estimate], before: Mapping[str, Estimate]
) -> dict[str, Estimate]:
    """The student's figures, each with its distance from what it was before, in a note.

    Both answered the same questions, but only standard errors are looked at here, so the interval
    is that of independent answers: too wide rather than too narrow. Where marks of single questions
    are there, `general_pairs` says it better.

    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10.
    """
    found = {}
    for name, ours in student.items():
        theirs = before.get(name)
        if theirs is None or ours.low is None or theirs.low is None:
            found[name] = ours
            continue
        moved = ours.value - theirs.value
        low = moved - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
        high = moved + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
        note = f"untouched {theirs.value:.3f}; {moved:+.3f} [{low:+.3f}, {high:+.3f}]"
        found[name] = ours.model_copy(update={"note": f"{note}, unpaired"})
    return found
