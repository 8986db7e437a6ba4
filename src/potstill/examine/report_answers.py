"""Answers of the models side by side in the HTML report, cut so that the page stays small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.examine.report_tables import mark, safe, table
from potstill.examine.report_verdict import role_text
from potstill.rundir import read_jsonl
from potstill.types import Report, Sample

MAX_ROWS = 1_000
ANSWER_CHARACTERS = (2_000, 1_000, 500, 250)
ROW_CHARACTERS = (240, 160, 100, 60)
"""How long a text may be, the longest first; taken is the first at which a part is small enough."""

CASES_BYTES = 300_000
"""How large the cases of one section may be; two sections have some."""

ROWS_BYTES = 900_000
START_CHARACTERS = 30
"""How long a beginning that all questions have in common is told once."""


def fitting(
    draw: Callable[[int], list[str]], lengths: Sequence[int], max_bytes: int
) -> tuple[list[str], int]:
    """Parts with the longest texts that fit, and the first of them where even short ones do not.

    Returns:
        Parts, and the length of their texts.
    """
    for length in lengths:
        parts = draw(length)
        sizes = [len(part.encode()) for part in parts]
        if sum(sizes) <= max_bytes:
            return parts, length
    kept, used = 0, 0
    while used + sizes[kept] <= max_bytes:
        used += sizes[kept]
        kept += 1
    return parts[:kept], length


def common_start(texts: Sequence[str]) -> str:
    """What all texts begin with, up to the end of a line or a word; empty where it is short.

    Questions often begin with one instruction, which would hide what is asked.
    """
    if len(set(texts)) < 2:
        return ""
    first, last = min(texts), max(texts)  # what these two have in common, all between them have
    same = zip(first, last, strict=False)
    start = first[: next((i for i, (a, b) in enumerate(same) if a != b), len(first))]
    line, word = start.rfind("\n") + 1, start.rfind(" ") + 1
    start = start[: line if line >= len(start) / 2 else word]
    return start if len(start) >= START_CHARACTERS else ""


def regressions_html(report: Report) -> str:
    """Where the student is wrong and another is right, the answers side by side."""
    if not report.num_regressions:
        return "<p>Nowhere in this test set.</p>"
    cases = _cases(report.regressions)
    shown = len(cases)
    count = _answers(report.num_regressions) + (
        f"; the first {shown} are here" if shown < report.num_regressions else ""
    )
    return f'<p class="small soft">{count}.{_told_once(report.regressions)}</p>' + "".join(cases)


def _answers(number: int) -> str:
    return f"{number:,} answer{'' if number == 1 else 's'}"


def wins_html(report: Report) -> str:
    """Where only the student is right."""
    if not report.num_wins:
        return ""
    cases = _cases(report.wins)
    shown = f", the first {len(cases)} of them here" if len(cases) < report.num_wins else ""
    return (
        f"<details><summary>{_answers(report.num_wins)}{shown}</summary>{''.join(cases)}</details>"
    )


def _cases(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    start = len(common_start([_question(case) for case in cases]))

    def draw(length: int) -> list[str]:
        return [_case(case, start, length) for case in cases]

    return fitting(draw, ANSWER_CHARACTERS, CASES_BYTES)[0]


def _told_once(cases: Sequence[Mapping[str, Any]]) -> str:
    return _start_text(common_start([_question(case) for case in cases]))


def _start_text(start: str) -> str:
    if not start:
        return ""
    told = safe(cut(start.strip(), ROW_CHARACTERS[0]))
    return f" All questions begin with: <bdi>{told}</bdi>"


def _question(case: Mapping[str, Any]) -> str:
    return next((m["content"] for m in reversed(case["prompt"]) if m["role"] == "user"), "")


def _case(case: Mapping[str, Any], start: int, length: int) -> str:
    answers = "".join(
        f"<div><h4>{safe(role_text(role))} "
        f"{mark('right', 'right') if role in case['right'] else mark('wrong', 'wrong')}"
        f"{' cut' if role in case['cut'] else ''}</h4>{_pre(text, length)}</div>"
        for role, text in case["answers"].items()
    )
    prompt = "".join(
        f'<div class="small soft">{safe(m["role"])}</div>{_pre(m["content"], length)}'
        for m in case["prompt"]
    )
    where = safe(case["record_id"]) + (f", turn {case['turn'] + 1}" if case["turn"] else "")
    return (
        f'<article class="case"><p><bdi>{_asked(_question(case), start, 160)}</bdi></p>'
        f'<p class="small"><span class="soft">right answer:</span> '
        f"<bdi>{safe(cut(case['reference'], 300))}</bdi></p>"
        f'<div class="answers">{answers}</div>'
        f"<details><summary>whole prompt ({where})</summary>{prompt}</details></article>"
    )


def _asked(question: str, start: int, length: int) -> str:
    dots = "\N{HORIZONTAL ELLIPSIS} " if start else ""
    return dots + safe(cut(question[start:].strip(), length))


def _pre(text: str, length: int) -> str:
    return f'<pre dir="auto">{safe(cut(text, length)) or "<i>nothing</i>"}</pre>'


def cut(text: str, length: int) -> str:
    """The beginning of a text, with dots where there is more."""
    return text if len(text) <= length else text[:length].rstrip() + " \N{HORIZONTAL ELLIPSIS}"


def all_answers_html(report: Report, samples_dir: Path, student: str) -> str:
    """What was asked and answered, row by row; texts are cut."""
    roles = [r for r in ("teacher", student, "untouched") if r in report.models]
    by_role = {
        role: {
            (s.record_id, s.turn): s
            for s in read_jsonl(samples_dir / Path(report.models[role].samples).name, Sample)
        }
        for role in roles
        if report.models[role].samples
    }
    if not by_role.get(student):
        return ""
    ours = list(by_role[student].items())
    questions = [s.prompt[-1].content if s.prompt else "" for _, s in ours]
    start = common_start(questions)

    def draw(length: int) -> list[str]:
        return [
            f"<tr><td><bdi>{_asked(question, len(start), length)}</bdi></td>"
            f"<td><bdi>{safe(cut(sample.references[0], length)) if sample.references else ''}"
            f"</bdi></td>{''.join(_answer_cell(by_role[r].get(key), length) for r in by_role)}</tr>"
            for (key, sample), question in zip(ours[:MAX_ROWS], questions, strict=False)
        ]

    rows, length = fitting(draw, ROW_CHARACTERS, ROWS_BYTES)
    headings = ["question", "right answer", *(safe(role) for role in by_role)]
    left_out = len(ours) - len(rows)
    more = f" {left_out:,} more rows are in the files." if left_out else ""
    caption = f"Texts of more than {length} characters are cut.{more}"
    content = f'<p class="small soft">{_start_text(start)}</p>' if start else ""
    content += table(headings, rows, caption=caption)
    return f"<details><summary>{len(rows):,} rows</summary>{content}</details>"


def _answer_cell(sample: Sample | None, length: int) -> str:
    if sample is None:
        return "<td></td>"
    verdict = ""
    if sample.correct is not None:
        verdict = mark("right", "right") if sample.correct >= 0.5 else mark("wrong", "wrong")
    text = sample.text or sample.error
    return f"<td>{verdict} <bdi>{safe(cut(text, length))}</bdi></td>"
