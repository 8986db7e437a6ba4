"""The nouns: what flows through the pipeline, before any tensor exists."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

SCHEMA_VERSION = 1
"""Version of the JSON that `Report` and the sample files are written in."""

_NOTEBOOK = "potstill.examine.report_notebook"
"""What draws results in a notebook: looked up when one does, so that nouns know nothing above."""


class Noun(BaseModel):
    """A value that crosses a file or a process boundary: immutable, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Message(Noun):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Record(Noun):
    """One row of a dataset: what is asked, and the right answer if it is known."""

    id: str
    """Stable across runs: the row's own, or a hash of the messages. Never a file position."""

    messages: tuple[Message, ...]
    """The prompt. Ends with a user turn; never holds the answer to that turn. Earlier
    assistant turns of a conversation are the gold history."""

    reference: str | None = None
    """The known right answer to the last user turn. Not shown to any model."""

    metadata: dict[str, Any] = {}
    """JSON values beside the row: label, answers, facts, group, time, any slice."""

    @model_validator(mode="after")
    def _ends_with_a_user_turn(self) -> Record:
        if not self.messages or self.messages[-1].role != "user":
            last = self.messages[-1].role if self.messages else "nothing"
            raise ValueError(f"messages must end with a user turn, but end with {last}")
        return self


class Sampling(Noun):
    """How one answer is drawn from a model."""

    temperature: float = 0.0
    """0 is greedy."""

    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    """How many log-probabilities per answer token an endpoint is asked for; 0 is none."""

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


class Logprobs(Noun):
    """The most probable tokens at each position of an answer: told by an endpoint, or kept by
    weights of this machine while they answered.

    Arrays are little-endian bytes (base64 in JSON), N positions of K tokens, most probable
    first; `models.logprobs` reads and writes them.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    k: int
    sampled: bytes
    """int32 [N]: the tokens of the answer."""

    ids: bytes
    """Token ids [N, K]: uint16 where all are below 65,535, else int32; the largest uint16 or -1
    where fewer than K were told."""

    values: bytes
    """float16 [N, K]: log-probabilities in nats; minus infinity where fewer than K were told."""

    tail: bytes
    """float32 [N]: probability of all tokens that were not told."""

    tokens: tuple[str, ...] = ()
    """Bytes of tokens in hexadecimal, which the ids count; empty where the ids are the model's."""

    mode: Literal["raw", "processed"] | None = None
    """Before temperature and penalties, or after; None where nobody said."""

    temperature: float = 1.0
    """What the raw logits were divided by: `loss.temperature` where weights of this machine kept
    them; endpoints tell them at 1."""

    vocab_fingerprint: str | None = None
    """The tokenizer that the ids belong to; None where nobody said, or they count `tokens`."""

    has_end: bool | None = None
    """Whether the last position is the end token; None where nobody said."""

    mass_dropped: float = 0.0
    """Probability of the head's rows beyond the tokenizer, summed over the positions. The values
    are those of the tokenizer's own tokens alone."""


class Response(Noun):
    """What a `ChatModel` said to one turn of one record."""

    record_id: str
    turn: int = 0
    """Counts the assistant turns of a conversation from 0."""

    sample: int = 0
    """Counts the answers to one prompt from 0."""

    text: str
    reasoning: str = ""
    """What the model thought before it answered, where it says so apart from the answer."""

    finish_reason: Literal["stop", "length", "content_filter", "error"]
    """`length` means cut at max_new_tokens; `error` that no answer came (see `error`)."""

    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the request, retries not included. In a batch: the batch's time / its rows."""

    cost: float | None = None
    """Money in the price table's currency; None where no price is known."""

    model: str = ""
    teacher: str = ""
    """Which of several teachers said it; empty where there is one."""

    fingerprint: str = ""
    """Hash of prompt, model and sampling: the same request has the same fingerprint."""

    error: str = ""
    """Why no answer came, or none to use. Where finish_reason is `error` it begins with the reason,
    a `models.failures.Failure`, and a colon; without one it is `other`."""

    num_unread: int = 0
    """Attempts besides that brought nothing to read, and may have been paid for."""

    logprobs: Logprobs | None = None


class Rejection(Noun):
    """Why a response or a record was dropped. Written beside the data, never only counted."""

    record_id: str
    turn: int = 0
    sample: int = 0
    check: str
    reason: str
    """A type: length, refusal, off_label, unparsable, disagrees, duplicate, leak, too_long, ..."""

    detail: str = ""
    """What was found, for a person."""


class Score(Noun):
    """One record, one number."""

    record_id: str
    value: float


class Estimate(Noun):
    """A metric with the doubt that belongs to it."""

    value: float | None
    """None where it cannot be computed; `note` says why."""

    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval."""

    n: int
    unit: str = ""
    method: str = ""
    """How the interval was made: wilson, bootstrap-bca, bootstrap-percentile, none."""

    n_error: int = 0
    """Answers that did not come or could not be read; they count as wrong."""

    signature: str = ""
    """The exact rule behind the number, such as sacrebleu's signature."""

    higher_is_better: bool = True
    note: str = ""


class Likelihood(Noun):
    """How probable a model finds the known answer to one prompt."""

    nats: float
    """Minus the log-probability of its tokens and its end."""

    num_tokens: int
    num_bytes: int
    """Of the known answer in UTF-8."""

    divergence_nats: float | None = None
    """KL(teacher || model) summed over the tokens; None where it cannot be had."""


