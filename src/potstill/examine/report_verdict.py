"""The verdict: what a run found, in sentences for somebody who trains no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.examine.numbers import MINUS, number
from potstill.types import Comparison, Estimate, Evaluation

ROLE_TEXT = {
    "teacher": "the teacher",
    "untouched": "the untouched student",
    "gold_few": "the same student trained on a few known answers",
    "gold_all": "the same student trained on all known answers",
    "text": "the same student trained on the teacher's text alone",
    "distilled": "the distilled student",
    "majority": "always giving the commonest answer",
    "tfidf_gold": "a word-count classifier trained on the known answers",
    "tfidf_teacher": "a word-count classifier trained on the teacher's answers",
}
"""What a row of the report is, in a sentence."""

METRIC_TEXT = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "f1": "word F1",
    "macro_f1": "macro F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "length_ratio": "length ratio",
    "copy_rate": "copied",
    "label_validity": "valid labels",
    "json_validity": "valid JSON",
    "refusal_rate": "refused",
    "truncation_rate": "cut off",
    "undue_refusal": "refused wrongly",
    "wrong_language_rate": "wrong language",
    "numeric_equality": "same number",
    "ece": "calibration error",
    "perplexity": "perplexity",
    "bits_per_byte": "bits / byte",
    "divergence": "distance to teacher",
    "agreement": "agrees with teacher",
    "likeness": "like the teacher's words",
    "judge_win_rate": "judge: wins",
    "judge_lc_win_rate": "judge: wins at equal length",
    "judge_score": "judge: score",
    "latency": "latency",
    "latency_ratio": "time / teacher's",
    "latency.p95": "latency, slowest 5 %",
    "latency.p99": "latency, slowest 1 %",
    "tokens_per_second": "tokens/s",
    "memory": "memory",
}
"""Column headings."""


def role_text(role: str) -> str:
    """A row's name in a sentence; exports and unknown rows by their own name."""
    return ROLE_TEXT.get(role, role)


def metric_text(name: str) -> str:
    """A metric's name for a person."""
    return METRIC_TEXT.get(name, name.replace("_", " "))


def is_export(role: str) -> bool:
    """Whether a row is an exported file of the student, such as gguf:q8_0."""
    return ":" in role


def rivals(roles: Sequence[str], student: str) -> list[str]:
    """Rows that cost less than distilling: all but the teacher, the student and its exports."""
    return [r for r in roles if r not in ("teacher", student) and not is_export(r)]


def verdict_sentence(
    evaluations: Mapping[str, Evaluation],
    comparisons: Sequence[Comparison],
    *,
    primary: str,
    student: str = "distilled",
    gates: Sequence[Mapping[str, Any]] = (),
    kept: Mapping[str, Estimate] | None = None,
) -> str:
    """The report's first lines. Claims only what the comparisons' verdicts allow.

    Args:
        kept: What `compare.retention` found.
    """
    found = {c.b: c for c in comparisons if c.a == student and c.metric == primary}
    sentences = [_level(evaluations[student].metrics[primary], primary)]
    if "teacher" in found:
        sentences.append(_against_teacher(found["teacher"], evaluations, primary))
        sentences += _kept((kept or {}).get("of_teacher"))
    if "untouched" in found:
        sentences.append(_against_untouched(found["untouched"], primary))
    beaten, unbeaten = [], []
    for role in rivals(list(evaluations), student):
        if role in found and role != "untouched":
            (beaten if found[role].verdict == "better" else unbeaten).append(role)
    if beaten:
        sentences.append(
            f"It beats {_listed([_with_value(r, evaluations, primary) for r in beaten])}."
        )
    sentences += _unbeaten(unbeaten, found, evaluations, primary)
    sentences += _exports(comparisons, primary, student)
    sentences += _speed(evaluations, student)
    failed = [gate for gate in gates if not gate["passed"]]
    if failed:
        rules = "; ".join(f"{gate['rule']} ({gate['found']})" for gate in failed)
        sentences.append(f"{len(failed)} of {len(gates)} quality gates failed: {rules}.")
    if any("not to be trusted" in c.note for c in found.values()):
        sentences.append("The test set is too small for firm conclusions.")
    return " ".join(sentences)


def _level(found: Estimate, primary: str) -> str:
    if found.value is None:
        return f"The distilled student has no {metric_text(primary)}: {found.note}."
    doubt = ""
    if found.low is not None and found.high is not None:
        doubt = f" (95 % interval {_amount(found.low, found)} to {_amount(found.high, found)})"
    if primary == "accuracy":
        return (
            f"On {found.n:,} test answers the distilled student is right in "
            f"{_amount(found.value, found)}{doubt}."
        )
    return (
        f"On {found.n:,} test answers the distilled student reaches "
        f"{_amount(found.value, found)} {metric_text(primary)}{doubt}."
    )


