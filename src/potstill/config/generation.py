"""Config section of stage 1: what the teacher is asked, and how fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from potstill.config.asked import RowsConfig


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

    teachers: Literal["route", "fallback", "vote"] = "route"
    """Of several teachers: each prompt goes to the first one whose rule (`when`) holds; or to the
    first one, and to the next where that fails; or to all, and an answer counts that
    `min_agreement` of them give."""

    fallback_checks: tuple[Literal["finished", "not_refusal", "task"], ...] = (
        "finished",
        "not_refusal",
    )
    """For `teachers: fallback`: checks whose failure hands a prompt to the next teacher, as no
    answer at all always does."""

    min_agreement: int = Field(2, ge=2)
    """For `teachers: vote`: how many teachers must give the same answer; else all of them are
    rejected, as `disagrees`."""

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
    """Log-probabilities per answer token that an endpoint or engine is asked for. A loss on
    probabilities raises it to `loss.targets.k` for an endpoint."""

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
