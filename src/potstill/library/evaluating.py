"""Plain functions for the second half: how good, how fast, how large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from potstill.config import DistillConfig
from potstill.errors import ConfigError
from potstill.examine.reuse import answer_store
from potstill.library.inputs import (
    Data,
    Named,
    opened_model,
    records_of,
    ref_of,
    task_of,
    wait,
    working_folder,
)
from potstill.library.measuring import (
    MEASURED,
    is_memory,
    memory_of_model,
    own_prompts,
    speed_of,
)
from potstill.models.logprobs import Capture
from potstill.protocols import Task
from potstill.rundir import RunDir
from potstill.tasks import default_metrics
from potstill.types import Evaluation, Record, Sampling, metric_name


def evaluate(
    model: Named,
    test_data: Data,
    metrics: Sequence[str] | None = None,
    *,
    task: str | None = None,
    role: str = "student",
    sampling: Sampling | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 32,
    num_latency_calls: int = 30,
    out_samples: Path | None = None,
    group_by: str | None = None,
    history: Literal["gold", "own"] = "gold",
    reuse: Literal["weights", "all", "off"] = "weights",
    key: str | None = None,
    workspace: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Asks a model every record of a test set; `evaluation["accuracy"]` is a number.

    Args:
        metrics: Names, also those of other tools (bleu_score, inference_time, memory_usage);
            the task's own by default.
        sampling: How it answers; greedily, with 512 tokens at most, by default.
        out_samples: File to keep the answers in; they are not asked again the next time.
        group_by: Metadata field whose rows are resampled together.
        history: What turns of a conversation are asked on: known answers, or the model's own.
        reuse: Whose answers are used again in other runs: models known by their weights,
            endpoints by URL and name too, or nobody's.

    Raises:
        ConfigError: If a metric is unknown; before anything is asked.
        DataError: If there are no records.
    """
    read, measured = check_metrics(metrics)
    records = records_of(test_data, task, columns)
    judge = task_of(task, records)
    sampling = sampling or Sampling()
    asked = {"metrics": read or default_metrics(judge, records), "sampling": sampling, "seed": seed}
    asked |= {"role": role, "history": history, "group_by": group_by, **_about(model, workspace)}
    with working_folder(None) as folder:
        path = out_samples or RunDir(folder).samples(role)
        with answer_store(reuse) as store:
            asked |= {"out_samples": path, "store": store}
            found = wait(_ask(model, records, judge, batch_size, workspace, key, asked))
    figures, setting = dict(found.metrics), dict(found.setting)
    if any(not is_memory(name) for name in measured):
        speed = speed_of(
            model, records, judge, sampling, num_calls=num_latency_calls, workspace=workspace,
            key=key, seed=seed,
        )  # fmt: skip
        figures |= speed.metrics
        setting["speed"] = speed.setting
    if any(is_memory(name) for name in measured):
        figures |= memory_of_model(model, records, workspace)
    kept = str(out_samples) if out_samples else ""
    update = {"metrics": figures, "samples": kept, "setting": setting}
    return found.model_copy(update=update)


async def _ask(
    model: Named,
    records: Sequence[Record],
    task: Task,
    batch_size: int,
    workspace: Mapping[str, Any] | None,
    key: str | None,
    asked: Mapping[str, Any],
) -> Evaluation:
    from potstill.examine.run import evaluate as evaluate_model

    asked["out_samples"].parent.mkdir(parents=True, exist_ok=True)
    capture = Capture(k=1) if "ece" in asked["metrics"] else None
    opening = opened_model(model, batch_size, workspace, key, capture=capture, when_asked=True)
    async with opening as opened:
        return await evaluate_model(
            opened,
            records,
            task,
            num_parameters=getattr(opened, "num_parameters", None),
            setting=getattr(opened, "setting", {}),
            **asked,
        )


def evaluate_config(
    config: DistillConfig,
    place: str,
    test_data: Path,
    *,
    role: str,
    metrics: Sequence[str] | None,
    out_samples: Path,
    workspace: Mapping[str, Any],
) -> Evaluation:
    """Evaluates a model of a job the way its pipeline would."""
    limit = config.evaluate.max_new_tokens or config.generation.max_new_tokens
    return evaluate(
        place,
        test_data,
        metrics if metrics is not None else config.evaluate.metrics,
        task=config.task,
        role=role,
        columns=config.data.columns,
        sampling=Sampling(max_new_tokens=limit, stop=config.generation.stop),
        batch_size=config.evaluate.batch_size,
        group_by=None if config.data.split_by == "time" else config.data.group_by,
        history=config.evaluate.history,
        reuse=config.evaluate.reuse_answers,
        num_latency_calls=max(2, config.evaluate.num_latency_calls),
        out_samples=out_samples,
        workspace=workspace,
        seed=config.evaluate.seed,
    )


def check_metrics(metrics: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Our names of metrics: those read from answers, and those measured on single calls.

    Raises:
        ConfigError: If one is unknown; with the nearest names.
    """
    from potstill.examine.metrics import get_metric

    names = list(dict.fromkeys(metric_name(name) for name in metrics or ()))
    read = [name for name in names if name not in MEASURED]
    for name in read:
        get_metric(name)
    return read, [name for name in names if name in MEASURED]


def evaluate_accuracy(student_model: Named, test_data: Data, **options: Any) -> float:
    """Share of the test records answered right; `evaluate` tells its interval too."""
    return evaluate(student_model, test_data, ["accuracy"], **options)["accuracy"]


def evaluate_task_performance(student_model: Named, task_data: Data, **options: Any) -> Evaluation:
    """All of the task's own metrics."""
    return evaluate(student_model, task_data, **options)


def measure_inference_time(
    student_model: Named,
    test_data: Data = (),
    *,
    num_calls: int = 30,
    max_new_tokens: int = 64,
    key: str | None = None,
    workspace: Mapping[str, Any] | None = None,
) -> float:
    """Median seconds of one answer, asked one at a time, on these prompts or a few of ours."""
    records = records_of(test_data, None) or own_prompts()
    found = speed_of(
        student_model, records, task_of(None, records), Sampling(max_new_tokens=max_new_tokens),
        num_calls=num_calls, workspace=workspace, key=key,
    )  # fmt: skip
    seconds = found.metrics["latency"].value
    assert seconds is not None, "two timed calls or more have a median"
    return seconds


def profile_memory_consumption(
    student_model: Named, *, workspace: Mapping[str, Any] | None = None
) -> int:
    """Peak resident bytes of a process with the model that answers one prompt."""
    found = memory_of_model(student_model, own_prompts(), workspace)
    if "memory" not in found or found["memory"].value is None:
        raise ConfigError("this system does not tell how much memory a process has")
    return int(found["memory"].value)


def _about(model: Named, workspace: Mapping[str, Any] | None) -> dict[str, Any]:
    """What identifies a model in an evaluation, and whether kept answers are still its own."""
    if hasattr(model, "respond"):
        return {"format": "", "fingerprint": ""}
    from potstill.pipeline.context import weights_key

    ref = ref_of(model, workspace)
    return {"format": ref.kind, "fingerprint": str([ref.kind, weights_key(ref.source)])}
