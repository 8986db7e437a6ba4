"""One real dataset for each task, distilled once: python benchmarks/datasets.py --data FOLDER

FOLDER holds TASK/DATASET/train.jsonl and test.jsonl in the chat format. Of the training file the
teacher is tuned on the first rows, and labels the next ones, which it has not seen; all models
answer the first rows of the test file. Small on purpose: it shows that the pipeline works on real
data and what comes of it in minutes, not what the dataset allows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from potstill import console
from potstill.config import TrainConfig, load_config
from potstill.demo.recipe import KEPT_LAYERS
from potstill.demo.run import tune_teacher
from potstill.pipeline import distill
from potstill.rundir import RunDir
from potstill.types import Estimate, Report

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end of the table -->"


@dataclass(frozen=True)
class Case:
    """A dataset, and how much of it is used."""

    task: str
    dataset: str
    real: bool
    """SmolLM2-135M and 13 of its layers; else tiny models with random weights to start from."""

    num_gold: int = 320
    num_pool: int = 300
    num_test: int = 120
    batch_size: int = 8
    teacher_steps: int = 36
    student_steps: int = 45
    max_tokens: int = 192
    max_new_tokens: int = 16


CASES = (
    Case("classification", "clinc150_domain", real=True, num_pool=480, student_steps=100),
    Case("nli", "snli", real=True, num_pool=480, student_steps=100),
    Case(
        "qa",
        "xquad_en",
        real=True,
        num_gold=96,
        num_pool=120,
        num_test=80,
        batch_size=4,
        teacher_steps=25,
        student_steps=60,
        max_tokens=384,
    ),
    Case("conversation", "taskmaster4", real=False, num_test=60, max_new_tokens=48),
    Case("math", "gsm8k", real=False, num_test=100, max_tokens=512, max_new_tokens=96),
    Case(
        "summarization",
        "scitldr",
        real=False,
        num_gold=160,
        num_pool=160,
        num_test=60,
        teacher_steps=24,
        student_steps=30,
        max_tokens=1024,
        max_new_tokens=48,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[case.dataset for case in CASES])
    parser.add_argument("--runs", type=Path, default=Path("runs") / "datasets")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "datasets.md")
    options = parser.parse_args()
    for case in CASES:
        if case.dataset in options.only:
            one(case, options.data, options.runs)
        put(options.out, page(options.runs))


def one(case: Case, data: Path, runs: Path) -> None:
    run = RunDir(runs / case.dataset)
    inputs = RunDir(run.path / "inputs")
    source = data / case.task / case.dataset
    train = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    test = (source / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    held = min(48, case.num_gold // 8)
    end = case.num_gold + held
    parts = {
        "gold": train[: case.num_gold],
        "validation": train[case.num_gold : end],
        "pool": train[end : end + case.num_pool],
        "test": test[: case.num_test],
    }
    inputs.path.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        (inputs.path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    started = time.monotonic()
    base = "smollm2-135m" if case.real else tiny(run.path / "tiny", layers=4)
    with console.Watch() as watch:
        teacher = tune_teacher(
            inputs, base, settings(case, case.teacher_steps, frozen=10), task=case.task, tell=watch
        )
        config = run.path / "distill.yaml"
        config.write_text(yaml.safe_dump(tree(case, base, teacher), sort_keys=False))
        distill(load_config(config), run, on_event=watch)
    clock = run.path / "seconds.json"
    if not clock.exists():
        clock.write_text(json.dumps({"seconds": time.monotonic() - started}))


def settings(case: Case, steps: int, *, frozen: int) -> TrainConfig:
    return TrainConfig(
        learning_rate=4e-4 if case.real else 3e-3,
        max_steps=steps if case.real else 4 * steps,
        batch_size=case.batch_size,
        max_tokens=case.max_tokens,
        freeze_embeddings=case.real,
        freeze_layers=frozen if case.real else 0,
        precision="autocast" if case.real else "fp32",
        weight_decay=0.0,
        early_stopping=False,
    )


def tree(case: Case, base: str, teacher: Path) -> dict:
    layers = list(KEPT_LAYERS) if case.real else [0, 3]
    closed = case.task in ("classification", "nli")
    train = settings(case, case.student_steps, frozen=2).model_dump(mode="json")
    return {
        "name": case.dataset.replace("_", "-"),
        "task": case.task,
        "teacher": str(teacher),
        "student": {"prune": {"from": base, "layers": layers}},
        "train_data": "inputs/pool.jsonl",
        "data": {"validation": "inputs/validation.jsonl", "test": "inputs/test.jsonl"},
        "generation": {
            "temperature": 0.0,
            "max_new_tokens": case.max_new_tokens,
            "batch_size": 64,
            "pilot": 0,
            "min_success_ratio": 0.5,
        },
        "checks": ["finished", "task"] if case.real else [],
        "loss": {"kind": "forward_kl", "sft_weight": 0.2, "targets": {"k": 16}},
        "train": train | {"learning_rate": 1e-3 if case.real else 3e-3},
        "evaluate": {
            "baselines": ["untouched", "gold_all", "text", *(["plain"] if closed else [])],
            "gold_data": "inputs/gold.jsonl",
            "num_latency_calls": 6,
            "batch_size": 64,
        },
    }


def tiny(folder: Path, *, layers: int) -> str:
    """A Llama with random weights and a small byte-level tokenizer, made once."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_llama

    if not (folder / "config.json").exists():
        tiny_llama(folder, layers=layers, hidden=128)
        config = json.loads((folder / "config.json").read_text())
        longest = max(case.max_tokens for case in CASES)
        config["max_position_embeddings"] = longest  # its vocabulary is bytes, so rows are long
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def page(runs: Path) -> str:
    lines = [
        "# What comes of one small distillation per task on real data?",
        "",
        f"{datetime.date.today()}; `python benchmarks/datasets.py --data FOLDER`, two shared CPU",
        "cores. One seed, minutes a row: a check that the pipeline works on real data, not a claim",
        "about the datasets. `real`: SmolLM2-135M, tuned on the gold rows, teaches 13 of its 30",
        "layers; `tiny`: models of random weights, from which nothing can be expected. There is no",
        "dataset for translation here; that task runs on the rows of its page in the tests.",
        "",
        "| task | dataset | models | metric | n | teacher | distilled | text | gold_all "
        "| untouched | TF-IDF on the teacher's labels | distilled - gold_all | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        run = RunDir(runs / case.dataset)
        if not run.report_json.exists() or not (run.path / "seconds.json").exists():
            continue
        report = Report.model_validate_json(run.report_json.read_text(encoding="utf-8"))
        roles = ("teacher", "distilled", "text", "gold_all", "untouched", "tfidf_teacher")
        cells = [
            show(report.models[role].metrics[report.primary_metric])
            if role in report.models
            else ""
            for role in roles
        ]
        found = next(
            c
            for c in report.comparisons
            if (c.a, c.b, c.metric) == ("distilled", "gold_all", report.primary_metric)
        )
        minutes = json.loads((run.path / "seconds.json").read_text())["seconds"] / 60
        kind = "real" if case.real else "tiny"
        n = report.models["distilled"].metrics[report.primary_metric].n
        lines.append(
            f"| {case.task} | {case.dataset} | {kind} | {report.primary_metric} | {n} | "
            + " | ".join(cells)
            + f" | {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | {minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def put(out: Path, table: str) -> None:
    """Writes the page; what somebody wrote under the table stays."""
    before = out.read_text(encoding="utf-8") if out.exists() else ""
    out.write_text(f"{table}\n{END}\n\n{before.partition(END)[2].lstrip()}", encoding="utf-8")


def show(found: Estimate) -> str:
    if found.value is None:
        return "none"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    main()
