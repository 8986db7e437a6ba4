"""Intervals hold the truth as often as they say, and verdicts keep their word.

Small and seeded; `benchmarks/coverage.py` does it at length.
"""

import math

import numpy as np
import pytest
from examine.fake_models import sample
from scipy.stats import binom

from potstill.examine.compare import compare, compare_all, holm
from potstill.examine.fidelity import agreement, likeness, retention
from potstill.examine.metrics import MeanMetric, accuracy, estimate, get_metric
from potstill.examine.resample import (
    MOST_DRAWS,
    Z,
    affordable,
    bca_interval,
    paired_error,
    percentile_interval,
    resampled_sums,
    wilson,
)
from potstill.types import Comparison


def mean(sums):
    return sums[..., 0] / sums[..., 1]


@pytest.mark.parametrize(("n", "truth"), [(500, 0.8), (500, 0.95), (30, 0.8)])
def test_wilsons_interval_holds_the_truth_in_93_to_97_of_100(n, truth):
    """Exactly, over every number of right answers."""
    inside = [k for k in range(n + 1) if wilson(k, n)[0] <= truth <= wilson(k, n)[1]]
    assert 0.93 <= sum(binom.pmf(inside, n, truth)) <= 0.97


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_intervals_hold_the_truth_in_93_to_97_of_100(method):
    """2,000 test sets of 500 skewed scores, 1,000 resamples."""
    rng, n, num_sets = np.random.default_rng(1), 500, 2_000
    hits = 0
    for start in range(0, num_sets, 250):
        sets = [np.stack([rng.beta(0.5, 2, n), np.ones(n)], axis=1) for _ in range(250)]
        sums = resampled_sums(np.hstack(sets), seed=start, num_resamples=1_000)
        for i, rows in enumerate(sets):
            values = mean(sums[:, 2 * i : 2 * i + 2])
            ends = bca_interval(rows, mean, values) if method == "bca" else percentile_interval(
                values
            )  # fmt: skip
            hits += ends[0] <= 0.2 <= ends[1]
    assert 0.93 <= hits / num_sets <= 0.97


@pytest.mark.parametrize(("a", "b"), [(0.10, 0.05), (0.02, 0.01), (0.15, 0.15)])
def test_the_interval_of_a_paired_difference_holds_the_truth(a, b):
    """2,000 pairs of models on 500 answers, of which a is right alone on some, b on others."""
    rng, n = np.random.default_rng(2), 500
    hits = 0
    for only_a, only_b, _ in rng.multinomial(n, [a, b, 1 - a - b], size=2_000):
        centre, error = paired_error(only_a, only_b, n)
        hits += abs(centre - (a - b)) <= Z * error
    assert 0.93 <= hits / 2_000 <= 0.975  # it is a little wide where few answers differ


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 100), (0, 0, 50), (7, 20, 400)])
def test_the_paired_interval_is_agresti_and_mins_formula(b, c, n):
    centre, error = paired_error(b, c, n)
    assert centre == pytest.approx((b - c) / (n + 2))
    assert error == pytest.approx(math.sqrt(b + c + 1 - (b - c) ** 2 / (n + 2)) / (n + 2))


def marks(values, **facts):
    return [sample(i, correct=float(v), **facts) for i, v in enumerate(values)]


def test_a_model_is_better_than_itself_at_most_5_times_in_100():
    rng, n, num_pairs = np.random.default_rng(3), 100, 120
    verdicts = []
    for _ in range(num_pairs):
        sure = rng.beta(2, 1, n)
        a, b = (marks(rng.random(n) < sure) for _ in range(2))
        verdicts.append(compare("a", "b", accuracy, a, b, margin=0.02, seed=0).verdict)
    assert verdicts.count("better") / num_pairs <= 0.05
    assert verdicts.count("worse") / num_pairs <= 0.05


def test_an_effect_that_is_called_detectable_is_found_about_80_times_in_100():
    rng, n, differing, effect = np.random.default_rng(4), 200, 0.2, 0.0
    found: list[Comparison] = []
    for num_pairs in (10, 10, 120):
        cells = [(differing + effect) / 2, (differing - effect) / 2, 1 - differing]
        found = []
        for only_a, only_b, same in rng.multinomial(n, cells, size=num_pairs):
            a = marks([1] * only_a + [0] * only_b + [1] * same)
            b = marks([0] * only_a + [1] * only_b + [1] * same)
            found.append(compare("a", "b", accuracy, a, b, margin=0.02, seed=0))
        if num_pairs == 10:
            effect = np.mean([one.detectable for one in found])
    assert 0.05 < effect < 0.12
    assert 0.72 <= np.mean([one.verdict == "better" for one in found]) <= 0.90


