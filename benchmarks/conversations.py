"""Multi-turn support, the tutorial's case: python benchmarks/conversations.py --data FOLDER

FOLDER holds conversation/sgd and conversation/taskmaster4, each with train.jsonl and test.jsonl
in the chat format. A teacher is tuned on gold dialogues, answers others that it has not seen, and
a student of fewer layers learns from that. Teacher, student and untouched student answer the
dialogues of the test files, each turn once on the gold history and once on the model's own
answers. A run that was stopped goes on where it was. Small on purpose: what comes of it in minutes
on one core, and how it is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import put

from potstill import console
from potstill.config import TrainConfig, load_config
from potstill.demo.recipe import KEPT_LAYERS
from potstill.demo.run import tune_teacher
from potstill.examine.compare import compare
from potstill.examine.metrics import accuracy, estimate
from potstill.examine.numbers import number
from potstill.examine.speed import median_seconds
from potstill.library import evaluate
from potstill.models.local import LocalModel
from potstill.models.weights import load_tokenizer
from potstill.pipeline import distill
from potstill.rundir import RunDir, read_jsonl, write_text
from potstill.tasks.conversation import conversation
from potstill.tasks.facts import conveys, hard_facts
from potstill.types import Estimate, Evaluation, Record, Report, Sample, Sampling

ROOT = Path(__file__).resolve().parent.parent
BASE = "smollm2-135m"
SETS = ("sgd", "taskmaster4")
SIZES = {"gold": 60, "validation": 8, "pool": 55, "test": 40}
"""Dialogues of each of the two sets."""

MOST_TURNS, MOST_TOKENS = 4, 384
"""A dialogue is cut to so many assistant turns, in so many tokens."""

MAX_NEW_TOKENS = 40
TEACHER_STEPS, STUDENT_STEPS = 45, 80
ROLES = ("teacher", "distilled", "untouched")
AT_ONCE = (1, 4, 16)
NUM_REQUESTS = 16
CORE_HOUR = 0.05
"""What an hour of one core is taken to cost, in dollars. Assumed; ratios do not depend on it."""

CLAIMS = {
    "accuracy kept": "92 %",
    "response time": "-85 %",
    "memory": "-95 %",
    "running cost": "lower",
    "concurrent users": "more",
}
"""What the tutorial says of its own case."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs") / "conversations")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "conversations.md")
    parser.add_argument("--fast", action="store_true", help="few rows and steps, to try it out")
    options = parser.parse_args()
    run = RunDir(options.run)
    started = time.monotonic()
    report = learned(run, options.data, fast=options.fast)
    own = {role: on_own_history(run, report, role) for role in ROLES}
    load = {role: under_load(run, report, role) for role in ROLES[:2]}
    clock = run.path / "seconds.json"
    before = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    write_text(clock, json.dumps({"seconds": before + time.monotonic() - started}))
    put(options.out, page(run, report, own, load))


