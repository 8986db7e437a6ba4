"""Does it teach, and which loss best? python benchmarks/proof.py --data FOLDER

Two real tasks, one of them open generation; a tuned SmolLM2-135M teaches 6 of its 30 layers.
FOLDER holds TASK/DATASET/train.jsonl and test.jsonl in the chat format. Learning rates are
chosen on validation rows; the test set is opened by finished students alone. Every student is a
process of its own on one core; finished ones are read, not repeated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from proof_arm import ARMS, NUM_LAYERS, TASKS
from scipy import stats

from potstill.examine.resample import percentile_interval, resampled_sums

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end of the tables -->"
RATES = (1e-3, 2e-3)
FAMILIES = {"text": "text", "forward_kl": "forward_kl", "fresh": "fresh"}
"""Whose learning rate is chosen; arms that learn text alone take text's, others forward KL's."""

STEPS = 160
CHOOSING_SEED = 99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs") / "proof")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, default=5, help="most seeds of an arm")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "proof.md")
    options = parser.parse_args()
    if not options.page_only:
        work([Lab(task, options) for task in options.tasks], options)
    write(options)


def work(labs: list[Lab], options: argparse.Namespace) -> None:
    """All tasks in turns, equal steps before equal time: what is cut short is whole in seeds."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in options.cores:
        cores.put(core)
    for lab in labs:
        lab.prepare(cores)
    everyone = [job for lab in labs for job in lab.rate_trials()]
    do_all(everyone, cores, len(options.cores))
    for seed in range(options.seeds):
        do_all([job for lab in labs for job in lab.students(seed)], cores, len(options.cores))
        write(options)
    for seed in range(options.seeds):
        do_all([job for lab in labs for job in lab.same_time(seed)], cores, len(options.cores))
        write(options)


class Job(NamedTuple):
    """One student that is to be made."""

    lab: Lab
    arm: str
    seed: int
    rate: float
    steps: int
    examine: bool
    name: str

    @property
    def out(self) -> Path:
        return self.lab.found / f"{self.name}.json"

    def do(self, core: int) -> None:
        more = ["--rate", str(self.rate), "--steps", str(self.steps), "--out", str(self.out)]
        self.lab.child(core, self.arm, self.seed, more + ["--examine"] * self.examine, self.name)