def test_holm_is_the_step_down_rule():
    p = [0.01, 0.04, 0.03, 0.005]
    expected = [0.03, 0.06, 0.06, 0.02]
    metrics = {f"m{i}": accuracy for i in range(4)}
    family = [
        Comparison(a="a", b="b", metric=f"m{i}", difference=0.1, low=0.01, high=0.2, p=value,
                   p_holm=value, verdict="better")
        for i, value in enumerate(p)
    ]  # fmt: skip
    found = holm(family, metrics)
    assert [one.p_holm for one in found] == pytest.approx(expected)
    assert [one.verdict for one in found] == ["better", "inconclusive", "inconclusive", "better"]


def test_agreeing_on_few_answers_is_not_parity():
    few, many = marks([1] * 40 + [0] * 10), marks([1] * 160 + [0] * 40)
    found = compare("a", "b", accuracy, few, few, margin=0.02, seed=0)
    assert found.verdict == "inconclusive" and found.low < -0.02
    assert compare("a", "b", accuracy, many, many, margin=0.02, seed=0).verdict == "non_inferior"


def test_every_comparison_says_how_its_interval_was_made():
    rng = np.random.default_rng(0)

    def model():
        said = ["one two" if v > 0.3 else "two" for v in rng.random(80)]
        return [
            sample(i, correct=float(text == "one two"), text=text, references=("one two",),
                   target="one two")
            for i, text in enumerate(said)
        ]  # fmt: skip

    a, b = model(), model()
    metrics = [accuracy, get_metric("rouge_l"), get_metric("macro_f1")]
    found = compare_all([("a", "b")], metrics, {"a": a, "b": b}, margin=0.02, seed=3)
    assert [one.method.split(",")[0] for one in found] == [
        "agresti-min", "bootstrap-percentile", "bootstrap-percentile",
    ]  # fmt: skip
    assert "seed 3" in found[1].method and all(one.test and one.n == 80 for one in found)


def test_large_sets_get_fewer_resamples_and_say_so():
    assert affordable(10_000) == 10_000
    assert affordable(50_000) == MOST_DRAWS // 50_000 == 2_000
    assert affordable(10_000_000) == 1_000


def test_retention_has_a_reason_where_it_has_no_value():
    none = retention(accuracy, marks([1] * 60), marks([0] * 60), None, seed=0)["of_teacher"]
    assert none.value is None and none.note == "the teacher's value is zero"
    found = retention(accuracy, marks([1] * 60), marks([1] * 60), None, seed=0)["of_teacher"]
    assert (found.value, found.low, found.method) == (1.0, None, "none")
    assert "every resample" in found.note


def test_retention_is_not_clipped():
    student, teacher = marks([1] * 90 + [0] * 10), marks([1] * 60 + [0] * 40)
    found = retention(accuracy, student, teacher, marks([0] * 100), seed=0)
    assert found["of_teacher"].value == pytest.approx(1.5)
    assert found["gap_recovered"].value == pytest.approx(1.5)
    assert found["gap_recovered"].signature == "on accuracy"


def test_fidelity_is_apart_from_gold_accuracy():
    """A student that repeats its teacher's mistakes agrees with it and is wrong."""
    teacher = [sample(i, text="wrong answer here", correct=0.0) for i in range(60)]
    parrot = [sample(i, text="Wrong answer here!", correct=0.0) for i in range(60)]
    honest = [sample(i, text="right words", correct=1.0) for i in range(60)]
    assert agreement(parrot, teacher, seed=0).value == 1.0
    assert likeness(parrot, teacher, seed=0).value == 1.0
    assert agreement(honest, teacher, seed=0).value == 0.0
    assert likeness(honest, teacher, seed=0).value == 0.0
    assert estimate(accuracy, honest, seed=0).value == 1.0
    silent = [sample(i, text="", prediction=None) for i in range(60)]
    assert likeness(parrot, silent, seed=0).value is None


def test_clusters_make_class_intervals_wider():
    from potstill.examine.parts import class_estimates

    def rows(grouped):
        return [
            sample(i, group=f"g{i // 10}" if grouped else "", target="ab"[i // 10 % 2],
                   prediction="ab"[i // 10 % 2] if i // 10 % 4 < 3 else "c")
            for i in range(400)
        ]  # fmt: skip

    alone, together = (class_estimates(rows(grouped), seed=0)["b"] for grouped in (False, True))
    for name in ("recall", "f1"):
        assert together[name].value == alone[name].value
        assert together[name].high - together[name].low > 1.5 * (alone[name].high - alone[name].low)
    assert "groups" in together["recall"].method


def test_a_mean_of_equal_scores_claims_no_certainty():
    half = MeanMetric("half", lambda s: 0.5, "always a half")
    found = estimate(half, marks([1] * 60), seed=0)
    assert (found.value, found.low, found.high, found.method) == (0.5, None, None, "none")
    assert "every resample has the same value" in found.note


def test_few_answers_are_warned_about():
    assert "below 50" in estimate(accuracy, marks([1, 0] * 15), seed=0).note
    assert estimate(accuracy, marks([1, 0] * 30), seed=0).note == ""
    assert math.isfinite(estimate(accuracy, marks([1]), seed=0).low)