def learned(run: RunDir, data: Path, *, fast: bool) -> Report:
    inputs = RunDir(run.path / "inputs")
    write_dialogues(inputs, data, {k: max(2, n // 8) for k, n in SIZES.items()} if fast else SIZES)
    teacher_steps, student_steps = (3, 3) if fast else (TEACHER_STEPS, STUDENT_STEPS)
    with console.Watch() as watch:
        settings = training(4e-4, teacher_steps, frozen=10)
        teacher = tune_teacher(inputs, BASE, settings, tell=watch)
        config = run.path / "distill.yaml"
        config.write_text(yaml.safe_dump(tree(teacher, student_steps), sort_keys=False))
        report = distill(load_config(config), run, on_event=watch)
    assert report is not None
    return report


def write_dialogues(inputs: RunDir, data: Path, sizes: dict[str, int]) -> None:
    tokenizer = load_tokenizer(BASE)
    parts: dict[str, list[str]] = {name: [] for name in sizes}
    for name in SETS:
        folder = data / "conversation" / name
        train, test = (cut_rows(folder / f"{part}.jsonl", tokenizer) for part in ("train", "test"))
        for part, size in sizes.items():
            rows = test if part == "test" else train
            parts[part] += [json.dumps(next(rows), ensure_ascii=False) + "\n" for _ in range(size)]
    for part, lines in parts.items():
        write_text(inputs.path / f"{part}.jsonl", "".join(lines))


def cut_rows(file: Path, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The dialogues of a file, each cut after the last assistant turn that there is room for."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answers = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"]
        for last in reversed(answers[:MOST_TURNS]):
            messages = row["messages"][: last + 1]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= MOST_TOKENS:
                yield {**row, "messages": messages}
                break


def training(rate: float, steps: int, *, frozen: int) -> TrainConfig:
    return TrainConfig(
        learning_rate=rate,
        max_steps=steps,
        batch_size=8,
        max_tokens=MOST_TOKENS,
        freeze_embeddings=True,
        freeze_layers=frozen,
        precision="autocast",
        weight_decay=0.0,
        warmup=0.05,
        early_stopping=False,
        eval_steps=steps,
    )


def tree(teacher: Path, steps: int) -> dict[str, Any]:
    return {
        "name": "conversations",
        "task": "conversation",
        "teacher": str(teacher),
        "student": {"prune": {"from": BASE, "layers": list(KEPT_LAYERS)}},
        "train_data": "inputs/pool.jsonl",
        "data": {"validation": "inputs/validation.jsonl", "test": "inputs/test.jsonl"},
        "generation": {
            "temperature": 0.0,
            "max_new_tokens": MAX_NEW_TOKENS,
            "batch_size": 64,
            "pilot": 0,
            "min_success_ratio": 0.5,
        },
        "checks": ["finished", "task"],
        "loss": {"kind": "forward_kl", "sft_weight": 0.2, "targets": {"k": 16}},
        "train": training(1e-3, steps, frozen=2).model_dump(mode="json"),
        "evaluate": {
            "baselines": ["untouched"],
            "num_latency_calls": 8,
            "num_trial": 0,
            "batch_size": 64,
        },
    }


def places(run: RunDir) -> dict[str, Path]:
    teacher = RunDir(run.path / "inputs").model
    return {"teacher": teacher, "distilled": run.model, "untouched": run.untouched}


def on_own_history(run: RunDir, report: Report, role: str) -> Evaluation:
    samples = run.samples(f"{role}-own")
    done = run.evaluation(f"{role}-own")
    if done.exists():
        return Evaluation.model_validate_json(done.read_text())
    found = evaluate(
        places(run)[role],
        run.path / "inputs" / "test.jsonl",
        task="conversation",
        role=role,
        sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS),
        batch_size=64,
        out_samples=samples,
        history="own",
    )
    write_text(done, found.model_dump_json())
    return found


def under_load(run: RunDir, report: Report, role: str) -> dict[int, dict[str, Any]]:
    """Seconds of an answer and answers a minute, with so many users asking at once."""
    file = run.path / f"load-{role}.json"
    if file.exists():
        return {int(k): v for k, v in json.loads(file.read_text()).items()}
    records = read_jsonl(run.test, Record)[:NUM_REQUESTS]
    prompts = [conversation.turns(record)[-1] for record in records]
    place = places(run)[role]
    found = {number: asyncio.run(asked(place, prompts, number)) for number in AT_ONCE}
    write_text(file, json.dumps(found))
    return found


async def asked(place: Path, prompts: list[Record], at_once: int) -> dict[str, Any]:
    model = LocalModel(place, batch_size=at_once)
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    waiting, seconds = iter(prompts), []
    await model.respond(prompts[0], Sampling(max_new_tokens=2))

    async def user() -> None:
        for prompt in waiting:
            started = time.perf_counter()
            await model.respond(prompt, sampling)
            seconds.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(at_once)))
    total = time.perf_counter() - started
    await model.close()
    e2e = median_seconds(seconds, note="", seed=0)
    return {"e2e": e2e.model_dump(mode="json"), "per_minute": 60 * len(seconds) / total}


def page(
    run: RunDir, report: Report, own: dict[str, Evaluation], load: dict[str, dict[int, Any]]
) -> str:
    records = read_jsonl(run.test, Record)
    num_turns = report.models["teacher"].metrics["accuracy"].n
    seconds = json.loads((run.path / "seconds.json").read_text())["seconds"]
    num_all = sum(
        len((run.path / "inputs" / f"{part}.jsonl").read_text().splitlines()) for part in SIZES
    )
    lines = [
        "# What comes of the tutorial's case, multi-turn support, on real dialogues?",
        "",
        f"{datetime.date.today()}; `python benchmarks/conversations.py --data FOLDER`, one shared "
        f"core, {seconds / 60:.0f} minutes.",
        f"{num_all} dialogues of SGD and Taskmaster-4, halves of each, cut to {MOST_TURNS} answers "
        f"in {MOST_TOKENS} tokens: {2 * SIZES['gold']} tune",
        f"SmolLM2-135M as teacher ({TEACHER_STEPS} steps), {2 * SIZES['pool']} others are answered "
        f"by it and teach {len(KEPT_LAYERS)} of its 30 layers ({STUDENT_STEPS} steps),",
        f"{len(records)} are the test: {num_turns} turns. One seed.",
        "",
        "An answer is right when it conveys the numbers, codes and names of the reference, or,",
        "where there are none, when its ROUGE-L F1 with it is at least 0.5. Brackets: 95 %, whole",
        "dialogues resampled.",
        "",
        *quality_table(run, report, own),
        "",
        *answerable(read_jsonl(run.samples("teacher"), Sample)),
        "",
        *load_table(load),
        "",
        *claims_table(report, load),
    ]
    return "\n".join(lines) + "\n"


