"""Plain functions for the first half: the teacher answers, the student learns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.config import OPEN_TASKS, GenerationConfig, LossConfig, PrivacyConfig, TrainConfig
from potstill.config.file import explain
from potstill.data.scratch import scratch
from potstill.dialects.dialect import HYPERPARAMETERS, nearest, slug
from potstill.errors import ConfigError, DataError
from potstill.library.inputs import (
    Data,
    Named,
    opened_model,
    privacy_of,
    records_of,
    ref_of,
    screen_of,
    task_of,
    wait,
    working_folder,
)
from potstill.models.catalog import ModelRef
from potstill.protocols import Task
from potstill.rundir import RunDir, content_hash
from potstill.teach.prompts import lessons
from potstill.types import Message, Record

log = logging.getLogger(__name__)

DEFAULT_CHECKS = ("finished", "not_refusal", "task")


def generate_teacher_responses(
    teacher_model: Named,
    training_data: Data,
    *,
    task: str | None = None,
    generation: GenerationConfig | None = None,
    checks: Sequence[str] = DEFAULT_CHECKS,
    privacy: PrivacyConfig | str = "auto",
    out: Path | str | None = None,
    key: str | None = None,
    workspace: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Records with the teacher's accepted answers as references, ready to learn from.

    Args:
        generation: With `reasoning: both` each answer gives two records.
        checks: What an answer must pass; how many did not is logged.
        privacy: What becomes of personal data before the teacher is asked, as `data.privacy`.
        out: Run folder to keep the answers in; a second call then asks only what is missing.
        key: The endpoint's key, or where it is (`env:NAME`, `file:PATH`).

    Raises:
        TeacherError: If the teacher gave up on too many prompts.
        DataError: If no answer passed the checks.
    """
    from potstill.teach.accept import check_responses
    from potstill.teach.checks import SET_CHECKS, build_checks
    from potstill.teach.doubles import duplicate_checks
    from potstill.teach.generate import generate
    from potstill.teach.ledger import Ledger

    records = records_of(training_data, task)
    judge = task_of(task, records)
    config = _asked(generation or GenerationConfig(), judge)
    hiding = privacy_of(privacy)

    async def ask(path: Path) -> list[Record]:
        opened = opened_model(teacher_model, config.batch_size, workspace, key, hiding)
        async with opened as teacher:
            asked, _ = screen_of(teacher, hiding).conceal(records)
            await generate(teacher, asked, path, task=judge, config=config)
            return asked

    with working_folder(out) as folder:
        path = RunDir(folder).responses
        records = wait(ask(path))
        with Ledger(path) as ledger:
            responses = list(ledger.rows("train"))
        built = build_checks([n for n in checks if n not in SET_CHECKS], judge, config=config)
        with scratch(folder) as database:
            doubles = duplicate_checks(checks, database, judge, records)
            accepted, rejected = check_responses(
                records, responses, built, judge, set_checks=doubles, config=config
            )
    if not accepted:
        first = f"; the first: {rejected[0].reason} {rejected[0].detail}" if rejected else ""
        raise DataError(f"the checks rejected all {len(rejected)} answers of the teacher{first}")
    if rejected:
        log.warning("%d of %d answers were rejected", len(rejected), len(responses))
    return [row for record in accepted for row in lessons(record, config)]


def _asked(config: GenerationConfig, task: Task) -> GenerationConfig:
    if config.num_accepted is not None:
        raise ConfigError(
            "generation.num_accepted is for runs, which ask in rounds; use `potstill run`, or "
            "leave it out here"
        )
    if config.reasoning == "both" and task.name in OPEN_TASKS:
        raise ConfigError(f"generation.reasoning: both is not for task: {task.name}")
    return config


