"""What a judge or people said, as it stands in reports: sentences, a table, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.examine.ballots import LC_WIN_RATE, SCORE, WIN_RATE, Preference
from potstill.examine.markdown import safe as marked
from potstill.examine.markdown import table as markdown_table
from potstill.examine.numbers import EN_DASH, number, p_value, percent
from potstill.examine.report_verdict import role_text
from potstill.types import Comparison, Estimate, Report

HEADINGS = (
    "answers of", "won", "tied", "lost", "win rate", "at equal lengths", "verdict", "p",
    "contradictory", "first place",
)  # fmt: skip
TIES = ("tie", "both_bad", "inconsistent", "unreadable", "same_text")
CAPTION = (
    "Win rate: share of the pairs that the first model wins, ties counted half, with its 95 % "
    "interval. Contradictory: pairs in which a choice changed when the two answers changed places; "
    "they count as ties. First place: share of the choices that fell on the answer shown first."
)


def preferences_of(judge: Mapping[str, Any]) -> list[Preference]:
    """The preferences in a report's `judge`."""
    return [Preference.model_validate(one) for one in judge.get("preferences", ())]


def judge_metrics(judge: Mapping[str, Any], student: str) -> dict[str, dict[str, Estimate]]:
    """Role -> metrics: scores of all that have one, and the student's win rates.

    A win rate is against the first of the rows that the student was judged against; the
    others are in the report's `judge`.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for one in preferences_of(judge)[:1]:
        note = {"note": f"against {one.b}" + (f"; {one.win_rate.note}" * bool(one.win_rate.note))}
        found[student] = {
            WIN_RATE: one.win_rate.model_copy(update=note),
            LC_WIN_RATE: one.lc_win_rate.model_copy(
                update={"note": f"against {one.b}"} if not one.lc_win_rate.note else {}
            ),
        }
    for role, score in judge.get("scores", {}).items():
        found.setdefault(role, {})[SCORE] = Estimate.model_validate(score)
    return found


def judge_sentences(judge: Mapping[str, Any]) -> list[str]:
    """What the judge found, for the verdict."""
    return [preference_sentence(one) for one in preferences_of(judge)]


def with_judge(report: Report, judge: Mapping[str, Any]) -> Report:
    """The report with what the judge found, in its verdict too; as it is where none was asked."""
    sentences = judge_sentences(judge)
    verdict = " ".join([report.verdict, *sentences])
    return report.model_copy(update={"judge": dict(judge), "verdict": verdict})


def preference_sentence(found: Preference) -> str:
    """Who prefers whose answers, how surely, in one sentence."""
    rate = found.win_rate
    who = f"The judge {found.voters[0]}" if found.by == "judge" else _people(len(found.voters))
    ours, theirs = role_text(found.a), role_text(found.b)
    doubt = f" ({percent(rate.low)} to {percent(rate.high)})" if rate.low is not None else ""
    level = (
        f"{_begun(ours)} wins {percent(rate.value)} of the pairs against {theirs}{doubt}, ties "
        f"counted half"
    )
    verdict = found.comparison.verdict
    if verdict in ("better", "worse"):
        return f"{who} prefers the answers of {ours if verdict == 'better' else theirs}. {level}."
    return f"{who} shows no sure preference. {level}."


def _begun(name: str) -> str:
    """A row's name where a sentence begins; names of models stay as they are."""
    return f"The {name[4:]}" if name.startswith("the ") else name


def _people(count: int) -> str:
    return "One person" if count == 1 else f"A group of {count} people"


def row(found: Preference) -> list[str]:
    """One line of the table, cells as plain text."""
    counts, num_voters = found.counts, max(1, len(found.voters))
    ties = sum(counts[kind] for kind in TIES)
    won = counts["win"]
    lost = counts["loss"]
    asked = sum(counts[kind] for kind in ("win", "loss", *TIES)) - counts["same_text"]
    contrary = counts["inconsistent"]
    place = found.first_place
    verdict = {"better": f"{found.a} preferred", "worse": f"{found.b} preferred"}
    return [
        f"{found.a} against {found.b}",
        str(won) + (f" + {counts['no_answer']} unanswered" if counts["no_answer"] else ""),
        str(ties) + (f" ({counts['unreadable']} unreadable)" if counts["unreadable"] else ""),
        str(lost),
        shares(found.win_rate),
        shares(found.lc_win_rate),
        verdict.get(found.comparison.verdict, "open"),
        p_value(found.comparison.p),
        percent(contrary / asked, digits=0) if asked and num_voters and found.by == "judge" else "",
        percent(place.value, digits=0) if place.value is not None else EN_DASH,
    ]