def _amount(value: float, found: Estimate) -> str:
    return f"{100 * value:.1f} %" if found.unit == "" else number(value, found.unit)


def _points(value: float, primary: str, *, sign: bool = True) -> str:
    """A difference: shares in points of a hundred, everything else as it is."""
    scaled = value if primary in ("bleu", "chrf") else 100 * value
    text = f"{abs(scaled):.1f}"
    mark = MINUS if scaled < 0 and text != "0.0" else "+" if sign else ""
    return f"{mark}{text}"


def _span(comparison: Comparison, primary: str) -> str:
    if comparison.low is None or comparison.high is None:
        return f"{_points(comparison.difference, primary)} points, no interval"
    return (
        f"{_points(comparison.difference, primary)} points, "
        f"{_points(comparison.low, primary)} to {_points(comparison.high, primary)}"
    )


def _with_value(role: str, evaluations: Mapping[str, Evaluation], primary: str) -> str:
    found = evaluations[role].metrics[primary]
    return f"{role_text(role)} ({number(found.value, found.unit)})"


def _against_teacher(found: Comparison, evaluations: Mapping[str, Evaluation], primary: str) -> str:
    teacher = evaluations["teacher"].metrics[primary]
    level = _amount(teacher.value, teacher) if teacher.value is not None else "no value"
    span = _span(found, primary)
    if found.verdict == "better":
        return f"That is better than the teacher's {level} ({span})."
    if found.verdict == "non_inferior":
        margin = _points(found.margin or 0.0, primary, sign=False)
        below = " It is a little below, but by less than that." if (found.high or 0) < 0 else ""
        return (
            f"That is as good as the teacher's {level}, give or take the {margin} points that "
            f"you allow ({span}).{below}"
        )
    if found.verdict == "worse":
        return f"That is worse than the teacher's {level} ({span})."
    return f"Whether it is as good as the teacher ({level}) stays open ({span})." + _detectable(
        found, primary
    )


def _kept(found: Estimate | None) -> list[str]:
    if found is None or found.value is None:
        return []
    doubt = ""
    if found.low is not None and found.high is not None:
        doubt = f" ({_amount(found.low, found)} to {_amount(found.high, found)})"
    return [f"It keeps {_amount(found.value, found)} of the teacher's quality{doubt}."]


def _detectable(found: Comparison, primary: str) -> str:
    if found.detectable is None:
        return ""
    size = _points(found.detectable, primary, sign=False)
    return f" A test of this size can only show differences of about {size} points or more."


def _against_untouched(found: Comparison, primary: str) -> str:
    span = _span(found, primary)
    if found.verdict == "better":
        return f"Distilling helped: it is better than the untouched student ({span})."
    if found.verdict == "worse":
        return f"Distilling did harm: it is worse than the untouched student ({span})."
    if found.verdict == "non_inferior":
        return f"Distilling is not shown to have helped: it is no better than untouched ({span})."
    return (
        f"Whether distilling helped stays open: the difference to the untouched student is {span}."
    )


def _unbeaten(
    roles: Sequence[str],
    found: Mapping[str, Comparison],
    evaluations: Mapping[str, Evaluation],
    primary: str,
) -> list[str]:
    sentences = []
    others = [role for role in roles if role != "text"]
    if others:
        named = [_with_value(role, evaluations, primary) for role in others]
        sentences.append(f"It is not shown to beat these simpler ways: {_listed(named)}.")
    if "text" in roles:
        span = _span(found["text"], primary)
        verb = "did worse than" if found["text"].verdict == "worse" else "is not shown to beat"
        sentences.append(
            f"Learning from the teacher's probabilities {verb} learning from its text alone "
            f"({span})."
        )
    return sentences


def _exports(comparisons: Sequence[Comparison], primary: str, student: str) -> list[str]:
    worse = [
        c
        for c in comparisons
        if c.b == student and c.metric == primary and is_export(c.a) and c.verdict == "worse"
    ]
    return [
        f"The exported file {c.a} is worse than the model it was made of ({_span(c, primary)})."
        for c in worse
    ]


def _speed(evaluations: Mapping[str, Evaluation], student: str) -> list[str]:
    if "teacher" not in evaluations:
        return []
    ours = evaluations[student].metrics.get("latency")
    theirs = evaluations["teacher"].metrics.get("latency")
    if not ours or not theirs or not ours.value or not theirs.value:
        return []
    network = " (network included)" if "includes_network" in theirs.note else ""
    return [
        f"An answer takes {number(ours.value, 'seconds')}, the teacher's "
        f"{number(theirs.value, 'seconds')}{network}."
    ]


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