def fine_tune_student(
    student_model: ModelRef | str | Path,
    synthetic_training_data: Data,
    synthetic_validation_data: Data = (),
    *,
    task: str | None = None,
    out: Path | str | None = None,
    workspace: Mapping[str, Any] | None = None,
    on_progress: Callable[..., None] | None = None,
    **hyperparameters: Any,
) -> ModelRef:
    """The student, trained on the references of the records; its weights are in a folder.

    Args:
        out: Run folder; `runs/<student>-<hash of all inputs>` by default. After an
            interruption the same call goes on.
        hyperparameters: learning_rate, batch_size, num_epochs, or any key of `train`.

    Raises:
        ConfigError: If a hyperparameter is unknown or out of range; all are named.
        DataError: If no record has a reference, or all are too long.
    """
    train = _train_config(hyperparameters)
    rows = records_of(synthetic_training_data, task)
    checked = records_of(synthetic_validation_data, task)
    ref = ref_of(student_model, workspace)
    from potstill.models.weights import cached_folder, load_weights
    from potstill.train.checkpoint import remove_checkpoints
    from potstill.train.loop import fine_tune_student as train_loop
    from potstill.train.together import fine_tune_together

    judge = task_of(task, rows)
    model, tokenizer = load_weights(ref)

    label = content_hash(ref.source, train, [r.model_dump(mode="json") for r in (*rows, *checked)])
    run = RunDir(out or Path("runs") / f"{slug(ref.name)}-{label[:8]}")
    both = [_rendered(tokenizer, part, judge, train.max_tokens) for part in (rows, checked)]
    settings: dict[str, Any] = {"loss": LossConfig(kind="sft"), "train": train, "out": run}
    with run.locked():
        if train.processes > 1:
            place = cached_folder(ref)
            fine_tune_together(
                place, *both, targets=run.targets, on_progress=on_progress, **settings
            )
        else:
            train_loop(model, tokenizer, *both, targets=None, on_progress=on_progress, **settings)
        remove_checkpoints(run.checkpoints)
    return ModelRef(name=f"{slug(ref.name)}-distilled", source=str(run.model), kind="huggingface")


def _rendered(tokenizer: Any, records: Sequence[Record], task: Task, max_tokens: int) -> list[Any]:
    """Token ids and loss masks, one row an assistant turn; what is left out is logged."""
    from potstill.data.render import render

    turns = [turn for record in records for turn in task.turns(record)]
    known = [turn for turn in turns if turn.reference is not None]
    rows = [
        render(tokenizer, turn.messages, turn.reference, max_tokens=max_tokens) for turn in known
    ]
    kept = [row for row in rows if row is not None]
    if turns and not kept:
        raise DataError(
            f"none of {len(turns)} records can be learned from: {len(turns) - len(known)} have "
            f"no reference, {len(known)} are longer than max_tokens={max_tokens}"
        )
    if len(kept) < len(turns):
        log.warning("%d of %d records were left out", len(turns) - len(kept), len(turns))
    return kept


def generate_synthetic_data(
    teacher_model: Named, training_dataset: Data, **options: Any
) -> list[dict[str, Any]]:
    """The teacher's accepted answers as rows: `input`, `teacher_output`, `messages`, `id`."""
    return [
        {
            "input": record.messages[-1].content,
            "teacher_output": record.reference,
            "messages": [message.model_dump() for message in record.messages],
            "id": record.id,
        }
        for record in generate_teacher_responses(teacher_model, training_dataset, **options)
    ]


def train_student_model(
    student_model: ModelRef | str | Path,
    synthetic_data: Sequence[Mapping[str, Any]],
    **options: Any,
) -> ModelRef:
    """Trains a student on rows with `input` and `teacher_output`; see `fine_tune_student`."""
    records = []
    for number, row in enumerate(synthetic_data):
        missing = [name for name in ("input", "teacher_output") if name not in row]
        if missing:
            raise DataError(f"row {number} has no {' and no '.join(missing)}; it has {list(row)}")
        messages = row.get("messages") or [{"role": "user", "content": row["input"]}]
        records.append(
            Record(
                id=str(row.get("id") or content_hash(messages)[:16]),
                messages=tuple(Message.model_validate(message) for message in messages),
                reference=str(row["teacher_output"]),
            )
        )
    return fine_tune_student(student_model, records, **options)


def _train_config(hyperparameters: Mapping[str, Any]) -> TrainConfig:
    known = {name: name for name in TrainConfig.model_fields}
    known |= {name: key.removeprefix("train.") for name, key in HYPERPARAMETERS.items()}
    del known["learning_rate_multiplier"]  # there is no other rate that it could multiply
    tree: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in hyperparameters.items():
        if name not in known:
            problems.append(f"{name}: no such hyperparameter; {nearest(name, known)}")
        elif known[name] in tree:
            problems.append(f"{name}: {known[name]} is given twice, by two names")
        else:
            tree[known[name]] = value
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        problems += explain(error)
    if problems:
        raise ConfigError("the student cannot be trained so:\n  " + "\n  ".join(problems))
    return config
