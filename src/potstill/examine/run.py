"""Runs one model over a test set: answers to samples, samples to an evaluation.

Samples are appended to their file as they come, so an interrupted evaluation goes on where
it stopped; an answer is asked again only when model, prompt or decoding have changed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.metrics import accuracy, classes_of, estimate, get_metric, truncation_rate
from potstill.examine.resample import (
    percentile_interval,
    resampled_sums,
    sum_by_unit,
    unit_ids,
    wilson,
)
from potstill.protocols import ChatModel, Metric, Task
from potstill.rundir import content_hash, read_jsonl, write_jsonl
from potstill.types import Estimate, Evaluation, Record, Response, Sample, Sampling

log = logging.getLogger(__name__)

SLICE_FIELDS = ("source", "language")
MAX_SLICES = 12
MIN_FOR_QUARTERS = 40
CLASS_RESAMPLES = 2_000

OnProgress = Callable[[int, int], None]
"""Called with (answers there, answers wanted)."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One turn of one record, as it is asked."""

    prompt: Record
    turn: int
    group: str
    fingerprint: str


async def evaluate(
    model: ChatModel,
    records: Sequence[Record],
    task: Task,
    *,
    role: str,
    metrics: Sequence[str] | None = None,
    sampling: Sampling,
    out_samples: Path,
    format: str,
    fingerprint: str = "",
    num_parameters: int | None = None,
    disk_bytes: int | None = None,
    setting: dict[str, Any] | None = None,
    group_by: str | None = None,
    slices: Sequence[str] = SLICE_FIELDS,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Asks a model every turn of every record and reduces its answers to metrics.

    Answers that do not come and answers that are cut count as wrong, and are counted.

    Args:
        metrics: Names; the task's own by default. The first is the one that slices are on.
        out_samples: File of the answers, read first and completed.
        fingerprint: What the weights are; answers of other weights are not reused.
        group_by: Metadata field whose rows are resampled together.

    Raises:
        DataError: If there are no records.
        TeacherRefused: If the model will never answer as asked.
        TeacherError: If no answer came at all.
    """
    samples = await collect_samples(
        model,
        records,
        task,
        sampling=sampling,
        out_samples=out_samples,
        fingerprint=fingerprint,
        group_by=group_by,
        on_progress=on_progress,
    )
    return reduce_samples(
        samples,
        role=role,
        metrics=named_metrics(task, metrics),
        closed=task.closed,
        slices=slices,
        seed=seed,
        id=model.name,
        fingerprint=fingerprint,
        format=format,
        num_parameters=num_parameters,
        disk_bytes=disk_bytes,
        decoding=sampling.model_dump(mode="json"),
        setting=setting or {},
        samples=out_samples.name,
    )


def named_metrics(task: Task, names: Sequence[str] | None) -> list[Metric]:
    """The metrics by name, and `accuracy` with the task's own rule in its signature."""
    rule = f"{task.name}: {(task.correct.__doc__ or accuracy.signature).splitlines()[0]}"
    ruled = dataclasses.replace(accuracy, signature=rule.rstrip("."))
    found = [get_metric(name) for name in names or task.default_metrics]
    others = [metric for metric in found if metric is not accuracy]
    return [ruled, *others] if found[0] is accuracy else [*others, ruled]


async def collect_samples(
    model: ChatModel,
    records: Sequence[Record],
    task: Task,
    *,
    sampling: Sampling,
    out_samples: Path,
    fingerprint: str = "",
    group_by: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Sample]:
    """The model's answer to every turn, in the order of the records; see `evaluate`."""
    if not records:
        raise DataError("there is nothing to evaluate: the test set holds no records")
    questions = _questions(records, task, fingerprint or model.name, sampling, group_by)
    kept = {
        (s.record_id, s.turn, s.fingerprint): s
        for s in read_jsonl(out_samples, Sample)
        if not s.error
    }
    found: list[Sample | None] = []
    for question in questions:
        old = kept.get((question.prompt.id, question.turn, question.fingerprint))
        found.append(make_sample(question, _as_response(old), task) if old else None)
    todo = [i for i, sample in enumerate(found) if sample is None]
    if len(todo) < len(found):
        log.info("%s: %d of %d answers are kept", model.name, len(found) - len(todo), len(found))
    write_jsonl(out_samples, [s for s in found if s is not None])  # drops a line that was cut
    num_done = len(found) - len(todo)
    with out_samples.open("a", encoding="utf-8") as file:

        async def ask(i: int) -> None:
            nonlocal num_done
            response = await _respond(model, questions[i], sampling)
            sample = found[i] = make_sample(questions[i], response, task)
            file.write(sample.model_dump_json(exclude_defaults=True) + "\n")
            file.flush()
            num_done += 1
            if on_progress:
                on_progress(num_done, len(found))

        await _for_each(todo, ask, max(1, model.max_in_flight))
    samples = [s for s in found if s is not None]
    write_jsonl(out_samples, samples)
    if all(s.error for s in samples):
        raise TeacherError(
            f"{model.name} answered none of {len(samples)} prompts; the last error: "
            f"{samples[-1].error}"
        )
    return samples


def _questions(
    records: Sequence[Record],
    task: Task,
    fingerprint: str,
    sampling: Sampling,
    group_by: str | None,
) -> list[Question]:
    questions = []
    for record in records:
        turns = task.turns(record)
        group = str(record.metadata.get(group_by, "")) if group_by else ""
        if not group and len(turns) > 1:
            group = record.id
        for turn, prompt in enumerate(turns):
            messages = [message.model_dump(mode="json") for message in prompt.messages]
            key = content_hash(fingerprint, messages, sampling)
            questions.append(Question(prompt, turn, group, key))
    return questions


async def _respond(model: ChatModel, question: Question, sampling: Sampling) -> Response:
    try:
        return await model.respond(question.prompt, sampling, turn=question.turn)
    except TeacherRefused:
        raise
    except TeacherError as error:
        return Response(
            record_id=question.prompt.id,
            turn=question.turn,
            text="",
            finish_reason="error",
            error=str(error) or type(error).__name__,
        )


def _as_response(sample: Sample) -> Response:
    return Response(
        record_id=sample.record_id,
        turn=sample.turn,
        text=sample.text,
        finish_reason=sample.finish_reason,
        num_new_tokens=sample.num_new_tokens,
        seconds=sample.seconds,
    )


async def _for_each(
    todo: Sequence[int], ask: Callable[[int], Awaitable[None]], max_in_flight: int
) -> None:
    """Runs `ask` on every number, so many at once; the first failure ends all of them."""
    waiting = iter(todo)

    async def work() -> None:
        for i in waiting:
            await ask(i)

    workers = [asyncio.create_task(work()) for _ in range(min(max_in_flight, len(todo)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def make_sample(question: Question, response: Response, task: Task) -> Sample:
    """One answer, read and marked by the task. An error or a cut answer is wrong."""
    prompt = question.prompt
    failed = response.finish_reason in ("error", "length") or bool(response.error)
    prediction = None if failed else task.parse(response.text, prompt)
    correct = task.correct(prediction, prompt)
    references, target = _references(prompt, task)
    return Sample(
        record_id=prompt.id,
        turn=question.turn,
        group=question.group,
        prompt=prompt.messages,
        references=references,
        text=response.text,
        prediction=prediction,
        target=target,
        correct=0.0 if failed and correct is not None else correct,
        finish_reason=response.finish_reason,
        num_new_tokens=response.num_new_tokens,
        seconds=response.seconds,
        error=response.error or ("no answer" if response.finish_reason == "error" else ""),
        fingerprint=question.fingerprint,
        metadata=prompt.metadata,
    )


def _references(prompt: Record, task: Task) -> tuple[tuple[str, ...], str | None]:
    """All right answers of a record, and what the task reads out of the first."""
    if prompt.reference is None:
        return (), None
    others = [prompt.metadata.get(name) or () for name in ("answers", "references")]
    listed = [[other] if isinstance(other, str) else other for other in others]
    unique = dict.fromkeys([prompt.reference, *(str(o) for other in listed for o in other if o)])
    return tuple(unique), task.parse(prompt.reference, prompt)


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


def class_estimates(samples: Sequence[Sample], *, seed: int) -> dict[str, dict[str, Estimate]]:
    """Precision, recall and F1 of each class; `n` is what the estimate is a share of."""
    found: dict[str, dict[str, Estimate]] = {}
    units = unit_ids(samples)
    for name in classes_of(samples):
        said = np.array([s.prediction == name for s in samples], dtype=np.float64)
        wanted = np.array([s.target == name for s in samples], dtype=np.float64)
        both = said * wanted
        rows = sum_by_unit(np.stack([both, said + wanted], axis=1), units)
        sums = resampled_sums(rows, seed=seed, num_resamples=CLASS_RESAMPLES)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = percentile_interval(2 * sums[:, 0] / sums[:, 1])
        found[name] = {
            "precision": _share(both.sum(), int(said.sum())),
            "recall": _share(both.sum(), int(wanted.sum())),
            "f1": Estimate(
                value=float(2 * both.sum() / (said.sum() + wanted.sum())),
                low=low,
                high=high,
                n=int(wanted.sum()),
                method=f"bootstrap-percentile, {CLASS_RESAMPLES:,} resamples, seed {seed}",
            ),
        }
    return found


def _share(num_right: float, n: int) -> Estimate:
    if n == 0:
        return Estimate(value=None, n=0, method="none", note="this class was never answered")
    low, high = wilson(num_right, n)
    return Estimate(value=float(num_right) / n, low=low, high=high, n=n, method="wilson")


def slice_estimates(
    metric: Metric, samples: Sequence[Sample], *, fields: Sequence[str], seed: int
) -> dict[str, dict[str, Estimate]]:
    """The metric on parts of the test set: by metadata field, and by length of the prompt."""
    parts: dict[str, list[Sample]] = {}
    for field in fields:
        values = sorted({str(s.metadata[field]) for s in samples if field in s.metadata})
        if 1 < len(values) <= MAX_SLICES:
            for value in values:
                parts[f"{field}: {value}"] = [
                    s for s in samples if str(s.metadata.get(field)) == value
                ]
    if len(samples) >= MIN_FOR_QUARTERS:
        lengths = np.array([sum(len(m.content) for m in s.prompt) for s in samples])
        cuts = np.quantile(lengths, [0.25, 0.5, 0.75])
        quarter = np.searchsorted(cuts, lengths, side="left")
        for number, name in enumerate(("shortest", "second", "third", "longest")):
            members = [s for s, q in zip(samples, quarter, strict=True) if q == number]
            if members:
                parts[f"prompt length: {name} quarter"] = members
    return {
        name: {metric.name: estimate(metric, members, seed=seed)} for name, members in parts.items()
    }
