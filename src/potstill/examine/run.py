"""Runs one model over a test set: answers to samples, samples to an evaluation."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.examine.answering import History, OnProgress, collect_samples
from potstill.examine.gates import MEASURED
from potstill.examine.metrics import accuracy, estimate, get_metric
from potstill.examine.parts import SLICE_FIELDS, class_estimates, slice_estimates
from potstill.examine.probability import OF_REFERENCES
from potstill.examine.rates import truncation_rate
from potstill.examine.reuse import AnswerStore
from potstill.protocols import ChatModel, Metric, Task
from potstill.rundir import write_jsonl
from potstill.tasks import default_metrics, is_closed
from potstill.types import Evaluation, Record, Sample, Sampling, metric_name

HISTORIES: dict[History, str] = {
    "gold": "each turn on the gold history",
    "own": "each turn on the model's own answers before it",
}


async def evaluate(
    model: ChatModel,
    records: Sequence[Record],
    task: Task,
    *,
    role: str,
    metrics: Sequence[str] | None = None,
    sampling: Sampling,
    out_samples: Path,
    fingerprint: str = "",
    group_by: str | None = None,
    history: History = "gold",
    store: AnswerStore | None = None,
    slices: Sequence[str] = SLICE_FIELDS,
    seed: int = 0,
    teacher: ChatModel | None = None,
    on_progress: OnProgress | None = None,
    **about: Any,
) -> Evaluation:
    """Asks every turn of every record; answers that do not come or are cut count as wrong.

    Args:
        metrics: Names; the task's own by default. The first is the one that slices are on.
        out_samples: File of the answers, read first and completed.
        fingerprint: What the weights are; answers of other weights are not reused.
        group_by: Metadata field whose rows are resampled together.
        history: Which answers to earlier turns a turn of a conversation is asked on.
        store: Where answers of any run are looked for and put.
        teacher: Whose probabilities the model's are compared with, where `divergence` is named
            and both are weights on this machine.
        about: Further fields of `Evaluation`: format, num_parameters, disk_bytes, setting.

    Raises: As `collect_samples`.
    """
    wanted = read_names(metrics) or default_metrics(task, records)
    names = {metric.name for metric in named_metrics(task, wanted)}
    asked = {"sampling": sampling, "out_samples": out_samples, "fingerprint": fingerprint}
    asked |= {"group_by": group_by, "history": history, "store": store, "on_progress": on_progress}
    asked["needs_confidence"] = "ece" in names and getattr(model, "capture", None) is not None
    samples = await collect_samples(model, records, task, **asked)
    if names & set(OF_REFERENCES):
        samples = await asyncio.to_thread(_with_likelihood, model, samples, records, task, teacher)
        write_jsonl(out_samples, samples)
    told: dict[str, Any] = {"history": history} if any(s.turn for s in samples) else {}
    return reduce_samples(
        samples,
        role=role,
        metrics=named_metrics(task, wanted, **told),
        closed=is_closed(records, task),
        slices=slices,
        seed=seed,
        id=model.name,
        fingerprint=fingerprint,
        decoding=sampling.model_dump(mode="json") | told,
        samples=out_samples.name,
        **about,
    )


def named_metrics(
    task: Task, names: Sequence[str] | None, *, history: History | None = None
) -> list[Metric]:
    """The metrics by name, and `accuracy` with the task's own rule in its signature.

    Names of what is measured apart from the answers, such as latency, are passed over.
    """
    rule = f"{task.name}: {(task.correct.__doc__ or accuracy.signature).splitlines()[0]}"
    asked = f"; {HISTORIES[history]}" if history else ""
    ruled = dataclasses.replace(accuracy, signature=rule.rstrip(".") + asked)
    found = [get_metric(name) for name in read_names(names) or task.default_metrics]
    others = [metric for metric in found if metric is not accuracy]
    return [ruled, *others] if found[0] is accuracy else [*others, ruled]


def read_names(names: Sequence[str] | None) -> list[str]:
    """The names of metrics that are read from answers, without those that are measured."""
    return [name for name in names or () if metric_name(name) not in MEASURED]


def _with_likelihood(
    model: Any,
    samples: Sequence[Sample],
    records: Sequence[Record],
    task: Task,
    teacher: Any | None,
) -> list[Sample]:
    if not hasattr(model, "logits"):
        return list(samples)
    from potstill.examine.likelihood import likelihoods

    teacher = teacher if hasattr(teacher, "logits") else None
    found = likelihoods(model, records, task, teacher=teacher)
    return [
        sample.model_copy(update={"likelihood": found.get((sample.record_id, sample.turn))})
        for sample in samples
    ]


def reduce_samples(
    answers: Sequence[Sample],
    *,
    role: str,
    metrics: Sequence[Metric],
    closed: bool,
    slices: Sequence[str] = SLICE_FIELDS,
    seed: int = 0,
    **about: Any,
) -> Evaluation:
    """Answers to metrics, classes and slices; `about` are further fields of `Evaluation`."""
    wanted = {metric.name: metric for metric in (*metrics, truncation_rate)}
    if all(sample.correct is None for sample in answers) and len(wanted) > 1:
        wanted.pop("accuracy", None)
    return Evaluation(
        role=role,
        metrics={name: estimate(m, answers, seed=seed) for name, m in wanted.items()},
        by_class=class_estimates(answers, seed=seed) if closed else {},
        by_slice=slice_estimates(metrics[0], answers, fields=slices, seed=seed),
        **about,
    )
