"""Every extension point, on one page.

An extension is a function or an object with the right shape; nothing needs to be
subclassed. `resolve` finds built-ins by short name and everything else by
"module:attribute", so a third-party package needs no registration step.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from potstill.errors import ConfigError
from potstill.types import Message, Record, Rejection, Response, Sample, Sampling

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class ChatModel(Protocol):
    """Answers prompts. May be a remote endpoint, local weights or a recorded file.

    Teacher and student are roles, not classes: the student is asked through the same
    protocol when it is evaluated.
    """

    name: str
    max_in_flight: int
    """How many calls of `respond` it wants open at once."""

    async def respond(
        self, record: Record, sampling: Sampling, *, turn: int = 0, sample: int = 0
    ) -> Response:
        """Answers `record.messages`, which end with a user turn.

        Raises:
            TeacherRefused: If it will never answer as asked (key, URL, model name).
            TeacherError: If it gave up on this prompt after its retries.
        """
        ...

    async def close(self) -> None:
        """Frees connections, processes and memory."""
        ...


class StreamingModel(ChatModel, Protocol):
    """A chat model that tells when its tokens come, so that the first one can be timed."""

    async def stream(
        self,
        record: Record,
        sampling: Sampling,
        on_token: Callable[[], None],
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Response:
        """As `respond`, in one attempt and without waiting for anybody's limits.

        Args:
            on_token: Called as text of the model arrives, from any thread: once a token, or once
                for several where they arrive together.
            on_text: Called with the text of the answer, piece by piece, from any thread. The
                pieces are the beginning of `Response.text`; whatever is missing comes with it.
        """
        ...


class WhiteBoxModel(ChatModel, Protocol):
    """A chat model that also tells its probabilities. Every loss but `sft` needs one."""

    tokenizer: Any
    """The transformers tokenizer, with its chat template."""

    vocab_fingerprint: str

    def logits(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Next-token logits where `positions_BT` (bool) is True: [B, T] to [N, V], float32."""
        ...


class Check(Protocol):
    """Accepts a response (None) or says why not."""

    def __call__(self, record: Record, response: Response) -> Rejection | None: ...


class Loss(Protocol):
    """A divergence of the student from the teacher, over outcomes that both give log-probabilities
    to: values [N] in nats, and slopes [N, O], the derivative by the student's log-probabilities."""

    def __call__(self, log_p_NO: Tensor, log_q_NO: Tensor) -> tuple[Tensor, Tensor]: ...


class Task(Protocol):
    """What is asked of a model, how an answer is read, and when it is right."""

    name: str
    default_metrics: tuple[str, ...]
    """The first is the one verdicts are on."""

    closed: bool
    """Whether answers come from a small set, so that plain classifiers are rivals."""

    def turns(self, record: Record) -> tuple[Record, ...]:
        """The prompts of a record as models see them, one for each assistant turn.

        Same id and metadata; each ends with a user turn and carries its own reference.
        All but conversations have one.
        """
        ...

    def parse(self, text: str, record: Record) -> str | None:
        """The answer inside a model's text, in canonical form; None where there is none."""
        ...

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 or 0.0 (or between) under the task's accuracy rule; None without a reference."""
        ...


class Metric(Protocol):
    """Reduces the answers of a test set to one number, by way of sums.

    Every answer becomes a row of numbers; the metric is a function of the column sums.
    So a bootstrap is one matrix product, for accuracy and corpus BLEU alike.
    """

    name: str
    unit: str
    higher_is_better: bool
    signature: str

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """[n] samples to [n, d] float64."""
        ...

    def value(self, sums: np.ndarray) -> np.ndarray:
        """[..., d] sums to [...] values."""
        ...


class Exporter(Protocol):
    """Makes one artefact of a Hugging Face folder; returns the artefact's main file.

    Beside a built-in one may stand, in its module: `QUANTS`, the number formats it writes, and
    `refuse(model_dir, quant)`, which raises within seconds what it would raise later.
    """

    def __call__(self, model_dir: Path, out_dir: Path, *, quant: str | None = None) -> Path: ...


class Executor(Protocol):
    """Runs jobs where nobody is watching."""

    def start(self, name: str) -> None: ...

    def is_alive(self, name: str) -> bool: ...

    def cancel(self, name: str) -> None: ...


