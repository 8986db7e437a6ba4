"""Metrics that describe answers: their form, their language, what they copy and refuse."""

from __future__ import annotations

import json

from potstill.examine.answers import answer_text, copied_share
from potstill.examine.metrics import MeanMetric
from potstill.tasks.languages import language_of, script_of
from potstill.tasks.math import math_task
from potstill.tasks.refusal import is_refusal
from potstill.types import Record, Sample


def _in_wrong_language(sample: Sample) -> float | None:
    """None where there is no right answer to tell the language by, or no letter in the answer."""
    found = script_of(sample.text)
    wanted = [script_of(reference) for reference in sample.references]
    if found is None or not any(wanted):
        return None
    if found not in wanted:
        return 1.0
    spoken = language_of(sample.text)
    right = {language_of(reference) for reference in sample.references}
    return float(bool(spoken) and "" not in right and spoken not in right)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _copied(sample: Sample) -> float:
    return copied_share(
        answer_text(sample), "\n".join(message.content for message in sample.prompt)
    )


def _equal_number(sample: Sample) -> float | None:
    if not sample.references:
        return None
    if sample.prediction is None:
        return 0.0
    facts = {"id": sample.record_id, "messages": sample.prompt, "metadata": sample.metadata}
    records = [Record.model_construct(reference=text, **facts) for text in sample.references]
    return max(math_task.correct(math_task.parse(sample.text, r), r) or 0.0 for r in records)


copy_rate = MeanMetric(
    "copy_rate",
    _copied,
    "mean share of an answer's runs of 4 words that stand in the prompt",
    higher_is_better=False,
)
label_validity = MeanMetric(
    "label_validity", lambda s: float(s.prediction is not None), "an answer could be read"
)
json_validity = MeanMetric(
    "json_validity", lambda s: float(_is_json(s.text)), "the text is a JSON object or array"
)
refusal_rate = MeanMetric(
    "refusal_rate",
    lambda s: float(s.finish_reason == "content_filter" or is_refusal(s.text)),
    "filtered, or a short text that begins with a phrase of refusal (thirteen languages)",
    higher_is_better=False,
)
undue_refusal = MeanMetric(
    "undue_refusal",
    lambda s: (
        None if not s.references or any(map(is_refusal, s.references)) else refusal_rate.of(s)
    ),
    "refuses where the right answer does not",
    higher_is_better=False,
)
wrong_language_rate = MeanMetric(
    "wrong_language_rate",
    _in_wrong_language,
    "in another script than the right answer, or plainly in another language",
    higher_is_better=False,
)
numeric_equality = MeanMetric(
    "numeric_equality",
    _equal_number,
    "the task math's rule: the same number, or a formula that math-verify finds equal",
)
truncation_rate = MeanMetric(
    "truncation_rate",
    lambda s: float(s.finish_reason == "length"),
    "cut at max_new_tokens",
    higher_is_better=False,
)
