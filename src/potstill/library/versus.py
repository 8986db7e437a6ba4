"""Any two models, or rows of runs, on the same test records: by metrics, by a judge, by people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import DistillConfig, JudgeConfig, PrivacyConfig, load_config
from potstill.data.load import load_dataset
from potstill.errors import ConfigError, DataError
from potstill.examine.answering import collect_samples
from potstill.examine.ballots import Ballot, Pair, Preference, pairs_of
from potstill.examine.blind import read_votes
from potstill.examine.compare import compare_all, join, regressions_and_wins
from potstill.examine.families import family_of
from potstill.examine.metrics import estimate
from potstill.examine.numbers import number
from potstill.examine.preference import preference, with_people
from potstill.examine.report_judge import preference_sentence, preferences_of
from potstill.examine.report_verdict import metric_text
from potstill.examine.run import named_metrics
from potstill.library.inputs import opened_model, screen_of, wait
from potstill.library.versus_report import Versus
from potstill.models.catalog import find_model
from potstill.models.private import PrivateModel
from potstill.pipeline.context import weights_key
from potstill.pipeline.judge import Bench
from potstill.protocols import ChatModel, Task
from potstill.rundir import RunDir, read_jsonl
from potstill.tasks import get_task
from potstill.types import Comparison, Estimate, Evaluation, Record, Sample, Sampling

STUDENT = "distilled"
_NOT_OF_BOTH = {"by_class": {}, "by_slice": {}, "samples": ""}
"""What a row of a run says of its own answers, and not of those that two have in common."""


@dataclass(frozen=True)
class Side:
    """One of the two, with its answers."""

    label: str
    samples: list[Sample]
    names: tuple[str | None, ...]
    """What may tell its family."""

    about: Evaluation
    """What it is, and how it answered."""


@dataclass(frozen=True)
class TestSet:
    """What both are asked, where they have not answered it yet."""

    task: Task
    records: list[Record]
    sampling: Sampling
    group_by: str | None
    privacy: PrivacyConfig


@dataclass
class Arena:
    """Where two models meet: the test set, the folder of their answers, who is told."""

    folder: Path
    runs: Path = Path("runs")
    test: Path | None = None
    """File that both are asked; by default the test set of a run among them."""

    task: str | None = None
    max_new_tokens: int = 512
    batch_size: int = 32
    workspace: Mapping[str, Any] | None = None
    on_progress: Callable[[str, int, int | None, str], None] | None = None
    """Told (stage, done, total, text)."""

    def sides(self, a: str, b: str) -> tuple[Side, Side, TestSet]:
        """Both with their answers to the same prompts; who has not answered is asked.

        A run stands for its distilled student, `RUN:ROW` for another row of its report.

        Raises:
            ConfigError: If there is no test set or no such model, run or row.
            DataError: If the two were asked different things.
        """
        rows = [self.row(place) for place in (a, b)]
        test = self._test([run for run, _ in filter(None, rows)])
        labels = _labels(a, b)
        found = [
            self._asked(label, place, test) if row is None or self.test else self._kept(label, *row)
            for label, place, row in zip(labels, (a, b), rows, strict=True)
        ]
        one, other = join(found[0].samples, found[1].samples)
        for ours, theirs in zip(one, other, strict=True):
            if ours.prompt != theirs.prompt:
                raise DataError(
                    f"record {ours.record_id} is another prompt in {b} than in {a}, so their "
                    f"answers cannot be compared; give a file that both are asked, --test FILE"
                )
        return found[0], found[1], test

    def row(self, place: str) -> tuple[RunDir, str] | None:
        """The run and the row of its report that a place names; None for a model."""
        names = [(place, STUDENT)]
        names += [(place[:i], place[i + 1 :]) for i, c in enumerate(place) if c == ":"]
        for name, role in names:
            for path in (Path(name), self.runs / name):
                if name and RunDir(path).config.exists():
                    return RunDir(path), role
        return None

    def _test(self, runs: Sequence[RunDir]) -> TestSet:
        configs = [load_config(run.config) for run in runs]
        tasks = {self.task} if self.task else {config.task for config in configs}
        if len(tasks) != 1:
            raise ConfigError(
                f"the two runs have different tasks ({', '.join(sorted(tasks))})"
                if tasks
                else "say what the test is: --task NAME"
            )
        task = get_task(str(tasks.pop()))
        config = configs[0] if configs else None
        privacy = config.data.privacy if config else PrivacyConfig()
        sampling = _sampling(config) if config else Sampling(max_new_tokens=self.max_new_tokens)
        grouped = config is not None and config.data.split_by == "group"
        group_by = config.data.group_by if config and grouped else None
        if self.test is not None:
            columns = config.data.columns if config else None
            records = load_dataset(self.test, columns=columns, task=task.name)
        elif runs:
            records = read_jsonl(runs[0].test, Record)
        else:
            raise ConfigError("neither of the two is a run: give a test set, --test FILE")
        return TestSet(task, records, sampling, group_by, privacy)

    def _kept(self, label: str, run: RunDir, role: str) -> Side:
        """Answers that a run has kept."""
        if not run.samples(role).exists() or not run.evaluation(role).exists():
            files = [path.read_text(encoding="utf-8") for path in run.evaluations()]
            there = [Evaluation.model_validate_json(text).role for text in files]
            raise ConfigError(
                f"{run.path} has no answers of a row {role!r}; there are: "
                f"{', '.join(there) or 'none yet, run potstill evaluate first'}"
            )
        about = Evaluation.model_validate_json(run.evaluation(role).read_text(encoding="utf-8"))
        config = load_config(run.config)
        student = [about.id, config.student.place]
        names = [about.id] if role == "teacher" else student
        samples = read_jsonl(run.samples(role), Sample)
        return Side(label, samples, tuple(names), about)

    def _asked(self, label: str, place: str, test: TestSet) -> Side:
        row = self.row(place)
        if row is not None:
            if row[1] != STUDENT:
                raise ConfigError(
                    f"{place}: with --test FILE only a run's distilled student is asked anew; "
                    f"name the model of that row itself"
                )
            place = str(row[0].model)
        ref = find_model(place, workspace=self.workspace)

        async def ask() -> tuple[list[Sample], Evaluation]:
            opening = opened_model(
                place, self.batch_size, self.workspace, None, test.privacy, when_asked=True
            )
            async with opening as model:
                samples = await collect_samples(
                    model,
                    test.records,
                    test.task,
                    sampling=test.sampling,
                    out_samples=RunDir(self.folder).samples(label),
                    fingerprint=str([ref.kind, weights_key(ref.source), ref.model]),
                    group_by=test.group_by,
                    on_progress=lambda done, total: self._tell(f"ask {label}", done, total),
                )
                return samples, Evaluation(
                    role=label,
                    id=ref.model or ref.name,
                    format=ref.kind,
                    num_parameters=getattr(model, "num_parameters", None),
                    decoding=test.sampling.model_dump(mode="json"),
                )

        RunDir(self.folder).reports.mkdir(parents=True, exist_ok=True)
        names = (ref.model, ref.name, ref.source)
        samples, about = wait(ask())
        return Side(label, samples, names, about)

    def _tell(self, stage: str, done: int, total: int | None = None, text: str = "") -> None:
        if self.on_progress:
            self.on_progress(stage, done, total, text)


def versus(
    arena: Arena,
    a: str,
    b: str,
    *,
    judge: JudgeConfig | None = None,
    votes: Sequence[Path] = (),
    margin: float = 0.02,
    seed: int = 0,
) -> Versus:
    """Compares two models in every way that was asked for.

    Raises:
        ConfigError, DataError: As `Arena.sides`; a file of votes that does not fit.
        TeacherError: If a model or the judge gives no answers.
    """
    one, other, test = arena.sides(a, b)
    both = join(one.samples, other.samples)
    samples = dict(zip((one.label, other.label), both, strict=True))
    metrics, values = _measured(test.task, samples, seed)
    comparisons = compare_all(
        [(one.label, other.label)], metrics, samples, margin=margin, seed=seed
    )
    only_b, only_a, num_only_b, num_only_a = regressions_and_wins(
        samples, student=one.label, others=[other.label]
    )
    pairs = pairs_of(*both)
    ballots, num_stale = read_votes(votes, pairs) if votes else ([], 0)
    judged = _judged(arena, one, other, judge, test, seed) if judge else {}
    people = _voted(one, other, pairs, ballots, seed) if ballots else {}
    if judged and ballots:
        judged = _with_people(judged, pairs, ballots, seed)
    return Versus(
        a=one.label,
        b=other.label,
        task=test.task.name,
        n=len(both[0]),
        models={
            side.label: side.about.model_copy(
                update={"role": side.label, "metrics": values[side.label]} | _NOT_OF_BOTH
            )
            for side in (one, other)
        },
        metrics=values,
        comparisons=comparisons,
        num_only_a=num_only_a,
        num_only_b=num_only_b,
        only_a=tuple(only_a),
        only_b=tuple(only_b),
        judge={name: value for name, value in judged.items() if name != "ballots"},
        people=people,
        notes=tuple(_notes(one, other, num_stale)),
        verdict=(
            *_verdict(comparisons, values),
            *(preference_sentence(p) for p in (*preferences_of(judged), *preferences_of(people))),
        ),
    )


def _measured(
    task: Task, samples: Mapping[str, Sequence[Sample]], seed: int
) -> tuple[list[Any], dict[str, dict[str, Estimate]]]:
    """The metrics that say something about both, and their values."""
    metrics, values = [], {label: {} for label in samples}
    for metric in named_metrics(task, None):
        found = {label: estimate(metric, rows, seed=seed) for label, rows in samples.items()}
        if all(one.value is not None for one in found.values()):
            metrics.append(metric)
            for label, one in found.items():
                values[label][metric.name] = one
    return metrics, values


def _judged(
    arena: Arena, one: Side, other: Side, judge: JudgeConfig, test: TestSet, seed: int
) -> dict[str, Any]:
    def screened(model: ChatModel) -> ChatModel:
        privacy = screen_of(model, test.privacy)
        return PrivateModel(model, privacy) if privacy.mode != "off" else model

    bench = Bench(
        judge,
        folder=RunDir(arena.folder).judgments,
        workspace=arena.workspace,
        screened=screened,
        families={side.label: family_of(side.names) for side in (one, other)},
        on_progress=lambda done, total=None, text="": arena._tell("judge", done, total, text),
        seed=seed,
    )
    found = wait(bench.judge({one.label: one.samples, other.label: other.samples}))
    return {**found, "ballots": bench.ballots.get((one.label, other.label), [])}


def _voted(
    one: Side, other: Side, pairs: Sequence[Pair], ballots: Sequence[Ballot], seed: int
) -> dict[str, Any]:
    signature = "votes of people on a blind page, in one order drawn for each pair"
    found = preference(
        one.label, other.label, pairs, ballots, by="people", signature=signature, seed=seed
    )
    return {"name": ", ".join(found.voters), "preferences": [found.model_dump(mode="json")]}


def _with_people(
    judged: dict[str, Any], pairs: Sequence[Pair], votes: Sequence[Ballot], seed: int
) -> dict[str, Any]:
    """The judge's preference with its agreement with the people's."""
    if not judged["preferences"]:
        return judged
    found = Preference.model_validate(judged["preferences"][0])
    found = with_people(found, pairs, judged["ballots"], votes, seed=seed)
    return {**judged, "preferences": [found.model_dump(mode="json")]}


def _notes(one: Side, other: Side, num_stale: int) -> list[str]:
    notes = []
    if one.about.decoding != other.about.decoding:
        notes.append(f"{one.label} and {other.label} answered with different sampling settings")
    num_unpaired = abs(len(one.samples) - len(other.samples))
    if num_unpaired:
        notes.append(f"{num_unpaired:,} answers of one have no counterpart and were left out")
    if num_stale:
        notes.append(f"{num_stale:,} votes are on answers that the two do not give any more")
    return notes


def _verdict(
    comparisons: Sequence[Comparison], values: Mapping[str, Mapping[str, Estimate]]
) -> list[str]:
    if not comparisons:
        return []
    found = comparisons[0]
    ours, theirs = (values[label][found.metric] for label in (found.a, found.b))
    said = {
        "better": f"{found.a} is better than {found.b}",
        "worse": f"{found.a} is worse than {found.b}",
        "non_inferior": f"{found.a} is as good as {found.b}, within the margin",
        "inconclusive": f"Which of {found.a} and {found.b} is better stays open",
    }[found.verdict]
    doubt = ""
    if found.low is not None and found.high is not None:
        ends = [number(end, ours.unit, sign=True) for end in (found.low, found.high)]
        doubt = f" ({ends[0]} to {ends[1]})"
    difference = number(found.difference, ours.unit, sign=True)
    return [
        f"{said}: {metric_text(found.metric)} {number(ours.value, ours.unit)} and "
        f"{number(theirs.value, theirs.unit)} on {found.n:,} answers, difference "
        f"{difference}{doubt}."
    ]


def _sampling(config: DistillConfig) -> Sampling:
    limit = config.evaluate.max_new_tokens or config.generation.max_new_tokens
    return Sampling(max_new_tokens=limit, stop=config.generation.stop)


def _labels(a: str, b: str) -> tuple[str, str]:
    """Short names of two places, which differ."""
    if a == b:
        raise ConfigError(f"{a} is compared with itself; name two that differ")

    def short(place: str) -> str:
        return place if "://" in place else place.rstrip("/").rpartition("/")[2]

    return (a, b) if short(a) == short(b) else (short(a), short(b))


def folder_of(a: str, b: str, runs: Path) -> Path:
    """Where the answers and judgments of two places are kept; the same for both orders."""
    names = sorted(_labels(a, b))
    safe = ["".join(c if c.isalnum() or c in "._-" else "-" for c in name) for name in names]
    return runs / "comparisons" / "--".join(safe)