Render = Callable[[Sequence[Message]], str]
"""Messages to the exact text of a prompt."""

Kind = Literal["check", "loss", "task", "metric", "exporter", "executor"]

BUILTIN: dict[Kind, dict[str, str]] = {
    "check": {
        "finished": "potstill.teach.checks:finished",
        "not_refusal": "potstill.teach.checks:not_refusal",
        "task": "potstill.teach.checks:task",
        "agrees": "potstill.teach.checks:agrees",
        "no_duplicates": "potstill.teach.doubles:NoDuplicates",
        "no_near_duplicates": "potstill.teach.doubles:NoNearDuplicates",
    },
    "loss": {
        "sft": "potstill.train.losses:cross_entropy",
        "forward_kl": "potstill.train.losses:forward_kl",
        "reverse_kl": "potstill.train.losses:reverse_kl",
        "jsd": "potstill.train.losses:jsd",
        "skew_forward_kl": "potstill.train.losses:skew_forward_kl",
        "skew_reverse_kl": "potstill.train.losses:skew_reverse_kl",
        "adaptive_kl": "potstill.train.losses:adaptive_kl",
        "total_variation": "potstill.train.losses:total_variation",
    },
    "task": {
        "nli": "potstill.tasks.choice:nli",
        "classification": "potstill.tasks.choice:classification",
        "qa": "potstill.tasks.qa:qa",
        "math": "potstill.tasks.math:math_task",
        "conversation": "potstill.tasks.conversation:conversation",
        "summarization": "potstill.tasks.summarization:summarization",
        "translation": "potstill.tasks.translation:translation",
    },
    "metric": {
        "accuracy": "potstill.examine.metrics:accuracy",
        "exact_match": "potstill.examine.metrics:exact_match",
        "f1": "potstill.examine.metrics:f1",
        "macro_f1": "potstill.examine.metrics:macro_f1",
        "length_ratio": "potstill.examine.metrics:length_ratio",
        "copy_rate": "potstill.examine.rates:copy_rate",
        "label_validity": "potstill.examine.rates:label_validity",
        "json_validity": "potstill.examine.rates:json_validity",
        "refusal_rate": "potstill.examine.rates:refusal_rate",
        "truncation_rate": "potstill.examine.rates:truncation_rate",
        "undue_refusal": "potstill.examine.rates:undue_refusal",
        "wrong_language_rate": "potstill.examine.rates:wrong_language_rate",
        "numeric_equality": "potstill.examine.rates:numeric_equality",
        "ece": "potstill.examine.probability:CalibrationError",
        "perplexity": "potstill.examine.probability:perplexity",
        "bits_per_byte": "potstill.examine.probability:bits_per_byte",
        "divergence": "potstill.examine.probability:divergence",
        "bleu": "potstill.examine.overlap:Bleu",
        "chrf": "potstill.examine.overlap:Chrf",
        "rouge_1": "potstill.examine.overlap:rouge_1",
        "rouge_2": "potstill.examine.overlap:rouge_2",
        "rouge_l": "potstill.examine.overlap:rouge_l",
    },
    "exporter": {
        "huggingface": "potstill.export.huggingface:export_huggingface",
        "gguf": "potstill.export.gguf:export_gguf",
        "ctranslate2": "potstill.export.ctranslate:export_ctranslate2",
        "onnx": "potstill.export.onnx_genai:export_onnx",
    },
    "executor": {"local": "potstill.jobs.executor:LocalExecutor"},
}


def resolve(kind: Kind, name: str) -> Any:
    """Returns the extension called `name`, importing its module only now.

    Raises:
        ConfigError: If the name is neither built in nor an importable "module:attribute".
    """
    builtin = BUILTIN[kind]
    target = builtin.get(name, name)
    if ":" not in target:
        close = difflib.get_close_matches(name, builtin, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"no {kind} is called {name!r}{hint}; built in: {', '.join(sorted(builtin))}; "
            f'or give your own as "module:attribute"'
        )
    return resolve_attribute(target, what=f"{kind} {name!r}")


def resolve_attribute(target: str, *, what: str = "extension") -> Any:
    """Returns what "module:attribute" names.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be imported from {target!r}: {error}") from error
