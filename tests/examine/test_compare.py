"""Comparisons are paired, their tests are the textbook's, and verdicts claim no more."""

import math

import numpy as np
import pytest
from examine.fake_models import sample

from potstill.errors import ConfigError, DataError
from potstill.examine.compare import (
    compare,
    compare_all,
    confusion,
    regressions_and_wins,
    verdict,
)
from potstill.examine.fidelity import agreement, retention
from potstill.examine.gates import check_gates, parse_gate
from potstill.examine.metrics import accuracy, get_metric
from potstill.examine.resample import mcnemar
from potstill.types import Estimate, Evaluation


def marks(values, **facts):
    return [sample(i, correct=float(v), **facts) for i, v in enumerate(values)]


def both(num_both, only_a, only_b, neither):
    a = [1] * num_both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * num_both + [0] * only_a + [1] * only_b + [0] * neither
    return marks(a), marks(b)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 5), (12, 3), (40, 41), (300, 260)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    from scipy.stats import binomtest

    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "p", "margin", "expected"),
    [
        (0.01, 0.05, 0.01, 0.02, "better"),
        (0.01, 0.05, 0.20, 0.02, "non_inferior"),
        (0.01, 0.05, 0.20, None, "inconclusive"),
        (-0.01, 0.03, 0.50, 0.02, "non_inferior"),
        (-0.015, -0.005, 0.01, 0.02, "non_inferior"),
        (-0.05, -0.01, 0.01, 0.02, "worse"),
        (-0.05, -0.01, 0.20, 0.02, "inconclusive"),
        (-0.05, 0.01, 0.30, 0.02, "inconclusive"),
        (-0.02, 0.01, 0.30, 0.02, "inconclusive"),
        (None, None, 0.01, 0.02, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, p, margin, expected):
    assert verdict(low, high, p, margin) == expected


def test_less_is_better_where_the_metric_says_so():
    assert verdict(-0.05, -0.01, 0.01, 0.02, higher_is_better=False) == "better"
    assert verdict(0.05, 0.10, 0.01, 0.02, higher_is_better=False) == "worse"


def test_a_comparison_is_paired():
    a, b = both(150, 30, 10, 10)
    found = compare("a", "b", accuracy, a, b, margin=0.02, seed=0)
    assert found.difference == pytest.approx(0.1)
    assert (found.discordant, found.n, found.test) == (40, 200, "mcnemar-exact")
    assert found.p == pytest.approx(mcnemar(30, 10))
    # The paired standard error by hand: variance of +1, -1 and 0.
    error = math.sqrt((40 / 200 - 0.1**2) / 200)
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.01)
    assert found.detectable == pytest.approx((1.96 + 0.8416) * error + 1 / 200, rel=0.05)
    assert found.verdict == "better"


def test_pairs_are_joined_by_record_and_not_by_place():
    a, b = both(150, 30, 10, 10)
    shuffled = list(np.random.default_rng(0).permutation(np.arange(200)))
    moved = [b[i] for i in shuffled]
    one = compare("a", "b", accuracy, a, b, margin=0.02, seed=0)
    assert compare("a", "b", accuracy, a, moved, margin=0.02, seed=0) == one


def test_equal_models_are_not_worse_and_not_better():
    a, b = both(180, 0, 0, 20)
    found = compare("a", "b", accuracy, a, b, margin=0.02, seed=0)
    assert (found.difference, found.p, found.verdict) == (0.0, 1.0, "non_inferior")
    assert "differ on 0 answers" in found.note


def test_few_answers_are_said_to_be_few():
    a, b = both(20, 5, 2, 3)
    assert "only 30 answers" in compare("a", "b", accuracy, a, b, margin=0.02, seed=0).note


