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

from potstill.config.asked import DataGenerationConfig, RowsConfig, asked_problems
from potstill.config.checks import CheckLimits
from potstill.config.data import FeedbackConfig, Privacy, PrivacyConfig, Where, contradictions
from potstill.config.models import Section, Student, Teacher

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


class GenerationConfig(RowsConfig):
    temperature: float = Field(0.7, ge=0, le=2)
    """Temperature the teacher samples at. 0 is greedy."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the share of probability that is drawn from."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in teacher tokens. Longer ones are cut and then rejected."""

    num_responses: int = Field(1, ge=1, le=64)
    """Answers per prompt. Above 1 needs temperature > 0."""

    choose: Literal["all", "vote", "best"] = "all"
    """Which of several answers to a prompt the student learns: all that pass the checks, one of
    those that most agree on (labels, options, numbers, short answers), or the best by `best_by`."""

    best_by: str | None = None
    """For `choose: best`: the function that scores an answer, `module:attribute` (record and
    response to a number, higher is better)."""

    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Endpoints only: lowers tokens by how often they stand in the answer already."""

    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Endpoints only: lowers tokens that stand in the answer already."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    prompting: Literal["plain", "chain_of_thought", "chain_of_density"] = "plain"
    """What the teacher is asked for: the answer, reasoning before the answer (not for
    summarization), or a summary made denser in four rounds (only for summarization)."""

    reasoning: Literal["answer", "reasoning", "both"] = "answer"
    """What the student learns when the teacher reasons: the bare answer, the reasoning and the
    answer, or `both`, a row of each, the reasoned one when it is told to think."""

    max_summary_words: int = Field(80, ge=5)
    """Longest summary that chain of density asks for, in words."""

    logprobs: int = Field(0, ge=0, le=100)
    """Log-probabilities per answer token that an endpoint is asked for."""

    max_in_flight: int | Literal["auto"] = "auto"
    """Most requests open at once; `auto` is 256 for an endpoint and four batches for local
    weights. An endpoint gets 20 at first, and more while it keeps up."""

    batch_size: int = Field(32, ge=1)
    """Prompts that local weights answer together."""

    min_success_ratio: float = Field(0.95, ge=0, le=1)
    """Share of all requested answers that must arrive; below it the run stops, with all kept."""

    max_failures: int | None = Field(None, ge=0)
    """Most answers that may fail to come; with one more the run stops, with all kept. No limit of
    its own by default."""

    max_cost: float | None = Field(None, gt=0)
    """Stop before the teacher's bill exceeds this; needs `teacher.price`."""

    pilot: int = Field(16, ge=0)
    """Prompts asked first: more than one that fails, is empty or is cut stops the run."""

    seed: int = 0
    """Start of the teacher's random numbers."""


class TargetsConfig(Section):
    kind: Literal["topk"] = "topk"
    """What is kept of the teacher's probabilities: the k largest and the mass of the rest."""

    k: int = Field(64, ge=1, le=4096)
    """How many probabilities are kept at each position."""


class LossConfig(Section):
    kind: Literal["sft", "forward_kl"] = "sft"
    """`sft` learns the teacher's text; `forward_kl` learns its probabilities as well."""

    temperature: float = Field(1.0, gt=0)
    """Softens teacher and student in the loss. Not used by `sft`."""

    sft_weight: float = Field(0.5, ge=0, le=1)
    """Share of the plain next-token loss mixed into a loss on probabilities."""

    targets: TargetsConfig = TargetsConfig()
    """How the teacher's probabilities are kept on disk."""


class AdapterConfig(Section):
    kind: Literal["lora"] = "lora"
    """Kind of adapter: LoRA, low-rank updates beside frozen weights."""

    r: int = Field(16, ge=1)
    """Rank of the updates."""

    alpha: float = Field(32.0, gt=0)
    """Scale of the updates: they are multiplied by alpha / r."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the updates."""


def _as_adapter(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Adapter = Annotated[
    AdapterConfig | None,
    BeforeValidator(_as_adapter, json_schema_input_type=Literal["lora"] | AdapterConfig | None),
]


class TrainConfig(Section):
    learning_rate: float = Field(2.0e-5, gt=0, lt=1)
    """Peak learning rate of AdamW."""

    num_epochs: float = Field(3, gt=0)
    """Passes over the accepted records. Fractions are allowed."""

    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps, instead of what num_epochs gives."""

    batch_size: int = Field(16, ge=1)
    """Records per optimizer step, over all devices."""

    micro_batch_size: int | None = Field(None, ge=1)
    """Records computed at once; the rest of a step is accumulated. All of them by default."""

    max_tokens: int = Field(2048, ge=8)
    """Longest training record, prompt and answer. Longer ones are rejected, not cut."""

    adapter: Adapter = None
    """Train a LoRA adapter instead of all weights: `lora`, or a mapping."""

    freeze_embeddings: bool = False
    """Keep the word vectors (and a head tied to them) as they are; saves time on small data."""

    freeze_layers: int = Field(0, ge=0)
    """Keep the lowest so many layers as they are; saves time and memory. Not with an adapter."""

    precision: Literal["auto", "fp32", "bf16", "autocast"] = "auto"
    """Number format: fp32, weights in bf16, or fp32 weights with bf16 arithmetic.
    `auto` takes autocast where the device computes in bf16. The trained weights are stored
    in the format of the arithmetic."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""

    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay, on matrices only."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""

    eval_steps: int | None = Field(None, ge=1)
    """Steps between two looks at the validation loss; a tenth of the run by default."""

    early_stopping: bool = True
    """Stop when the validation loss has not fallen for `patience` looks."""

    patience: int = Field(3, ge=1)
    """Looks at the validation loss without a new best before training stops."""

    gradient_checkpointing: bool = False
    """Compute activations twice to keep fewer in memory."""

    seed: int = 0
    """Order of the records and initial adapter weights."""


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

    num_few: int = Field(48, ge=1)
    """Known answers that the `gold_few` student learns from."""

    teacher: bool = True
    """Whether the teacher answers the test set too."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; as in `generation` by default."""

    batch_size: int = Field(32, ge=1)
    """Prompts that local weights answer together."""

    num_latency_calls: int = Field(30, ge=0)
    """Timed single calls to each model, after three that are not timed; 0 leaves latency out."""

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

    teacher: Teacher
    """The model that answers: short name, folder, `file.gguf`, URL, or a mapping."""

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
        if (generation.choose == "best") != (generation.best_by is not None):
            problems.append("generation.choose: best and generation.best_by need each other")
        if generation.max_cost is not None and self.teacher.price is None:
            problems.append("generation.max_cost needs teacher.price: {input: ..., output: ...}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
