"""The run configuration: one tree of sections, one schema.

The same classes parse the YAML file, the HTTP body and the SDK's job, and the sentence
under a field is its help on the command line, in the JSON Schema and in
docs/reference/config.md. To add a knob, add a field; there is nothing else to edit.
Reading files, overrides and messages are in `file`.
"""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.config.asked import DataGenerationConfig, asked_problems
from potstill.config.checks import CheckLimits
from potstill.config.data import FeedbackConfig, Privacy, PrivacyConfig, contradictions
from potstill.config.generation import GenerationConfig
from potstill.config.judge import Judge, judge_problems
from potstill.config.models import Student, TeacherConfig
from potstill.config.rules import Where
from potstill.config.section import Section
from potstill.config.speed import CostConfig, LoadConfig, load_problems
from potstill.config.teachers import Teachers, teachers_problems
from potstill.config.training import LossConfig, TrainConfig

TaskName = Literal[
    "nli", "conversation", "qa", "math", "summarization", "classification", "translation"
]
TASKS: tuple[str, ...] = typing.get_args(TaskName)
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def _as_paths(value: Any) -> Any:
    return [value] if isinstance(value, str | os.PathLike) else value


PathList = Annotated[
    tuple[Path, ...],
    BeforeValidator(_as_paths, json_schema_input_type=Path | tuple[Path, ...]),
]
Paths = Annotated[PathList, Field(min_length=1)]


def _off(value: Any) -> Any:
    return "off" if value is False else value  # `off` without quotes is false in YAML


ReuseAnswers = Annotated[
    Literal["weights", "all", "off"],
    BeforeValidator(_off, json_schema_input_type=Literal["weights", "all", "off", False]),
]


class DataConfig(Section):
    validation: float | Path = 0.1
    """Share of the training records held back to choose the checkpoint, or a file of their own."""

    test: float | Path | None = None
    """File of the records all models are compared on, or a share of the training records.
    Without it nothing is compared."""

    split_by: Literal["record", "group", "time"] = "record"
    """What stays on one side: a record, all records of a group, or a stretch of time
    (the latest records become validation and test)."""

    group_by: str | None = None
    """Metadata field that names the group (a customer, a dialogue) for `split_by: group`,
    or the time stamp for `split_by: time`."""

    columns: dict[str, str] = {}
    """Which column is what, where the names are not the usual ones: `{prompt: frage}`."""

    keep_out: PathList = ()
    """Further test sets, beside `test`, whose text must not reach the student: a file or a list."""

    label_quota: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]] | None = None
    """Most accepted training rows for each answer from a small set: a number for all, or by
    answer, `{yes: 500, no: 500}`. The first ones are kept."""

    format: Literal["auto", "rows", "stored_completions", "batch"] = "auto"
    """What the rows of `train_data` are: plain rows, stored completions, or a batch's input and
    output files; told from the rows by default."""

    where: Where | None = None
    """Which rows of `train_data` are taken: a rule on their fields, with `all`, `any`, `not`."""

    logged_answers: Literal["regenerate", "reuse"] = "regenerate"
    """Whether the teacher answers logged prompts anew, or the logged answers are learned and no
    teacher is asked."""

    feedback: FeedbackConfig | None = None
    """For `logged_answers: reuse`: which logged answers are good enough to learn."""

    privacy: Privacy = PrivacyConfig()
    """What becomes of personal data: `auto`, `off`, `pseudonymise`, `redact`, or a mapping."""

    @model_validator(mode="after")
    def _grouping_has_a_field(self) -> DataConfig:
        if self.feedback is not None and self.logged_answers != "reuse":
            raise ValueError(
                "feedback chooses among logged answers, and logged_answers: regenerate asks for "
                "all of them anew; use logged_answers: reuse, or where to choose rows"
            )
        if self.split_by != "record" and not self.group_by:
            raise ValueError(f"split_by: {self.split_by} needs group_by, the metadata field to use")
        for name, value in (("validation", self.validation), ("test", self.test)):
            if isinstance(value, float) and not 0 <= value < 1:
                raise ValueError(f"{name} must be a share in [0, 1) or a file, got {value}")
        return self