def quality_table(run: RunDir, report: Report, own: dict[str, Evaluation]) -> list[str]:
    lines = [
        "| model | gold history | turns with facts | without | SGD | Taskmaster | own history "
        "| own - gold | BLEU | ROUGE-L | cut |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for role in ROLES:
        gold = read_jsonl(run.samples(role), Sample)
        selves = read_jsonl(run.samples(f"{role}-own"), Sample)
        hard = [s for s in gold if hard_facts(s.references[0])]
        soft = [s for s in gold if not hard_facts(s.references[0])]
        sets = [[s for s in gold if s.metadata["dataset"] == name] for name in SETS]
        moved = compare("own", "gold", accuracy, selves, gold, margin=0.02, seed=0)
        metrics = report.models[role].metrics
        cells = [
            show(metrics["accuracy"]),
            *(
                f"{show(estimate(accuracy, part, seed=0))}, n {len(part)}"
                for part in (hard, soft, *sets)
            ),
            show(own[role].metrics["accuracy"]),
            f"{moved.difference:+.3f} [{moved.low:+.3f}, {moved.high:+.3f}]",
            f"{metrics['bleu'].value:.1f}",
            f"{metrics['rouge_l'].value:.3f}",
            f"{metrics['truncation_rate'].value:.2f}",
        ]
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    return lines


def answerable(samples: list[Sample]) -> list[str]:
    """How many turns can be answered by whoever has no more than the dialogue."""
    hard = [(s, hard_facts(s.references[0])) for s in samples if hard_facts(s.references[0])]
    said = ["\n".join(message.content for message in s.prompt) for s, _ in hard]
    known = [
        all(conveys(text, fact) for fact in facts)
        for text, (_, facts) in zip(said, hard, strict=True)
    ]
    return [
        f"Of the {len(hard)} turns with facts {sum(known)} have all of them in the dialogue so",
        "far; the others take a database (which hotels there are, what the phone number is) that",
        "nobody here could look into.",
    ]


def load_table(load: dict[str, dict[int, Any]]) -> list[str]:
    lines = [
        f"| users at once ({NUM_REQUESTS} requests) | teacher: median s an answer "
        "| answers a minute | distilled: median s an answer | answers a minute |",
        "|---|---|---|---|---|",
    ]
    for at_once in AT_ONCE:
        cells = []
        for role in ROLES[:2]:
            e2e = Estimate.model_validate(load[role][at_once]["e2e"])
            cells += [f"{e2e.value:.2f}", f"{load[role][at_once]['per_minute']:.0f}"]
        lines.append(f"| {at_once} | " + " | ".join(cells) + " |")
    return lines


def claims_table(report: Report, load: dict[str, dict[int, Any]]) -> list[str]:
    teacher, student = (report.models[role] for role in ROLES[:2])
    best = {role: max(found["per_minute"] for found in load[role].values()) for role in load}
    cost = {role: CORE_HOUR / 60 / rate * 1000 for role, rate in best.items()}
    many = users_below(load, load["teacher"][1]["e2e"]["value"])
    kept = report.retention["of_teacher"]
    measured = {
        "accuracy kept": "none: the teacher is never right"
        if kept.value is None
        else f"{kept.value:.0%} [{kept.low:.0%}, {kept.high:.0%}]",
        "response time": change(teacher, student, "latency"),
        "memory": change(teacher, student, "memory"),
        "running cost": f"{cost['distilled'] / cost['teacher'] - 1:+.0%} "
        f"({cost['teacher']:.4f} to {cost['distilled']:.4f} $ for 1,000 answers)",
        "concurrent users": f"{best['distilled'] / best['teacher']:.1f} times the answers a "
        f"minute; {many}",
    }
    how = {
        "accuracy kept": "measured, gold history",
        "response time": "measured, one request at a time, median",
        "memory": "measured, peak resident of a fresh process",
        "running cost": f"answers a minute measured, {CORE_HOUR} $ an hour for the core assumed",
        "concurrent users": "measured, see above",
    }
    lines = ["| claim of the tutorial | there | here | how |", "|---|---|---|---|"]
    lines += [f"| {n} | {said} | {measured[n]} | {how[n]} |" for n, said in CLAIMS.items()]
    return lines


def users_below(load: dict[str, dict[int, Any]], seconds: float) -> str:
    """With how many users the student is still as fast as the teacher is with one."""
    there = [k for k, found in load["distilled"].items() if found["e2e"]["value"] <= seconds]
    most = max(there, default=0)
    tried = ", ".join(map(str, AT_ONCE))
    return f"at the teacher's {seconds:.2f} s for one user it serves {most} (of {tried} tried)"


def change(teacher: Evaluation, student: Evaluation, name: str) -> str:
    ours, theirs = student.metrics.get(name), teacher.metrics.get(name)
    if ours is None or theirs is None or not ours.value or not theirs.value:
        return "not measured"
    shown = " to ".join(number(one.value, one.unit) for one in (theirs, ours))
    return f"{ours.value / theirs.value - 1:+.0%} ({shown})"


def show(found: Estimate, *, digits: int = 3) -> str:
    if found.value is None or found.low is None or not np.isfinite(found.value):
        return "none"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


if __name__ == "__main__":
    main()