class Sample(Noun):
    """One answer of one model to one turn of one test record, and what it was worth."""

    record_id: str
    turn: int = 0
    group: str = ""
    """Answers of one group (a conversation, a customer) are resampled together."""

    prompt: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    text: str
    prediction: str | None = None
    """What the task read out of the text; None where it could not be read."""

    target: str | None = None
    """What the task read out of the reference."""

    correct: float | None = None
    """The task's accuracy rule, in [0, 1]; None where there is no reference."""

    finish_reason: str = "stop"
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    fingerprint: str = ""
    """Hash of model, prompt and decoding: while it is the same, the answer is not asked again."""

    confidence: float | None = None
    """Probability that the model gave to all tokens of its answer; None where it does not tell."""

    likelihood: Likelihood | None = None
    """Of the known answer; only where a metric asks for it."""

    metadata: dict[str, Any] = {}


class Evaluation(Noun):
    """One model on one test set."""

    role: str
    """Its row in the report: teacher, untouched, gold_few, text, distilled, gguf:q8_0 ..."""

    id: str
    """Name or path of the model."""

    fingerprint: str = ""
    format: str = ""
    """huggingface, gguf, endpoint, plain; several where more than one teacher answers."""

    num_parameters: int | None = None
    disk_bytes: int | None = None
    decoding: dict[str, Any] = {}
    setting: dict[str, Any] = {}
    """Engine, dtype, threads, batch: what a latency is only true for."""

    metrics: dict[str, Estimate] = {}
    by_class: dict[str, dict[str, Estimate]] = {}
    by_slice: dict[str, dict[str, Estimate]] = {}
    samples: str = ""
    """File of the answers, relative to the run folder."""

    def __getitem__(self, metric: str) -> float:
        """The metric's value, by its name or a known alias such as bleu_score.

        Raises:
            KeyError: If this evaluation holds no such metric; the message lists what it holds.
        """
        name = METRIC_ALIASES.get(metric, metric)
        if name not in self.metrics:
            raise KeyError(f"no metric {metric!r} here; there are: {', '.join(self.metrics)}")
        value = self.metrics[name].value
        return float("nan") if value is None else value

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each metric, as data frames are made of: `pandas.DataFrame(rows)`."""
        about = {"model": self.role, "id": self.id}
        return [{**about, "metric": m, **found.model_dump()} for m, found in self.metrics.items()]

    def _repr_html_(self) -> str:
        return str(importlib.import_module(_NOTEBOOK).evaluation_html(self))


METRIC_ALIASES = {
    "bleu_score": "bleu", "inference_time": "latency", "memory_usage": "memory",
    "f1_score": "f1", "rouge": "rouge_l", "exact": "exact_match", "em": "exact_match",
    "f1_macro": "macro_f1", "rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l",
    "sacrebleu": "bleu", "expected_calibration_error": "ece", "ppl": "perplexity",
    "kl_divergence": "divergence",
}  # fmt: skip
"""Names that other tools use -> ours."""


class Comparison(Noun):
    """Two models on the same records: a minus b."""

    a: str
    b: str
    metric: str
    difference: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    """How the interval was made."""

    n: int = 0
    test: str = ""
    p: float | None = None
    p_holm: float | None = None
    discordant: int | None = None
    verdict: Literal["better", "worse", "non_inferior", "inconclusive"]
    margin: float | None = None
    detectable: float | None = None
    """The smallest difference that this many records can show with 80 % power."""

    note: str = ""


class Report(Noun):
    """Everything that was measured in one run."""

    schema_version: int = SCHEMA_VERSION
    run: str
    task: dict[str, Any]
    """name, split, n, dataset and prompt hashes."""

    models: dict[str, Evaluation]
    comparisons: tuple[Comparison, ...] = ()
    retention: dict[str, Estimate] = {}
    """`of_teacher` = student / teacher, `gap_recovered` = (student - untouched) / (teacher -
    untouched), on the primary metric."""

    primary_metric: str = "accuracy"
    verdict: str = ""
    regressions: tuple[dict[str, Any], ...] = ()
    wins: tuple[dict[str, Any], ...] = ()
    num_regressions: int = 0
    num_wins: int = 0
    """How many there are; the lists hold at most 50."""

    confusion: dict[str, dict[str, dict[str, int]]] = {}
    """Closed answers only: model -> reference -> answer -> count; an unreadable answer is ""."""

    inherited: dict[str, dict[str, dict[str, Estimate]]] = {}
    """Faults that can come from the teacher: labels, groups, mistakes, refusals, language ->
    where -> model -> how much. Only what could be measured."""

    gates: tuple[dict[str, Any], ...] = ()
    load: dict[str, dict[str, Any]] = {}
    """Row -> what it carries on one machine, level by level (`examine.load.Load`)."""

    cost: dict[str, Any] = {}
    """What a thousand requests cost, the distillation once, and the break-even."""

    claims: tuple[dict[str, Any], ...] = ()
    """Response time, memory, accuracy kept, running cost, concurrent users: what this run shows of
    each, and what part distillation, engine and quantisation have (`examine.claims.Claim`)."""

    data: dict[str, Any] = {}
    """The funnel: requested, answered, accepted, rejected by reason."""

    training: dict[str, Any] = {}
    judge: dict[str, Any] = {}
    """What a model that judges said of the student's answers against others', see
    `examine.ballots.Preference`; empty where none was asked."""

    environment: dict[str, Any] = {}
    limits: tuple[str, ...] = ()
    """What this report does not show."""

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each model and metric, as data frames are made of."""
        return [row for found in self.models.values() for row in found.rows()]

    def _repr_html_(self) -> str:
        return str(importlib.import_module(_NOTEBOOK).report_html(self))


def metric_name(name: str) -> str:
    """Our name of a metric: aliases resolved, everything else unchanged."""
    return METRIC_ALIASES.get(name, name)