def judge_table(judge: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a console: as much of the table as there is room for."""
    rows = [row(one)[:7] for one in preferences_of(judge)]
    return [heading.upper() for heading in HEADINGS[:7]], rows


def shares(found: Estimate) -> str:
    """A share with its interval in percent: `43.0 % [38.1, 48.0]`."""
    if found.value is None:
        return EN_DASH
    if found.low is None or found.high is None:
        return percent(found.value)
    return f"{percent(found.value)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def lines(found: Preference) -> list[str]:
    """What else is to be known: agreement with others, and warnings."""
    told = [
        f"with {whom}: the same choice in {shares(values['agreement'])} of "
        f"{values['agreement'].n:,} pairs, kappa {_kappa(values['kappa'])}"
        for whom, values in found.agreement.items()
    ]
    return [*told, *(f"warning: {warning}" for warning in found.warnings)]


def _kappa(found: Estimate) -> str:
    if found.value is None:
        return f"not given ({found.note})"
    ends = "" if found.low is None else f" [{number(found.low)}, {number(found.high)}]"
    return f"{number(found.value)}{ends}"


def judge_lines(judge: Mapping[str, Any]) -> list[str]:
    """All further facts on a judge, each preference's own; what is said of all of them once."""
    found = preferences_of(judge)
    told = dict.fromkeys(
        f"{one.a} against {one.b}, {line}" if line not in _shared(found) else line
        for one in found
        for line in lines(one)
    )
    told |= dict.fromkeys(f"warning: {w}" for w in judge.get("warnings", ()) if not found)
    return [*told, *_score_lines(judge)]


def _score_lines(judge: Mapping[str, Any]) -> list[str]:
    """What scores are worth: how often the right one of two answers has the higher one."""
    told = []
    for role, values in judge.get("score_agreement", {}).items():
        agreed, kappa = (Estimate.model_validate(values[name]) for name in ("agreement", "kappa"))
        told.append(
            f"scores beside those of {role}: the right answer has the higher one in "
            f"{shares(agreed)} of {agreed.n:,} pairs in which exactly one is right, kappa "
            f"{_kappa(kappa)}"
        )
        least = kappa.value if kappa.low is None else kappa.low
        if least is not None and least <= 0:
            told.append(
                f"warning: scores beside those of {role} are not shown to tell right from wrong "
                f"better than chance"
            )
    return told


def _shared(found: Sequence[Preference]) -> set[str]:
    return set.intersection(*(set(lines(one)) for one in found)) if len(found) > 1 else set()


def score_rows(judge: Mapping[str, Any]) -> list[list[str]]:
    """Mean scores: model, score of 5 with interval, the student's difference with its p."""
    versus = {c.b: c for c in map(Comparison.model_validate, judge.get("comparisons", ()))}
    rows = []
    for role, value in judge.get("scores", {}).items():
        score, against = Estimate.model_validate(value), versus.get(role)
        ends = "" if score.low is None else f" [{score.low:.2f}, {score.high:.2f}]"
        said = ""
        if against is not None and against.difference is not None:
            said = f"{number(against.difference, sign=True)}, p {p_value(against.p)}"
        rows.append([role, f"{score.value:.2f}{ends}", said, str(score.n_error)])
    return rows


SCORE_HEADINGS = ("answers of", "score of 5", "student's difference", "no score")


def signature_of(judge: Mapping[str, Any]) -> str:
    """How the judge was asked."""
    for one in preferences_of(judge):
        return one.win_rate.signature
    for score in judge.get("scores", {}).values():
        return Estimate.model_validate(score).signature
    return ""


def markdown_section(report: Report) -> str:
    """The judge's part of the Markdown report; nothing where none was asked."""
    judge = report.judge
    if not judge:
        return ""
    parts = ["## What the judge prefers"]
    if judge.get("preferences"):
        rows = [[marked(cell) for cell in row(one)] for one in preferences_of(judge)]
        parts.append(markdown_table(HEADINGS, rows))
    if judge.get("scores"):
        rows = [[marked(cell) for cell in cells] for cells in score_rows(judge)]
        parts.append(markdown_table(SCORE_HEADINGS, rows))
    told = judge_lines(judge)
    if told:
        parts.append("\n".join(f"- {marked(line)}" for line in told))
    parts.append(f"{CAPTION} Judge: {marked(signature_of(judge))}.")
    return "\n\n".join(parts)