class EvaluateConfig(Section):
    metrics: tuple[str, ...] | None = None
    """Names of metrics; the task's own by default. The first is the one that verdicts are on."""

    baselines: tuple[Literal["untouched", "gold_few", "gold_all", "text", "plain"], ...] = (
        "untouched",
    )
    """Rows beside teacher and student: the untouched student, students trained on a few or
    all known answers or on the teacher's text, and plain rivals (closed answers only)."""

    gold_data: Path | None = None
    """File of records with known answers that `gold_few` and `gold_all` learn from; by default
    the training records that have one."""

    fields: str | None = None
    """Open answers that consist of fields: the function that reads them, `module:attribute`
    (text to a mapping, or None). Plain rivals then learn field by field."""

    fields_join: str | None = None
    """The function that puts fields together to an answer, `module:attribute`."""

    slices: tuple[str, ...] = ("label", "source", "language")
    """Fields of the rows that the test set is cut by in the report, beside the length of the
    prompt: any column that is not prompt or answer. `label` is also the right answer where
    there are few."""

    num_few: int = Field(48, ge=1)
    """Known answers that the `gold_few` student learns from."""

    teacher: bool = True
    """Whether the teacher answers the test set too."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; as in `generation` by default."""

    history: Literal["gold", "own"] = "gold"
    """What a turn of a conversation is asked on: the known answers to the turns before it, or the
    model's own."""

    reuse_answers: ReuseAnswers = "weights"
    """Whose answers to the same prompt other runs may use again: `weights`, models known by their
    weights; `all`, endpoints by URL and name too; or `off`."""

    reuse_megabytes: int = Field(500, ge=1)
    """How large the file of such answers may become; the least used are dropped."""

    batch_size: int = Field(32, ge=1)
    """Prompts that local weights answer together."""

    num_latency_calls: int = Field(30, ge=0)
    """Timed single calls to each model, after three that are not timed; 0 leaves latency out."""

    general_tasks: tuple[str, ...] = ()
    """Public benchmarks, by lm-eval's names, that the student answers before and after: what it
    can still do besides its task. Needs `lm_eval`."""

    general_include: Path | None = None
    """Folder of lm-eval task files (YAML) of your own, which `general_tasks` may name too; paths in
    them count from it."""

    general_limit: int | None = Field(200, ge=1)
    """Questions of each public benchmark; null asks all."""

    lm_eval: Path | None = None
    """The command `lm_eval` of a Python environment of its own."""

    load: LoadConfig | None = None
    """Put models under load: more and more requests at once, until they come too slowly. `{}` does
    so with the default objective; left out, it is not done, and users carried are not known."""

    cost: CostConfig = CostConfig()
    """What machines cost, for the price of an answer and the break-even."""

    judge: Judge = None
    """A model that says which answer is better, the distilled student's or another row's: named
    like a teacher (short name, folder, `file.gguf`, URL, or a mapping)."""

    gates: tuple[str, ...] = ()
    """Rules that must hold, such as `accuracy >= 0.97 * teacher`; else exit code 3."""

    num_trial: int = Field(32, ge=0)
    """Known answers in the training data that teacher and untouched student are compared on before
    the rest is asked; a teacher that is not better is warned of. 0 leaves it out."""

    margin: float = Field(0.02, ge=0, lt=1)
    """How far below the teacher still counts as not inferior, as a share of the metric's scale:
    0.02 is two points in a hundred."""

    seed: int = 0
    """Start of the bootstrap's random numbers."""


class DistillConfig(Section):
    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run and of the model it makes."""

    task: TaskName
    """What kind of question the records ask."""

    teacher: Teachers
    """The model that answers: short name, folder, `file.gguf`, URL, or a mapping; or a list of
    such, several teachers, which `generation.teachers` says the parts of."""

    student: Student
    """The model that learns: short name, folder, or a mapping."""

    train_data: Paths
    """Records to learn from, one file or a list: JSONL, CSV or Parquet. References are optional."""

    data: DataConfig = DataConfig()
    generation: GenerationConfig = GenerationConfig()
    data_generation: DataGenerationConfig | None = None
    """New prompts in the style of the training prompts, which the teacher writes and then answers
    like the real ones: `{}`, or a mapping."""

    checks: tuple[str, ...] = ("finished", "not_refusal", "task", "no_duplicates")
    """What an answer must pass before the student sees it: names, or `module:attribute`."""

    check_limits: CheckLimits = CheckLimits()
    """What a check may take. One that hangs, crashes or takes more rejects its row alone."""

    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: tuple[str, ...] = ()
    """Files to make of the student, such as `gguf:q8_0`."""

    @model_validator(mode="after")
    def _sections_agree(self) -> DistillConfig:
        problems = contradictions(self.data, self.generation) + asked_problems(self)
        problems += teachers_problems(self) + load_problems(self) + judge_problems(self)
        generation = self.generation
        if generation.num_responses > 1 and generation.temperature == 0:
            problems.append(
                "generation.num_responses above 1 needs generation.temperature > 0: greedy "
                "answers are all the same"
            )
        if generation.prompting == "chain_of_density" and self.task != "summarization":
            problems.append(
                "generation.prompting: chain_of_density is for task: summarization, not "
                f"{self.task}"
            )
        if generation.prompting == "chain_of_thought" and self.task in (
            "summarization",
            "conversation",
            "translation",
        ):
            problems.append(
                f"generation.prompting: chain_of_thought is not for task: {self.task}; "
                "it is for nli, qa, math and classification"
            )
        if generation.choose == "vote" and self.task in (
            "summarization",
            "conversation",
            "translation",
        ):
            problems.append(
                f"generation.choose: vote is not for task: {self.task}, whose right answers "
                "differ in their words; use best, with generation.best_by"
            )
        if self.evaluate.general_tasks and self.evaluate.lm_eval is None:
            problems.append(
                "evaluate.general_tasks are asked by lm-eval: name its command with "
                "evaluate.lm_eval, from an environment of its own"
            )
        if self.evaluate.gates and not self.data.test:
            problems.append(
                "evaluate.gates are rules on the answers to a test set, and data.test names none"
            )
        if (generation.choose == "best") != (generation.best_by is not None):
            problems.append("generation.choose: best and generation.best_by need each other")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """Every teacher, in the order of the file."""
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
