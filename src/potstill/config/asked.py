"""Config sections on how much is asked: accepted rows that are wanted, and new prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from potstill.config.section import Section

if TYPE_CHECKING:
    from potstill.config.sections import DistillConfig

OPEN_TASKS = ("summarization", "conversation", "translation")
"""Tasks whose right answers differ in their words."""

CANDIDATES_A_ROW = 4


class RowsConfig(Section):
    num_accepted: int | None = Field(None, ge=1)
    """Training rows that are wanted. Prompts are asked, and asked again, until so many answers
    pass the checks; by default every prompt is asked once."""

    max_candidates: int | None = Field(None, ge=1)
    """For `num_accepted`: most answers that are asked for. Four for each wanted row by default."""

    @property
    def most_candidates(self) -> int:
        """How many training answers are asked for at most, where rows are counted."""
        return self.max_candidates or CANDIDATES_A_ROW * (self.num_accepted or 0)


class DataGenerationConfig(Section):
    num_prompts: int | None = Field(None, ge=1)
    """New prompts that are wanted; as many as there are real training prompts by default."""

    num_seeds: int = Field(4, ge=1, le=32)
    """Real training prompts that the teacher is shown each time, as examples of the style."""

    num_each: int = Field(5, ge=1, le=50)
    """New prompts that the teacher is asked for each time."""

    max_requests: int | None = Field(None, ge=1)
    """How often the teacher is asked at most; three times as often as would do if every prompt
    it writes were of use, by default."""

    instruction: str = ""
    """What the new prompts should be like, in your own words; the teacher reads it."""

    temperature: float = Field(1.0, ge=0, le=2)
    """Temperature the teacher writes prompts at."""

    max_new_tokens: int = Field(2048, ge=16)
    """Longest reply with new prompts, in teacher tokens. What is whole in a cut one is used."""


def asked_problems(config: DistillConfig) -> list[str]:
    """What cannot be meant together about how much is asked."""
    generation = config.generation
    problems: list[str] = []
    if generation.reasoning == "both" and config.task in OPEN_TASKS:
        problems.append(
            f"generation.reasoning: both is not for task: {config.task}; it is for nli, qa, math "
            "and classification"
        )
    if generation.num_accepted is None:
        if generation.max_candidates is not None:
            problems.append("generation.max_candidates is the bound of generation.num_accepted")
    else:
        if generation.most_candidates < generation.num_accepted:
            problems.append(
                f"generation.max_candidates = {generation.max_candidates} cannot give "
                f"generation.num_accepted = {generation.num_accepted} rows"
            )
        given = {"num_responses": 1, "choose": "all"}
        problems += [
            f"generation.num_accepted asks as often as it must and keeps all that passes; leave "
            f"generation.{name} out"
            for name, only in given.items()
            if getattr(generation, name) != only
        ]
    if config.data.logged_answers == "reuse":
        asks = {
            "generation.num_accepted": generation.num_accepted,
            "data_generation": config.data_generation,
        }
        problems += [
            f"{name} asks a teacher, and with data.logged_answers: reuse none is asked; leave it "
            f"out"
            for name, value in asks.items()
            if value is not None
        ]
    return problems
