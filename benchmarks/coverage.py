"""Do intervals hold the truth, and do verdicts keep their word? python benchmarks/coverage.py

Test sets are drawn again and again from populations whose true value is known, and every
interval is made by the code that reports use. One core, about five minutes.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.examine.compare import compare, holm
from potstill.examine.metrics import accuracy, estimate, get_metric
from potstill.examine.overlap import Bleu, Chrf
from potstill.examine.resample import (
    NUM_RESAMPLES,
    Z,
    bca_interval,
    paired_error,
    percentile_interval,
    resampled_sums,
    wilson,
)
from potstill.types import Sample

ROOT = Path(__file__).resolve().parent.parent
SIZES = (500, 30)
COLUMNS_AT_ONCE = 400
CLASS_SHARES = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
TURNS = 5
POOL = 4_000

Draw = Callable[[np.random.Generator, int], np.ndarray]
Value = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A quantity, how test sets are drawn, and what is true of all that could be drawn."""

    name: str
    method: str
    draw: Draw
    """Generator and number of answers to rows of one test set."""

    value: Value
    truth: float


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def difference(value: Value) -> Value:
    """Of one model's columns and another's beside them."""

    def of(sums: np.ndarray) -> np.ndarray:
        half = sums.shape[-1] // 2
        return value(sums[..., :half]) - value(sums[..., half:])

    return of


def share(truth: float) -> Case:
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return (rng.random((n, 1)) < truth).astype(float)

    return Case(f"accuracy, truly {truth}", "wilson", draw, mean, truth)


