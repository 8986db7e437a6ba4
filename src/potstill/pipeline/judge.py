"""Stage judge: a model says whose answers are better, and every reply of it is kept.

Judges are asked like teachers, through a ledger of their own: the same judgment is never paid for
twice, whether a run was stopped, a row was added, or two models are compared the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.config import GenerationConfig, JudgeConfig
from potstill.errors import TeacherError
from potstill.examine.ballots import SCORE, Ballot, Pair, Preference, pairs_of
from potstill.examine.compare import compare
from potstill.examine.families import family_of, family_warnings
from potstill.examine.judge import (
    answer_records,
    pair_records,
    prompt_version,
    read_ballots,
    read_score,
    read_verdict,
)
from potstill.examine.metrics import MeanMetric, estimate
from potstill.examine.numbers import percent
from potstill.examine.preference import preference, scores_agreement
from potstill.models.catalog import find_model
from potstill.models.chat import open_chat_model
from potstill.pipeline.context import Context, prepared, wait, weights_key
from potstill.pipeline.teachers import screen
from potstill.protocols import ChatModel
from potstill.rundir import read_jsonl, write_jsonl
from potstill.tasks import get_task
from potstill.teach.generate import generate
from potstill.teach.ledger import Ledger
from potstill.types import Comparison, Estimate, Record, Response, Sample

STUDENT = "distilled"
FIRST_REPLIES = 16
"""Replies that are looked at first: where none can be read, no more are asked for."""

MOST_FAILED = 0.05
"""Share of replies that may not come before the stage fails; those that came are kept."""


def judge(ctx: Context, roles: Sequence[str]) -> None:
    """Lets the judge of the config compare the distilled student's answers with other rows'.

    Raises:
        TeacherError: If the judge's first replies cannot be read, or too many do not come.
    """
    settings, run = ctx.config.evaluate.judge, ctx.run
    if settings is None:
        return
    wanted = settings.against or ("teacher", "untouched")
    others = [role for role in wanted if role in roles]
    place = find_model(settings.place, workspace=ctx.workspace)
    inputs = (
        settings,
        weights_key(place.source),
        [prompt_version(how, settings.criteria, settings.show_reference) for how in settings.how],
        ctx.config.evaluate.seed,
        ctx.config.data.privacy,
        others,
        *(run.samples(role) for role in (STUDENT, *others)),
    )

    def work() -> dict[str, Any]:
        bench = Bench(
            settings,
            folder=run.judgments,
            workspace=ctx.workspace,
            screened=lambda model: screen(ctx, model, settings),
            families={name: family_of(names) for name, names in _names(ctx).items()},
            on_progress=ctx.progress("judge"),
            seed=ctx.config.evaluate.seed,
        )
        samples = {r: read_jsonl(run.samples(r), Sample) for r in (STUDENT, *others)}
        found = wait(bench.judge(samples))
        for (a, b), ballots in bench.ballots.items():
            write_jsonl(run.ballots(f"{a}-{b}"), ballots)
        return {**found, "text": _text(found)}

    ctx.stage("judge", inputs, work)


def _names(ctx: Context) -> dict[str, list[str | None]]:
    """Role in a sentence -> names that may tell its family."""
    student = ctx.config.student.place
    known = find_model(student, workspace=ctx.workspace)
    named: dict[str, list[str | None]] = {"the student": [known.name, student, known.source]}
    for teacher in ctx.config.teachers:
        ref = find_model(teacher.place, workspace=ctx.workspace)
        role = "the teacher" if len(ctx.config.teachers) == 1 else f"the teacher {teacher.place}"
        named[role] = [teacher.model, ref.model, ref.name, ref.source]
    return named


def _text(found: Mapping[str, Any]) -> str:
    parts = []
    for one in found["preferences"]:
        share = one["win_rate"]["value"]
        parts.append(f"{one['a']} preferred to {one['b']} in {percent(share)}")
    for role, score in found["scores"].items():
        parts.append(f"{role} {score['value']:.2f} of 5")
    return ", ".join(parts) or "nothing to judge"


@dataclass
class Bench:
    """One judge on answers of several models."""

    config: JudgeConfig
    folder: Path
    """The ledger of its replies."""

    workspace: Mapping[str, Any] | None = None
    screened: Callable[[ChatModel], ChatModel] = lambda model: model
    families: Mapping[str, str | None] = field(default_factory=dict)
    """Role in a sentence -> family of a model whose answers are judged."""

    on_progress: Callable[..., None] | None = None
    seed: int = 0
    ballots: dict[tuple[str, str], list[Ballot]] = field(default_factory=dict)
    """What was said about each two models, once it was."""

    cost: float | None = None

    async def judge(self, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """The first model against each of the others, and all of them by themselves, as asked.

        Returns:
            `name`, `family`, `preferences`, `scores`, `comparisons`, `score_agreement`,
            `cost`: JSON values.
        """
        config = self.config
        model = self.screened(open_chat_model(config, workspace=self.workspace))
        try:
            await prepared(model, self._tell)
            family = self._family(model)
            warnings = family_warnings(family, model.name, self.families)
            first, *others = samples
            preferences = []
            if "pairwise" in config.how:
                for other in others:
                    pairs = pairs_of(samples[first], samples[other], config.num_rows)
                    found = await self._compare(model, first, other, pairs, family, warnings)
                    preferences.append(found)
            scores, comparisons, agreed = {}, [], {}
            if "rubric" in config.how:
                scores, comparisons, agreed = await self._score(model, samples)
        finally:
            await model.close()
        return {
            "name": model.name,
            "family": family or "",
            "warnings": warnings,
            "preferences": [one.model_dump(mode="json") for one in preferences],
            "scores": {role: one.model_dump(mode="json") for role, one in scores.items()},
            "comparisons": [one.model_dump(mode="json") for one in comparisons],
            "score_agreement": {
                role: {name: one.model_dump(mode="json") for name, one in found.items()}
                for role, found in agreed.items()
            },
            "cost": self.cost,
        }

    def _tell(self, done: int, total: int | None = None, text: str = "") -> None:
        if self.on_progress:
            self.on_progress(done, total, text)

    def _family(self, model: ChatModel) -> str | None:
        ref = find_model(self.config.place, workspace=self.workspace)
        return family_of([self.config.model, ref.model, ref.name, model.name, ref.source])

    def _signature(self, how: str, model: ChatModel) -> str:
        config = self.config
        version = prompt_version(how, config.criteria, config.show_reference)
        sees = ", sees the known answer" if config.show_reference else ""
        orders = ", both orders, two choices that differ are a tie" if how == "pairwise" else ""
        return f"{how} by {model.name}{orders}{sees}, temperature 0, prompt {version}"

    async def _compare(
        self,
        model: ChatModel,
        a: str,
        b: str,
        pairs: Sequence[Pair],
        family: str | None,
        warnings: Sequence[str],
    ) -> Preference:
        config = self.config
        asked = pair_records(pairs, criteria=config.criteria, show_reference=config.show_reference)
        replies = await self._ask(model, [record for *_, record in asked], f"pairwise {a} {b}")
        ballots = self.ballots[a, b] = read_ballots(asked, replies, model.name)
        if ballots and all(ballot.choice is None for ballot in ballots):
            raise TeacherError(
                f"the judge {model.name} gave no verdict in {len(ballots):,} replies "
                f"({ballots[0].error}); take another judge, or a larger max_new_tokens"
            )
        return preference(
            a,
            b,
            pairs,
            ballots or [_nobody(model.name)],
            by="judge",
            signature=self._signature("pairwise", model),
            seed=self.seed,
            family=family or "",
            warnings=warnings,
        )

    async def _score(
        self, model: ChatModel, samples: Mapping[str, Sequence[Sample]]
    ) -> tuple[dict[str, Estimate], list[Comparison], dict[str, dict[str, Estimate]]]:
        """Mean score of every model's answers, the first one's minus each other's, and whether
        scores of these two agree with the known answers."""
        config, signature = self.config, self._signature("rubric", model)
        metric = MeanMetric(SCORE, lambda s: s.correct, signature, unit="of 5")
        scored: dict[str, list[Sample]] = {}
        told: dict[str, dict[tuple[str, int], float | None]] = {}
        for role, all_of_them in samples.items():
            chosen = [pair.a for pair in pairs_of(all_of_them, all_of_them, config.num_rows)]
            asked = answer_records(
                chosen, criteria=config.criteria, show_reference=config.show_reference
            )
            replies = await self._ask(model, [record for _, record in asked], f"rubric {role}")
            said = told[role] = {
                (sample.record_id, sample.turn): read_score(reply.text)
                for (sample, _), reply in zip(asked, replies, strict=True)
            }
            scored[role] = [_marked(sample, said) for sample in chosen]
            if not any(sample.correct for sample in scored[role]):
                raise TeacherError(
                    f"the judge {model.name} gave no score in {len(asked):,} replies on {role}; "
                    f"take another judge, or a larger max_new_tokens"
                )
        first, *others = scored
        found = {r: estimate(metric, of_role, seed=self.seed) for r, of_role in scored.items()}
        read = {r: [s for s in of_role if s.correct is not None] for r, of_role in scored.items()}
        agreed = {}
        for r in others:
            pairs = pairs_of(samples[first], samples[r])
            agreed[r] = scores_agreement(pairs, told[first], told[r], seed=self.seed)
        comparisons = [
            compare(first, r, metric, read[first], read[r], margin=None, seed=self.seed)
            for r in others
        ]
        return found, comparisons, {r: values for r, values in agreed.items() if values}

    async def _ask(
        self, model: ChatModel, questions: Sequence[Record], part: str
    ) -> list[Response]:
        """The reply to each question, from the ledger where it has one."""
        if not questions:
            return []
        if len(questions) > FIRST_REPLIES:
            first = await self._asked(model, questions[:FIRST_REPLIES], f"{part}, first")
            is_read = read_score if part.startswith("rubric") else read_verdict
            if not any(is_read(reply.text) for reply in first):
                raise TeacherError(
                    f"the first {len(first)} replies of the judge {model.name} say nothing that "
                    f"can be read, so the other {len(questions) - len(first):,} questions were not "
                    f"asked; the last one: {_told(first[-1])}. Take another judge, or a larger "
                    f"max_new_tokens (now {self.config.max_new_tokens})"
                )
        replies = await self._asked(model, questions, part)
        num_failed = sum(reply.finish_reason == "error" for reply in replies)
        if num_failed > MOST_FAILED * len(replies):
            failed = next(reply for reply in replies if reply.finish_reason == "error")
            raise TeacherError(
                f"{num_failed:,} of {len(replies):,} verdicts of the judge {model.name} did not "
                f"come ({failed.error}); the others are kept in {self.folder}, and the same "
                f"command asks for the rest"
            )
        return replies

    async def _asked(
        self, model: ChatModel, questions: Sequence[Record], part: str
    ) -> list[Response]:
        config = self.config
        counts = await generate(
            model,
            questions,
            self.folder,
            task=get_task("conversation"),  # a question is a conversation of one turn
            config=GenerationConfig(
                temperature=0.0,
                max_new_tokens=config.max_new_tokens,
                max_cost=config.max_cost,
                pilot=0,
                min_success_ratio=0.0,
            ),
            part=part,
            on_progress=self._tell,
        )
        if counts.cost is not None:
            self.cost = (self.cost or 0.0) + counts.cost
        with Ledger(self.folder) as ledger:
            return [said[0] for _, said in ledger.with_records(part, questions)]


def _told(reply: Response) -> str:
    return reply.error or repr(reply.text[-120:])


def _nobody(name: str) -> Ballot:
    """Stands for a judge who was asked nothing, because no two answers differ."""
    return Ballot(record_id="", voter=name, first="a", choice="tie")


def _marked(sample: Sample, said: Mapping[tuple[str, int], float | None]) -> Sample:
    """The sample with the judge's score as `correct`: 1 without an answer, none unread."""
    key = (sample.record_id, sample.turn)
    score = said.get(key) if key in said else 1.0
    error = "no score" if score is None else ""
    return sample.model_copy(update={"correct": score, "error": error, "prediction": ""})
