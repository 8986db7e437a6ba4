"""One task's data, teacher and probabilities, and one student's training and examination on it.

Called by proof.py in a process of its own: python benchmarks/proof_arm.py TASK ARM SEED ...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import kl_div

from potstill.config import LossConfig, TrainConfig
from potstill.data.render import Rendered, render, template_fingerprint, vocab_fingerprint
from potstill.demo.recipe import KEPT_LAYERS
from potstill.demo.run import tune_teacher
from potstill.examine.run import evaluate
from potstill.models.catalog import find_model
from potstill.models.local import LocalModel
from potstill.models.weights import load_weights
from potstill.rundir import RunDir
from potstill.targets.store import TargetWriter
from potstill.tasks import get_task
from potstill.teach.score import score_into, target_settings
from potstill.train.beside import load_teacher
from potstill.train.loop import fine_tune_student
from potstill.train.prune import cut_layers, greedy_layers, save_untouched
from potstill.train.together import open_targets
from potstill.types import Message, Record, Sampling

NUM_LAYERS = 6
K, NUM_DRAWS = 64, 50


@dataclass(frozen=True)
class Task:
    """A dataset, how it is cut, and how much of it is used."""

    name: str
    file: str
    metrics: tuple[str, ...]
    num_gold: int = 400
    num_pool: int = 800
    num_validation: int = 80
    num_test: int = 250
    teacher_steps: int = 60
    max_tokens: int = 192
    max_new_tokens: int = 32


TASKS = {
    "classification": Task(
        "classification", "classification/clinc150_domain", ("accuracy",), num_test=300
    ),
    "conversation": Task(
        "conversation",
        "conversation/sgd",
        ("accuracy", "rouge_l", "bleu"),
        num_test=250,
    ),
}


@dataclass(frozen=True)
class Arm:
    """What one kind of student learns from."""

    text: str
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "sft"})
    rows: str = "teacher"
    """Whose answers: the teacher's to the pool, or the gold rows that it was tuned on."""

    fresh: bool = False
    num_seeds: int = 3


def _kd(kind: str = "forward_kl", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "sft_weight": 0.2, "targets": {"k": K}} | more


ARMS = {
    "gold": Arm("gold rows that the teacher was tuned on", rows="gold", num_seeds=5),
    "text": Arm("the teacher's text", num_seeds=5),
    "forward_kl": Arm("forward KL from cached targets", _kd(), num_seeds=5),
    "reverse_kl": Arm("reverse KL", _kd("reverse_kl")),
    "jsd": Arm("JSD, beta 0.5", _kd("jsd")),
    "skew": Arm("skewed forward KL, alpha 0.1", _kd("skew_forward_kl")),
    "sampled": Arm(
        "forward KL, 50 sampled tokens",
        _kd(targets={"kind": "sampled", "num_draws": NUM_DRAWS}),
    ),
    "hidden": Arm("forward KL + hidden states (cosine)", _kd(hidden="cosine")),
    "attention": Arm("forward KL + attention relations", _kd(attention="qkv")),
    "no_text": Arm("forward KL without text", _kd(sft_weight=0.0)),
    "fresh": Arm("forward KL, fresh initialisation", _kd(), fresh=True),
}


# Data, teacher, probabilities: once for each task