class Lab:
    """One task's students, each made once."""

    def __init__(self, task: str, options: argparse.Namespace):
        self.task, self.data = task, options.data
        self.run = options.runs / task
        self.found = self.run / "found"

    def prepare(self, cores: SimpleQueue[int]) -> None:
        self.found.mkdir(parents=True, exist_ok=True)
        core = cores.get()
        if not (self.run / "ready.json").exists():
            self.child(core, "set_up", 0, [], "data, teacher, probabilities")
        if not (self.run / "times.json").exists():
            self.child(core, "times", 0, [], "seconds of a step, alone")
        cores.put(core)

    def rate_trials(self) -> list[Job]:
        return [
            Job(self, arm, CHOOSING_SEED, rate, STEPS, False, f"rate-{arm}-{rate}")
            for arm in FAMILIES
            for rate in RATES
        ]

    def students(self, seed: int) -> list[Job]:
        rates = chosen_rates(self.found)
        return [
            Job(self, name, seed, rates[family(name)], STEPS, True, f"{name}-{seed}")
            for name, arm in ARMS.items()
            if seed < arm.num_seeds
        ]

    def same_time(self, seed: int) -> list[Job]:
        """Students that may only take as long as those that learn text, where that is fewer."""
        rates = chosen_rates(self.found)
        return [
            Job(self, name, seed, rates[family(name)], steps, True, f"time-{name}-{seed}")
            for name, steps in steps_in_same_time(self.run).items()
            if seed < ARMS[name].num_seeds
        ]

    def child(self, core: int, arm: str, seed: int, more: list[str], text: str) -> None:
        started = time.monotonic()
        command = [sys.executable, str(Path(__file__).parent / "proof_arm.py")]
        command += [self.task, arm, str(seed), "--data", str(self.data)]
        command += ["--run", str(self.run), *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        subprocess.run(["taskset", "-c", str(core), *command], check=True, env=environment)
        print(f"{self.task}, {text}: {time.monotonic() - started:.0f} s", flush=True)


def do_all(jobs: list[Job], cores: SimpleQueue[int], num_cores: int) -> None:
    """Makes the students that are not there yet, one on each core at a time."""

    def do(job: Job) -> None:
        core = cores.get()
        try:
            job.do(core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(num_cores) as pool:
        for done in [pool.submit(do, job) for job in jobs if not job.out.exists()]:
            done.result()


def family(arm: str) -> str:
    if ARMS[arm].fresh:
        return "fresh"
    return "text" if ARMS[arm].loss["kind"] == "sft" else "forward_kl"


def chosen_rates(found: Path) -> dict[str, float]:
    """The learning rate with the lowest loss on the validation rows' text, by family."""
    rates = {}
    for name in FAMILIES:
        files = [found / f"rate-{name}-{rate}.json" for rate in RATES]
        trials = [json.loads(file.read_text()) for file in files]
        rates[name] = min(trials, key=lambda trial: trial["validation_nll"])["rate"]
    return rates


def steps_in_same_time(run: Path) -> dict[str, int]:
    """Steps that fit into the time of the text students, for arms that are a tenth slower."""
    seconds = step_seconds(run)
    steps = {name: max(1, round(STEPS * seconds["text"] / took)) for name, took in seconds.items()}
    return {name: number for name, number in steps.items() if 1.1 * number < STEPS}


def step_seconds(run: Path) -> dict[str, float]:
    """Seconds of a step of each arm, measured in turns."""
    return json.loads((run / "times.json").read_text())


def results(found: Path, arm: str, prefix: str = "") -> list[dict[str, Any]]:
    files = [found / f"{prefix}{arm}-{seed}.json" for seed in range(ARMS[arm].num_seeds)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


# The page


def write(options: argparse.Namespace) -> None:
    lines = [
        "# Does it teach, and which loss teaches best?",
        "",
        f"{datetime.date.today()}; `python benchmarks/proof.py --data FOLDER`, one core of a",
        f"shared machine a student. SmolLM2-135M, tuned on gold rows, teaches {NUM_LAYERS} of its",
        "layers (cut from the untuned model; word vectors and the lowest layer stay as they",
        f"are), {STEPS} steps of 8 rows; a fifth of a loss on probabilities is that on text, where",
        "nothing else is said. Differences are paired and not adjusted for their number.",
        "",
    ]
    for name in TASKS:
        run = options.runs / name
        if (run / "ready.json").exists() and results(run / "found", "text"):
            lines += section(name, run)
    text = "\n".join(lines)
    before = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    notes = before.partition(END)[2].lstrip()
    options.out.write_text(f"{text}\n{END}\n\n{notes}", encoding="utf-8")


def section(name: str, run: Path) -> list[str]:
    ready = json.loads((run / "ready.json").read_text())
    task, found = TASKS[name], run / "found"
    rates = chosen_rates(found)
    counts = ready["rows"]
    teacher = ", ".join(f"{key} {value:.3f}" for key, value in ready["teacher"].items())
    lines = [
        f"## {name.capitalize()}: {task.file.split('/')[-1]}",
        "",
        f"{counts['gold']} gold rows tuned the teacher, which answered {counts['pool']} other",
        f"prompts; {counts['validation']} validation rows; test n = {task.num_test}",
        f"({counts['test']} rows have a teacher's answer that fits). Teacher on the test set:",
        f"{teacher}. {100 * ready['loss_share']:.0f} % of the tokens carry loss. Learning rates by",
        "validation loss: "
        + ", ".join(f"{key} {rate:g}" for key, rate in rates.items())
        + f" (of {', '.join(f'{rate:g}' for rate in RATES)}).",
        "",
        "### Equal steps",
        "",
        *table(task, run, list(ARMS), ""),
    ]
    slower = steps_in_same_time(run)
    timed = [arm for arm in slower if results(found, arm, "time-")]
    if timed:
        took = ", ".join(f"{arm} {slower[arm]}" for arm in timed)
        lines += [
            "### Equal time",
            "",
            f"Steps in the time of {STEPS} steps of text: {took}. All other arms take within a",
            "tenth of its time a step, so that their rows above are those of equal time as well",
            "(what the teacher's probabilities cost beforehand is not in it).",
            "",
            *table(task, run, timed, "time-"),
        ]
    return lines


def table(task: Any, run: Path, arms: list[str], prefix: str) -> list[str]:
    found, seconds = run / "found", step_seconds(run)
    lines = [
        "| learns from | seeds | s a step | "
        + " | ".join(task.metrics)
        + " | accuracy minus text: over records | over seeds | KL to the teacher, nats a token "
        "| minus text: over records | over seeds | perplexity of its answers |",
        "|---|" + "---|" * (8 + len(task.metrics)),
    ]
    text = results(found, "text")
    for name in arms:
        runs = results(found, name, prefix)
        if not runs:
            continue
        cells = [ARMS[name].text, str(len(runs)), f"{seconds[name]:.2f}"]
        for metric in task.metrics:
            values = [one["metrics"][metric] for one in runs]
            cells.append(f"{np.mean(values):.3f}" if None not in values else "none")
        cells += differences(accuracy_sums(runs), accuracy_sums(text), same=name == "text")
        kl = [sum(one["kl"]) / sum(one["tokens"]) for one in runs]
        cells.append(f"{np.mean(kl):.3f}")
        cells += differences(sums(runs, "kl"), sums(text, "kl"), same=name == "text")
        nll = [sum(one["nll"]) / sum(one["tokens"]) for one in runs]
        cells.append(f"{math.exp(np.mean(nll)):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def accuracy_sums(runs: list[dict[str, Any]]) -> np.ndarray:
    """[seeds, records, 2]: how right, and one for each record."""
    keys = sorted(runs[0]["correct"])
    rows = [[(run["correct"][key] or 0.0, 1.0) for key in keys] for run in runs]
    return np.array(rows, dtype=float)


def sums(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """[seeds, records, 2]: a sum over the answer's tokens, and their number."""
    return np.array([list(zip(run[name], run["tokens"], strict=True)) for run in runs])


def differences(a: np.ndarray, b: np.ndarray, *, same: bool) -> list[str]:
    """Paired, a minus b: bootstrap over records of the seeds' mean, and t over the seeds."""
    if same:
        return ["", ""]
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    both = np.concatenate([a.mean(axis=0), b.mean(axis=0)], axis=1)
    drawn = resampled_sums(both, seed=0)
    low, high = percentile_interval(ratio(drawn[:, :2]) - ratio(drawn[:, 2:]))
    total = both.sum(axis=0)
    value = ratio(total[:2]) - ratio(total[2:])
    each = ratio(a.sum(axis=1)) - ratio(b.sum(axis=1))
    half = stats.t.ppf(0.975, n - 1) * np.std(each, ddof=1) / n**0.5 if n > 1 else math.nan
    over = f"[{each.mean() - half:+.3f}, {each.mean() + half:+.3f}]" if n > 1 else "one seed"
    return [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", over]


def ratio(pairs: np.ndarray) -> Any:
    return pairs[..., 0] / pairs[..., 1]


if __name__ == "__main__":
    main()
