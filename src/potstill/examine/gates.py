"""Quality gates: rules of the config that a run must pass before anything is published."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import ConfigError
from potstill.examine.general import PREFIX
from potstill.examine.measured import ENOUGH_FOR, TIMES
from potstill.examine.numbers import number
from potstill.protocols import BUILTIN
from potstill.types import METRIC_ALIASES, Estimate, Evaluation, metric_name

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
MEASURED = (
    "agreement",
    "disk",
    "judge_lc_win_rate",
    "judge_score",
    "judge_win_rate",
    "latency_ratio",
    "parameters",
    "tokens_per_second",
    "energy",
    *(f"{time}{end}" for time in TIMES for end in ("", *ENOUGH_FOR)),
    *("memory", "memory.weights", "memory.cache_token"),
    *("memory.gpu_allocated", "memory.gpu_reserved"),
)
"""What can stand in a rule besides metrics of answers."""

_RULE = re.compile(
    r"(?P<metric>[\w:.]+)\s*(?P<operator>>=|<=|>|<)\s*"
    r"(?:(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?)(?:\s*\*\s*(?P<times>[a-z][\w:.-]*))?"
    r"|(?P<role>[a-z][\w:.-]*))"
)


@dataclass(frozen=True)
class Gate:
    """`metric operator factor [* role]`: a rule on the student's value."""

    rule: str
    metric: str
    operator: str
    factor: float
    role: str | None
    """The model whose value the factor multiplies; None where the factor is the limit."""


def parse_gate(rule: str, *, where: str = "evaluate.gates") -> Gate:
    """Reads a rule such as `accuracy >= 0.97 * teacher` or `f1 >= 0.8`.

    Args:
        where: Key or option that the messages name.

    Raises:
        ConfigError: If the rule is not of this form or its metric is unknown.
    """
    match = _RULE.fullmatch(rule.strip())
    if match is None:
        raise ConfigError(
            f"{where}: {rule!r} is not a rule; write METRIC >= NUMBER, "
            "METRIC >= NUMBER * MODEL or METRIC >= MODEL, such as 'accuracy >= 0.97 * teacher'"
        )
    name = metric_name(match["metric"])
    known = (*BUILTIN["metric"], *MEASURED)
    if name not in known and ":" not in name and not name.startswith(f"{PREFIX}."):
        near = difflib.get_close_matches(name, [*known, *METRIC_ALIASES], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"{where}: {rule!r}: no metric is called {name!r}; {hint}")
    factor = float(match["number"]) if match["number"] else 1.0
    return Gate(rule, name, match["operator"], factor, match["times"] or match["role"])


def check_gates(
    rules: Sequence[str], evaluations: Mapping[str, Evaluation], *, student: str = "distilled"
) -> list[dict[str, Any]]:
    """Each rule on the student's evaluation: {rule, passed, found}.

    A value that was not measured does not pass.

    Raises:
        ConfigError: If a rule cannot be read or names a model that was not evaluated.
    """
    return [_check(parse_gate(rule), evaluations, student) for rule in rules]


def _check(gate: Gate, evaluations: Mapping[str, Evaluation], student: str) -> dict[str, Any]:
    for role in (student, gate.role):
        if role is not None and role not in evaluations:
            raise ConfigError(
                f"evaluate.gates: {gate.rule!r} needs {role!r}, which was not evaluated; "
                f"there are: {', '.join(evaluations)}"
            )
    ours = _measured(gate.metric, evaluations[student])
    theirs = _measured(gate.metric, evaluations[gate.role]) if gate.role else None
    for who, found in ((student, ours), (gate.role, theirs)):
        if who is not None and (found is None or found.value is None):
            why = f": {found.note}" if found is not None and found.note else ""
            reason = f"{gate.metric} of {who} was not measured{why}"
            return {"rule": gate.rule, "passed": False, "found": reason}
    limit = gate.factor * (theirs.value if theirs else 1.0)
    passed = OPERATORS[gate.operator](ours.value, limit)
    found = f"{number(ours.value, ours.unit)} against {number(limit, ours.unit)}"
    return {"rule": gate.rule, "passed": bool(passed), "found": found}


def _measured(name: str, evaluation: Evaluation) -> Estimate | None:
    if name in evaluation.metrics:
        return evaluation.metrics[name]
    facts = {
        "disk": (evaluation.disk_bytes, "bytes"),
        "parameters": (evaluation.num_parameters, "parameters"),
    }
    value, unit = facts.get(name, (None, ""))
    return None if value is None else Estimate(value=float(value), n=1, unit=unit)