def scores(name: str, num_zero: float, a: float, b: float) -> Case:
    """Scores in [0, 1]: a share of zeros, the others from a beta distribution."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        values = np.where(rng.random(n) < num_zero, 0.0, rng.beta(a, b, n))
        return np.stack([values, np.ones(n)], axis=1)

    return Case(name, "bca", draw, mean, (1 - num_zero) * a / (a + b))


def conversations(name: str) -> Case:
    """Answers of one conversation hang together: each has a share of right ones of its own."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        right = rng.binomial(TURNS, rng.beta(2.0, 0.7, n // TURNS))
        return np.stack([right, np.full(n // TURNS, TURNS)], axis=1).astype(float)

    return Case(name, "bca", draw, mean, 2.0 / 2.7)


def paired(truth_a: float, truth_b: float, discordant: float) -> Case:
    gap = truth_a - truth_b
    cells = [(discordant + gap) / 2, (discordant - gap) / 2, 1 - discordant]

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.multinomial(n, cells).astype(float)[None, :]

    name = f"difference of accuracies, {truth_a} and {truth_b}, {discordant:.0%} differ"
    return Case(name, "agresti-min", draw, mean, gap)


def classes(rng: np.random.Generator, n: int, skill: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rows of macro F1: true positive, false positive and false negative for each class."""
    right = rng.random(n) < skill[target]
    said = np.where(right, target, rng.integers(0, len(skill), n))
    rows = np.zeros((n, 3 * len(skill)))
    hit = said == target
    rows[np.flatnonzero(hit), 3 * target[hit]] = 1
    rows[np.flatnonzero(~hit), 3 * target[~hit] + 2] = 1
    rows[np.flatnonzero(~hit), 3 * said[~hit] + 1] = 1
    return rows


def macro_cases() -> list[Case]:
    value = get_metric("macro_f1").value
    strong, weak = np.array([0.9, 0.8, 0.8, 0.7, 0.6]), np.array([0.85, 0.8, 0.7, 0.6, 0.5])

    def one(rng: np.random.Generator, n: int) -> np.ndarray:
        return classes(rng, n, strong, rng.choice(5, n, p=CLASS_SHARES))

    def two(rng: np.random.Generator, n: int) -> np.ndarray:
        target = rng.choice(5, n, p=CLASS_SHARES)
        return np.hstack([classes(rng, n, skill, target) for skill in (strong, weak)])

    many = np.random.default_rng(99)
    return [
        Case("macro F1, 5 classes", "percentile", one, value,
             float(value(one(many, 2_000_000).sum(axis=0)))),
        Case("difference of macro F1", "percentile", two, difference(value),
             float(difference(value)(two(many, 2_000_000).sum(axis=0)))),
    ]  # fmt: skip


def sentences(rng: np.random.Generator, noise: float, references: list[str]) -> list[Sample]:
    """Answers that are references with words exchanged and dropped, some more and some less."""
    found = []
    for i, reference in enumerate(references):
        rate = rng.beta(1.0, 1.0 / noise)
        said = [
            word if rng.random() > rate else f"w{rng.zipf(1.3) % 3000}"
            for word in reference.split()
            if rng.random() > rate / 3
        ]
        found.append(answer(i, text=" ".join(said), references=(reference,)))
    return found


def corpus_cases() -> list[Case]:
    rng = np.random.default_rng(7)
    references = [
        " ".join(f"w{rank % 3000}" for rank in rng.zipf(1.3, rng.integers(6, 22)))
        for _ in range(POOL)
    ]
    better, worse = sentences(rng, 0.3, references), sentences(rng, 0.36, references)
    cases = []
    for metric in (Bleu(), Chrf()):
        rows = metric.rows(better)
        both = np.hstack([rows, metric.rows(worse)])
        for name, pool, value in (
            (f"corpus {metric.name}", rows, metric.value),
            (f"difference of corpus {metric.name}", both, difference(metric.value)),
        ):
            cases.append(
                Case(name, "percentile", _from(pool), value, float(value(pool.sum(0)[None, :])[0]))
            )
    return cases


def _from(pool: np.ndarray) -> Draw:
    return lambda rng, n: pool[rng.integers(0, len(pool), n)]


def all_cases() -> list[Case]:
    def two(rng: np.random.Generator, n: int) -> np.ndarray:
        hard = rng.beta(0.8, 1.6, n)
        ours, theirs = (np.clip(hard + rng.normal(m, 0.12, n), 0, 1) for m in (0.05, 0.03))
        ones = np.ones(n)
        return np.stack([ours, ones, theirs, ones], axis=1)

    def kept(rng: np.random.Generator, n: int) -> np.ndarray:
        cells = rng.choice(4, n, p=[0.73, 0.07, 0.12, 0.08])  # both, student, teacher, none
        ones = np.ones(n)
        return np.stack([cells <= 1, ones, (cells == 0) | (cells == 2), ones], axis=1).astype(float)

    many = np.random.default_rng(98)
    truth = float(difference(mean)(two(many, 4_000_000).sum(axis=0)))
    macro, corpus = macro_cases(), corpus_cases()
    return [
        share(0.8),
        share(0.97),
        scores("mean score, skewed", 0.0, 0.5, 2.0),
        scores("mean score, 70 % zeros", 0.7, 2.0, 2.0),
        scores("mean score, 95 % zeros", 0.95, 2.0, 2.0),
        conversations(f"accuracy, conversations of {TURNS} turns"),
        macro[0],
        *corpus[::2],
        paired(0.85, 0.80, 0.15),
        paired(0.97, 0.96, 0.03),
        Case("difference of mean scores", "percentile", two, difference(mean), truth),
        macro[1],
        *corpus[1::2],
        Case("retention, student / teacher", "percentile", kept,
             lambda s: mean(s[..., :2]) / mean(s[..., 2:]), 0.80 / 0.85),
    ]  # fmt: skip


def coverage(case: Case, n: int, num_draws: int, num_resamples: int, seed: int) -> dict:
    """How often the interval holds the truth, lies above it and lies below it."""
    rng = np.random.default_rng(seed)
    sets = [case.draw(rng, n) for _ in range(num_draws)]
    ends = []
    if case.method == "wilson":
        ends = [wilson(rows.sum(), n) for rows in sets]
    elif case.method == "agresti-min":
        for only_a, only_b, _ in (rows[0] for rows in sets):
            centre, error = paired_error(only_a, only_b, n)
            ends.append((centre - Z * error, centre + Z * error))
    else:
        width = sets[0].shape[1]
        step = max(1, COLUMNS_AT_ONCE // width)
        for start in range(0, num_draws, step):
            some = sets[start : start + step]
            sums = resampled_sums(np.hstack(some), seed=start, num_resamples=num_resamples)
            for i, rows in enumerate(some):
                values = case.value(sums[:, i * width : (i + 1) * width])
                if case.method == "bca":
                    if np.ptp(values) == 0:  # all right or all wrong
                        ends.append(wilson(values[0] * len(rows), len(rows)))
                        continue
                    ends.append(bca_interval(rows, case.value, values))
                else:
                    ends.append(percentile_interval(values))
    low, high = np.array(ends).T
    above, below = low > case.truth, high < case.truth
    return {
        "inside": float(1 - above.mean() - below.mean()),
        "above": float(above.mean()),
        "below": float(below.mean()),
    }


def answer(i: int, **facts: object) -> Sample:
    facts = {"text": "", "prediction": None, "references": (), "correct": None, **facts}
    return Sample.model_construct(record_id=str(i), **facts)


def marks(values: np.ndarray, said: np.ndarray, target: np.ndarray) -> list[Sample]:
    rows = zip(values.tolist(), said.tolist(), target.tolist(), strict=True)
    return [
        answer(i, correct=float(right), prediction=str(label), target=str(wanted))
        for i, (right, label, wanted) in enumerate(rows)
    ]


def same_model(n: int, num_draws: int, seed: int) -> Counter[str]:
    """Verdicts on two sets of sampled answers of one model, accuracy and macro F1 together."""
    rng = np.random.default_rng(seed)
    metrics = [accuracy, get_metric("macro_f1")]
    found: Counter[str] = Counter()
    for draw in range(num_draws):
        target = rng.choice(5, n, p=CLASS_SHARES)
        sure = rng.beta(3.0, 1.0, n)
        models = []
        for _ in range(2):
            said = np.where(rng.random(n) < sure, target, rng.integers(0, 5, n))
            models.append(marks(said == target, said, target))
        family = [
            compare("a", "b", metric, *models, margin=0.02, seed=draw, num_resamples=1_000)
            for metric in metrics
        ]
        verdicts = [one.verdict for one in holm(family, {m.name: m for m in metrics})]
        found[verdicts[0]] += 1
        found["any better"] += "better" in verdicts
    return found


def power(n: int, discordant: float, num_draws: int, seed: int) -> tuple[float, float, float]:
    """The effect that comparisons say they can show, the share in which it is shown when it is
    planted, and the share in which the planted effect lies in the interval."""
    rng = np.random.default_rng(seed)
    effect = stated(n, discordant, 0.0, rng)
    for _ in range(3):  # what is stated depends a little on the effect itself
        effect = stated(n, discordant, effect, rng)
    found = [pair(n, discordant, effect, rng) for _ in range(num_draws)]
    shown = float(np.mean([one.verdict == "better" for one in found]))
    return effect, shown, float(np.mean([one.low <= effect <= one.high for one in found]))


def stated(n: int, discordant: float, effect: float, rng: np.random.Generator) -> float:
    return float(np.mean([pair(n, discordant, effect, rng).detectable for _ in range(50)]))


def pair(n: int, discordant: float, effect: float, rng: np.random.Generator):
    cells = [(discordant + effect) / 2, (discordant - effect) / 2]
    kind = rng.choice(4, n, p=[*cells, 0.7 * (1 - discordant), 0.3 * (1 - discordant)])
    models = [marks(np.isin(kind, rights), kind, kind) for rights in ((0, 2), (1, 2))]
    return compare("a", "b", accuracy, *models, margin=0.02, seed=0)


def large(n: int) -> list[tuple[str, float, float, str]]:
    """Seconds for one number and one comparison on a large test set."""
    rng = np.random.default_rng(0)
    references = [f"w{i % 977} w{i % 613} w{i % 409} w{i % 211}" for i in range(n)]
    right = rng.random((2, n)) < 0.8
    models = [
        [
            answer(i, correct=float(ok), prediction=text if ok else "w1 w2", text=text if ok else
                   "w1 w2", references=(text,), target=str(i % 5), prompt=())
            for i, (text, ok) in enumerate(zip(references, row, strict=True))
        ]
        for row in right
    ]  # fmt: skip
    found = []
    target = rng.choice(5, n, p=CLASS_SHARES)
    labelled = [marks(row, np.where(row, target, (target + 1) % 5), target) for row in right]
    for name in ("accuracy", "macro_f1", "bleu", "rouge_l"):
        metric = get_metric(name)
        answered = labelled if name == "macro_f1" else models
        start = time.perf_counter()
        one = estimate(metric, answered[0], seed=0)
        middle = time.perf_counter()
        compare("a", "b", metric, *answered, margin=0.02, seed=0)
        end = time.perf_counter()
        found.append((name, middle - start, end - middle, one.method))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=NUM_RESAMPLES)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "coverage.md")
    options = parser.parse_args()
    started = time.monotonic()
    lines = []
    for case in all_cases():
        found = [coverage(case, n, options.draws, options.resamples, seed=n) for n in SIZES]
        lines.append(_row(case, found))
        print(lines[-1], f"{time.monotonic() - started:.0f} s", flush=True)
    verdicts = {n: same_model(n, options.draws // 2, seed=n) for n in (500, 100)}
    print(verdicts, flush=True)
    effects = {
        (n, discordant): power(n, discordant, options.draws, seed=n)
        for n, discordant in ((300, 0.2), (500, 0.1), (1000, 0.3))
    }
    print(effects, flush=True)
    times = large(options.large)
    text = page(options, lines, verdicts, effects, times, time.monotonic() - started)
    options.out.write_text(text, encoding="utf-8")


def _row(case: Case, found: list[dict]) -> str:
    cells = [case.name, case.method]
    for one in found:
        cells += [f"{one['inside']:.1%}", f"{one['above']:.1%} / {one['below']:.1%}"]
    return f"| {' | '.join(cells)} |"


def page(options, lines, verdicts, effects, times, seconds: float) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    heads = [f"n = {n} | misses above / below" for n in SIZES]
    rows = [
        f"| {n} | {_share(found, 'better')} | {_share(found, 'worse')} | "
        f"{_share(found, 'non_inferior')} | {_share(found, 'inconclusive')} | "
        f"{_share(found, 'any better')} |"
        for n, found in verdicts.items()
    ]
    shown = [
        f"| {n} | {discordant:.0%} | {effect:.3f} | {found:.1%} | {inside:.1%} |"
        for (n, discordant), (effect, found, inside) in effects.items()
    ]
    took = [f"| {name} | {one:.1f} | {two:.1f} | {how} |" for name, one, two, how in times]
    return "\n".join(
        [
            "# Do intervals hold the truth, and do verdicts keep their word?",
            "",
            f"{datetime.date.today()}, commit {commit}; `python benchmarks/coverage.py`, one core, "
            f"{seconds / 60:.0f} minutes beside other work; Python {platform.python_version()}, "
            f"numpy {np.__version__}.",
            f"{options.draws:,} test sets a row, {options.resamples:,} resamples an interval, "
            "nominal 95 %; from so many draws a share of 95 % is known to within "
            f"{1.96 * (0.95 * 0.05 / options.draws) ** 0.5:.1%}.",
            "",
            "## Coverage",
            "",
            f"| quantity | method | {' | '.join(heads)} |",
            "|" + "---|" * (2 + 2 * len(SIZES)),
            *lines,
            "",
            "A miss above: the whole interval lies above the truth. "
            f"With {SIZES[1]} answers, groups (six of them) and rare classes",
            "do not reach 95 %; reports warn below 50 answers or groups.",
            "",
            "## One model against itself",
            "",
            f"Two sets of sampled answers, {options.draws // 2:,} times; accuracy and macro F1, "
            "Holm-corrected; margin 0.02.",
            "",
            "| n | better | worse | non-inferior | open | better on either metric |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Planted effects",
            "",
            "The effect is the one that comparisons call detectable (80 % power), "
            f"{options.draws:,} times.",
            "",
            "| n | answers that differ | detectable | shown | effect inside the interval |",
            "|---|---|---|---|---|",
            *shown,
            "",
            f"## {options.large:,} answers",
            "",
            "| metric | value with interval, seconds | comparison, seconds | method |",
            "|---|---|---|---|",
            *took,
            "",
        ]
    )


def _share(found: Counter[str], verdict: str) -> str:
    verdicts = ("better", "worse", "non_inferior", "inconclusive")
    return f"{found[verdict] / sum(found[name] for name in verdicts):.1%}"


if __name__ == "__main__":
    sys.exit(main())
