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

from potstill.errors import DataError, TeacherError, TeacherRefused
from potstill.examine.gates import MEASURED
from potstill.examine.metrics import accuracy, estimate, get_metric
from potstill.examine.parts import SLICE_FIELDS, class_estimates, slice_estimates
from potstill.examine.probability import OF_REFERENCES, answer_confidence
from potstill.examine.rates import truncation_rate
from potstill.protocols import ChatModel, Metric, Task
from potstill.rundir import content_hash, read_jsonl, write_jsonl
from potstill.tasks import default_metrics, is_closed
from potstill.types import Evaluation, Record, Response, Sample, Sampling, metric_name

log = logging.getLogger(__name__)

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
    fingerprint: str = "",
    group_by: str | None = None,
    slices: Sequence[str] = SLICE_FIELDS,
    seed: int = 0,
    teacher: ChatModel | None = None,
    on_progress: OnProgress | None = None,
    **about: Any,
) -> Evaluation:
    """Asks a model every turn of every record and reduces its answers to metrics.

    Answers that do not come and answers that are cut count as wrong, and are counted.

    Args:
        metrics: Names; the task's own by default. The first is the one that slices are on.
        out_samples: File of the answers, read first and completed.
        fingerprint: What the weights are; answers of other weights are not reused.
        group_by: Metadata field whose rows are resampled together.
        teacher: Whose probabilities the model's are compared with, where `divergence` is named
            and both are weights on this machine.
        about: Further fields of `Evaluation`: format, num_parameters, disk_bytes, setting.

    Raises:
        DataError: If there are no records.
        TeacherRefused: If the model will never answer as asked.
        TeacherError: If no answer came at all.
    """
    chosen = named_metrics(task, read_names(metrics) or default_metrics(task, records))
    names = {metric.name for metric in chosen}
    asked = {"fingerprint": fingerprint, "group_by": group_by, "on_progress": on_progress}
    asked["needs_confidence"] = "ece" in names and getattr(model, "capture", None) is not None
    samples = await collect_samples(
        model, records, task, sampling=sampling, out_samples=out_samples, **asked
    )
    if names & set(OF_REFERENCES):
        samples = await asyncio.to_thread(_with_likelihood, model, samples, records, task, teacher)
        write_jsonl(out_samples, samples)
    return reduce_samples(
        samples,
        role=role,
        metrics=chosen,
        closed=is_closed(records, task),
        slices=slices,
        seed=seed,
        id=model.name,
        fingerprint=fingerprint,
        decoding=sampling.model_dump(mode="json"),
        samples=out_samples.name,
        **about,
    )


def named_metrics(task: Task, names: Sequence[str] | None) -> list[Metric]:
    """The metrics by name, and `accuracy` with the task's own rule in its signature.

    Names of what is measured apart from the answers, such as latency, are passed over.
    """
    rule = f"{task.name}: {(task.correct.__doc__ or accuracy.signature).splitlines()[0]}"
    ruled = dataclasses.replace(accuracy, signature=rule.rstrip("."))
    found = [get_metric(name) for name in read_names(names) or task.default_metrics]
    others = [metric for metric in found if metric is not accuracy]
    return [ruled, *others] if found[0] is accuracy else [*others, ruled]


def read_names(names: Sequence[str] | None) -> list[str]:
    """The names of metrics that are read from answers, without those that are measured."""
    return [name for name in names or () if metric_name(name) not in MEASURED]


async def collect_samples(
    model: ChatModel,
    records: Sequence[Record],
    task: Task,
    *,
    sampling: Sampling,
    out_samples: Path,
    fingerprint: str = "",
    group_by: str | None = None,
    needs_confidence: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Sample]:
    """The model's answer to every turn, in the order of the records; see `evaluate`.

    Args:
        needs_confidence: Whether kept answers without the model's confidence are asked again.
    """
    if not records:
        raise DataError("there is nothing to evaluate: the test set holds no records")
    questions = _questions(records, task, fingerprint or model.name, sampling, group_by)
    kept = {
        (s.record_id, s.turn, s.fingerprint): s
        for s in read_jsonl(out_samples, Sample)
        if not s.error and (s.confidence is not None or not needs_confidence)
    }
    found: list[Sample | None] = []
    for question in questions:
        old = kept.get((question.prompt.id, question.turn, question.fingerprint))
        found.append(_made_again(question, old, task) if old else None)
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


def _made_again(question: Question, kept: Sample, task: Task) -> Sample:
    """A kept answer, read and marked as the task does it today."""
    response = Response(
        record_id=kept.record_id,
        turn=kept.turn,
        text=kept.text,
        finish_reason=kept.finish_reason,
        num_new_tokens=kept.num_new_tokens,
        seconds=kept.seconds,
    )
    sample = make_sample(question, response, task)
    return sample.model_copy(update={"confidence": kept.confidence})


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
        confidence=answer_confidence(response.logprobs),
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