def set_up(task: Task, data: Path, run: Path) -> None:
    """Writes the rows, tunes the teacher, and keeps what it answers and its probabilities."""
    if (run / "ready.json").exists():
        return
    inputs = RunDir(run / "inputs")
    inputs.path.mkdir(parents=True, exist_ok=True)
    splits = _split(task, data)
    for name, records in splits.items():
        lines = [_line(record) for record in records]
        (inputs.path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    train = _training(4e-4, task.teacher_steps, seed=0, task=task, frozen=10)
    folder = tune_teacher(inputs, "smollm2-135m", train, tell=lambda event: None)
    teacher = LocalModel(folder, batch_size=64)
    answers = {}
    for name in ("pool", "validation", "test"):
        answers[name] = asyncio.run(_answers(teacher, splits[name], task))
    _student(splits["gold"], task, teacher.tokenizer, run)
    texts = {name: _rendered(splits[name], answers[name], task, teacher) for name in answers}
    for kind, k in (("topk", K), ("sampled", NUM_DRAWS)):
        settings = target_settings(
            len(teacher.tokenizer),
            kind=kind,
            k=k,
            temperatures=(1.0,),
            vocab_fingerprint=vocab_fingerprint(teacher.tokenizer),
            template_fingerprint=template_fingerprint(teacher.tokenizer),
        )
        writer = TargetWriter(run / kind, settings)
        score_into(writer, teacher, [*texts["pool"], *texts["validation"]])
        writer.finish()
    held = np.concatenate([z.log_softmax(-1).numpy() for z in _logits(teacher, texts["test"])])
    np.save(run / "test_logprobs.npy", held.astype(np.float16))
    evaluation = asyncio.run(_evaluate(teacher, splits["test"], task, run / "teacher.samples"))
    golds = {"gold": _rendered(splits["gold"], None, task, teacher)}
    _write_rows(run / "rows.json", {**texts, **golds})
    facts = {name: evaluation.metrics[name].value for name in task.metrics}
    counts = {name: len(rows) for name, rows in (texts | golds).items()}
    share = np.mean([sum(row.loss_mask) / len(row.ids) for row in texts["pool"]])
    ready = {"teacher": facts, "rows": counts, "loss_share": float(share)}
    (run / "ready.json").write_text(json.dumps(ready))


def _split(task: Task, data: Path) -> dict[str, list[Record]]:
    rows = [json.loads(line) for line in (data / task.file / "train.jsonl").open()]
    test = [json.loads(line) for line in (data / task.file / "test.jsonl").open()]
    random.Random(0).shuffle(rows)
    each = 2 if task.name == "conversation" else 1
    made = [record for number, row in enumerate(rows) for record in _records(row, each, number)]
    cuts = np.cumsum([task.num_gold, task.num_pool, task.num_validation])
    return {
        "gold": made[: cuts[0]],
        "pool": made[cuts[0] : cuts[1]],
        "validation": made[cuts[1] : cuts[2]],
        "test": [r for n, row in enumerate(test) for r in _records(row, 1, n)][: task.num_test],
    }


def _records(row: dict[str, Any], each: int, seed: int) -> list[Record]:
    """Questions with one answer; of a dialogue, `each` of its later turns, history as text."""
    messages = [Message(**message) for message in row["messages"]]
    about = {"label": row["metadata"]["label"]} if "label" in row["metadata"] else {}
    if not messages[0].role == "system":
        prompt, answer = tuple(messages[:-1]), messages[-1].content
        return [Record(id=row["id"], messages=prompt, reference=answer, metadata=about)]
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    found = []
    for turn in random.Random(seed).sample(turns[:6], min(each, len(turns[:6]))):
        names = {"user": "Customer", "assistant": "Assistant"}
        said = [f"{names[m.role]}: {m.content}" for m in messages[max(1, turn - 3) : turn]]
        text = "Write the assistant's next message.\n\n" + "\n".join(said)
        prompt = (messages[0], Message(role="user", content=text))
        answer = messages[turn].content
        found.append(Record(id=f"{row['id']}-{turn}", messages=prompt, reference=answer))
    return found


def _line(record: Record) -> str:
    messages = [message.model_dump() for message in record.messages]
    messages.append({"role": "assistant", "content": record.reference})
    row = {"id": record.id, "messages": messages, "metadata": record.metadata}
    return json.dumps(row, ensure_ascii=False) + "\n"


async def _answers(model: LocalModel, records: list[Record], task: Task) -> list[str]:
    sampling = Sampling(temperature=0.0, max_new_tokens=task.max_new_tokens)
    found = await asyncio.gather(*(model.respond(record, sampling) for record in records))
    return [response.text for response in found]


async def _evaluate(model: LocalModel, records: list[Record], task: Task, out: Path) -> Any:
    return await evaluate(
        model,
        records,
        get_task(task.name),
        role="student",
        metrics=task.metrics,
        sampling=Sampling(temperature=0.0, max_new_tokens=task.max_new_tokens),
        out_samples=out,
        format="huggingface",
    )


def _rendered(
    records: list[Record], answers: list[str] | None, task: Task, model: LocalModel
) -> list[Rendered]:
    """Rows to learn; those that are too long, or whose answer is empty, are left out."""
    texts = answers or [record.reference for record in records]
    rows = [
        render(model.tokenizer, record.messages, text, max_tokens=task.max_tokens)
        for record, text in zip(records, texts, strict=True)
        if text
    ]
    return [row for row in rows if row is not None]


def _student(gold: list[Record], task: Task, tokenizer: Any, run: Path) -> None:
    """The untouched student: of the demo's layers those that its own greedy cut leaves."""
    base, own = load_weights(find_model("smollm2-135m"))
    student = cut_layers(base, KEPT_LAYERS)
    rows = [render(own, r.messages, r.reference, max_tokens=task.max_tokens) for r in gold[:16]]
    kept, _ = greedy_layers(student, [r for r in rows if r], NUM_LAYERS, pad_id=0)
    save_untouched(cut_layers(student, kept), own, run / "untouched")


def _write_rows(path: Path, splits: dict[str, list[Rendered]]) -> None:
    plain = {name: [[row.ids, row.loss_mask] for row in rows] for name, rows in splits.items()}
    path.write_text(json.dumps(plain))


def _read_rows(path: Path) -> dict[str, list[Rendered]]:
    splits = json.loads(path.read_text())
    return {name: [Rendered(*row) for row in rows] for name, rows in splits.items()}


# One student


def _training(rate: float, steps: int, *, seed: int, task: Task, frozen: int) -> TrainConfig:
    return TrainConfig(
        learning_rate=rate,
        max_steps=steps,
        batch_size=8,
        max_tokens=task.max_tokens,
        freeze_embeddings=frozen > 0,
        freeze_layers=frozen,
        precision="autocast",
        weight_decay=0.0,
        early_stopping=False,
        eval_steps=steps,
        order="random",
        seed=seed,
    )


def teach_one(
    task: Task, run: Path, arm_name: str, seed: int, rate: float, steps: int, *, examine: bool
) -> dict[str, Any]:
    """Trains a student; examines it on the test set only where asked to.

    Returns:
        Seconds of its steps, loss on the teacher's text for validation, and of the test set the
        sums of each metric, of the divergence and of the negative log-likelihood by record.
    """
    arm = ARMS[arm_name]
    rows = _read_rows(run / "rows.json")
    loss = LossConfig.model_validate(arm.loss)
    model, tokenizer = load_weights(run / "untouched")
    if arm.fresh:
        torch.manual_seed(seed)
        model = type(model)(model.config).eval()
    train = _training(rate, steps, seed=seed, task=task, frozen=0 if arm.fresh else 1)
    out = RunDir(run / f"training-{arm_name}-{seed}-{rate}-{steps}")
    shutil.rmtree(out.path, ignore_errors=True)
    times: list[float] = []
    teacher = run / "inputs" / "model" if loss.needs_teacher else None
    fine_tune_student(
        model,
        tokenizer,
        rows["pool" if arm.rows == "teacher" else arm.rows],
        rows["validation"],
        loss=loss,
        train=train,
        targets=open_targets(run / loss.targets.kind, tokenizer, loss),
        out=out,
        teacher=load_teacher(teacher, train.precision),
        on_progress=lambda *_: times.append(time.perf_counter()),
        checkpoint_seconds=1e9,
    )
    found: dict[str, Any] = {"step_seconds": float(np.median(np.diff(times)[:-1]))}
    student = LocalModel(out.model, batch_size=64)
    found["validation_nll"] = _mean_nll(student, rows["validation"])
    if examine:
        found |= _examined(student, task, run, rows["test"], out.path / "samples.jsonl")
    shutil.rmtree(out.path)
    return found


def step_times(task: Task, run: Path, rounds: int = 3, steps: int = 8) -> dict[str, float]:
    """Median seconds of a step of each arm, all in turns and alone on the machine."""
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name in list(ARMS)[:: 1 - 2 * (number % 2)]:
            one = teach_one(task, run, name, number, 1e-3, steps, examine=False)
            found[name].append(one["step_seconds"])
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def _examined(
    student: LocalModel, task: Task, run: Path, rows: list[Rendered], samples: Path
) -> dict[str, Any]:
    records = [_record(json.loads(line)) for line in (run / "inputs" / "test.jsonl").open()]
    evaluation = asyncio.run(_evaluate(student, records, task, samples))
    held = np.load(run / "test_logprobs.npy", mmap_mode="r")
    divergence, likelihood, place = [], [], 0
    for row, z_NV in zip(rows, _logits(student, rows), strict=True):
        log_s = z_NV.log_softmax(-1)
        log_t = torch.from_numpy(np.array(held[place : place + len(z_NV)])).float().log_softmax(-1)
        place += len(z_NV)
        divergence.append(kl_div(log_s, log_t, log_target=True, reduction="sum").item())
        learned = torch.tensor([i for i, m in zip(row.ids, row.loss_mask, strict=True) if m])
        likelihood.append(-log_s.gather(1, learned[:, None]).sum().item())
    lines = [json.loads(line) for line in samples.open()]
    return {
        "metrics": {name: evaluation.metrics[name].value for name in task.metrics},
        "correct": {line["record_id"]: line["correct"] for line in lines},
        "kl": divergence,
        "nll": likelihood,
        "tokens": [sum(row.loss_mask) for row in rows],
    }


def _record(row: dict[str, Any]) -> Record:
    *prompt, answer = (Message(**message) for message in row["messages"])
    about = row["metadata"]
    return Record(id=row["id"], messages=tuple(prompt), reference=answer.content, metadata=about)


def _logits(model: LocalModel, rows: list[Rendered]) -> list[torch.Tensor]:
    """Logits where each row carries loss, [N, V] a row, for the tokenizer's own words."""
    found = []
    for row in rows:
        ids = torch.tensor([row.ids])
        positions = torch.tensor([[*map(bool, row.loss_mask[1:]), False]])
        found.append(model.logits(ids, positions)[:, : len(model.tokenizer)].clone())
    return found


def _mean_nll(model: LocalModel, rows: list[Rendered]) -> float:
    total, number = 0.0, 0
    for row, z_NV in zip(rows, _logits(model, rows), strict=True):
        learned = torch.tensor([i for i, m in zip(row.ids, row.loss_mask, strict=True) if m])
        total -= z_NV.log_softmax(-1).gather(1, learned[:, None]).sum().item()
        number += len(learned)
    return total / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arm", choices=[*ARMS, "set_up", "times"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--examine", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task = TASKS[options.task]
    if options.arm == "set_up":
        set_up(task, options.data, options.run)
        return
    if options.arm == "times":
        (options.run / "times.json").write_text(json.dumps(step_times(task, options.run)))
        return
    rate, steps = options.rate, options.steps
    started = time.monotonic()
    found = teach_one(
        task, options.run, options.arm, options.seed, rate, steps, examine=options.examine
    )
    found |= {"arm": options.arm, "seed": options.seed, "rate": rate, "steps": steps}
    found["seconds"] = time.monotonic() - started
    part = options.out.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(options.out)


if __name__ == "__main__":
    main()