def test_clustered_answers_are_permuted_by_group():
    a = [sample(i // 4, turn=i % 4, correct=float((i // 4) % 3 > 0)) for i in range(240)]
    b = [sample(i // 4, turn=i % 4, correct=float((i // 4) % 2)) for i in range(240)]
    found = compare("a", "b", accuracy, a, b, margin=0.02, seed=0)
    assert found.test.startswith("permutation-paired")
    alone = compare(
        "a",
        "b",
        accuracy,
        [s.model_copy(update={"record_id": f"{s.record_id}-{s.turn}"}) for s in a],
        [s.model_copy(update={"record_id": f"{s.record_id}-{s.turn}"}) for s in b],
        margin=0.02,
        seed=0,
    )
    assert found.high - found.low > 1.5 * (alone.high - alone.low)
    assert found.p > alone.p


def test_corpus_metrics_are_permuted_too():
    rng = np.random.default_rng(0)
    words = "one two three four five six seven eight".split()
    right = [" ".join(rng.permutation(words)) for _ in range(60)]
    good = [sample(i, text=t, references=(t,)) for i, t in enumerate(right)]
    bad = [sample(i, text=t[:20], references=(t,)) for i, t in enumerate(right)]
    found = compare("a", "b", get_metric("chrf"), good, bad, margin=2.0, seed=0)
    assert found.p < 0.001 and found.verdict == "better"
    same = compare("a", "b", get_metric("chrf"), good, good, margin=2.0, seed=0)
    assert same.p == 1.0 and same.verdict == "inconclusive"  # 60 equal answers show little
    many = [s.model_copy(update={"record_id": f"{s.record_id}-{i}"}) for s in good for i in (0, 1)]
    same = compare("a", "b", get_metric("chrf"), many, many, margin=2.0, seed=0)
    assert same.verdict == "non_inferior" and "no unit differs" in same.method


def test_p_values_of_one_pair_are_corrected_together():
    a, b = both(150, 24, 10, 16)
    a = [s.model_copy(update={"target": "x", "prediction": "x" if s.correct else "y"}) for s in a]
    b = [s.model_copy(update={"target": "x", "prediction": "x" if s.correct else "y"}) for s in b]
    metrics = [accuracy, get_metric("macro_f1")]
    found = compare_all([("a", "b")], metrics, {"a": a, "b": b}, margin=0.02, seed=0)
    smallest, largest = sorted(found, key=lambda c: c.p)
    assert smallest.p_holm == pytest.approx(2 * smallest.p)
    assert largest.p_holm == max(largest.p, smallest.p_holm)


def test_the_margin_is_a_share_of_the_scale():
    rows = [sample(i, text="a b c d e", references=("a b c d f",)) for i in range(60)]
    (found,) = compare_all(
        [("a", "b")], [get_metric("bleu")], {"a": rows, "b": rows}, margin=0.02, seed=0
    )
    assert found.margin == pytest.approx(2.0)


def test_models_without_a_record_in_common_are_an_error():
    with pytest.raises(DataError, match="in common"):
        compare("a", "b", accuracy, [sample(0, correct=1.0)], [sample(1, correct=1.0)],
                margin=0.02, seed=0)  # fmt: skip


def test_retention_is_the_ratio_of_values_and_of_gaps():
    student, teacher, base = (
        marks([1] * 80 + [0] * 20),
        marks([1] * 90 + [0] * 10),
        marks([1] * 40 + [0] * 60),
    )
    found = retention(accuracy, student, teacher, base, seed=0)
    assert found["of_teacher"].value == pytest.approx(80 / 90)
    assert found["gap_recovered"].value == pytest.approx(40 / 50)
    assert found["gap_recovered"].low < 0.8 < found["gap_recovered"].high


def test_there_is_no_gap_to_recover_where_the_teacher_is_not_better():
    student, teacher = marks([1] * 80 + [0] * 20), marks([1] * 60 + [0] * 40)
    found = retention(accuracy, student, teacher, marks([0, 1] * 50), seed=0)
    assert found["gap_recovered"].value is None
    assert "does not surely beat the baseline" in found["gap_recovered"].note
    assert found["of_teacher"].value > 1


def test_regressions_are_where_the_student_alone_fails():
    samples = {
        "teacher": marks([1, 1, 0, 0]),
        "untouched": marks([1, 0, 1, 0]),
        "distilled": marks([0, 0, 0, 1], text="hm"),
    }
    lost, won, num_lost, num_won = regressions_and_wins(
        samples, student="distilled", others=["teacher", "untouched"]
    )
    assert [row["record_id"] for row in lost] == ["0", "1", "2"]
    assert lost[1]["right"] == ["teacher"] and lost[0]["answers"]["distilled"] == "hm"
    assert [row["record_id"] for row in won] == ["3"]
    assert (num_lost, num_won) == (3, 1)


def test_lists_are_cut_and_counts_are_not():
    samples = {"teacher": marks([1] * 80), "distilled": marks([0] * 80)}
    lost, _, num_lost, _ = regressions_and_wins(samples, student="distilled", others=["teacher"])
    assert (len(lost), num_lost) == (50, 80)


def test_agreement_is_not_accuracy():
    teacher = [sample(i, prediction="x", correct=0.0) for i in range(10)]
    student = [sample(i, prediction="x" if i < 7 else None, correct=0.0) for i in range(10)]
    assert agreement(student, teacher, seed=0).value == pytest.approx(0.7)


def test_confusion_counts_unreadable_answers_as_empty():
    rows = [sample(0, prediction="a", target="a"), sample(1, prediction=None, target="a")]
    assert confusion(rows) == {"a": {"a": 1, "": 1}}


def evaluation(role, **metrics):
    found = {
        name: v if isinstance(v, Estimate) else Estimate(value=v, n=100)
        for name, v in metrics.items()
    }
    return Evaluation(role=role, id=role, metrics=found, disk_bytes=1000)


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        ("accuracy >= 0.97 * teacher", False),
        ("accuracy >= 0.9 * teacher", True),
        ("accuracy>=0.8", True),
        ("accuracy > 0.8", False),
        ("accuracy < teacher", True),
        ("disk <= 2000", True),
        ("latency <= 0.5 * teacher", False),
    ],
)
def test_gates_compare_with_a_number_or_a_model(rule, passed):
    models = {
        "distilled": evaluation("distilled", accuracy=0.8, latency=0.2),
        "teacher": evaluation("teacher", accuracy=0.85, latency=0.3),
    }
    (found,) = check_gates([rule], models)
    assert found["passed"] is passed and found["rule"] == rule


def test_gates_know_every_time_and_its_slow_end():
    models = {"distilled": evaluation("distilled", accuracy=0.8)}
    for name in ("ttft", "ttft.p95", "tpot.p99", "latency.p99", "memory.weights", "energy"):
        (found,) = check_gates([f"{name} <= 1"], models)
        assert f"{name} of distilled was not measured" in found["found"]


def test_what_was_not_measured_does_not_pass():
    models = {"distilled": evaluation("distilled", accuracy=0.8)}
    (found,) = check_gates(["latency.p95 <= 1"], models)
    assert not found["passed"] and "was not measured" in found["found"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("accuracy", "is not a rule"),
        ("accuracy >= ", "is not a rule"),
        ("accuracy => 0.9", "is not a rule"),
        ("acuracy >= 0.9", "accuracy"),
        ("__import__('os') >= 1", "is not a rule"),
    ],
)
def test_a_malformed_gate_is_an_error(rule, message):
    with pytest.raises(ConfigError, match=message):
        parse_gate(rule)


def test_a_gate_on_a_model_that_was_not_evaluated_is_an_error():
    with pytest.raises(ConfigError, match="'teacher', which was not evaluated"):
        check_gates(["accuracy >= teacher"], {"distilled": evaluation("distilled", accuracy=1.0)})
