"""Odd test sets give a sensible number, or a refusal that says why."""

import json
import math
import time

import numpy as np
import pytest
from examine.fake_models import sample
from examine.test_metrics import SCRIPTS

from potstill.errors import ConfigError, DataError
from potstill.examine.compare import compare, compare_all
from potstill.examine.metrics import MeanMetric, accuracy, estimate, get_metric
from potstill.examine.parts import class_estimates
from potstill.examine.resample import wilson
from potstill.protocols import BUILTIN
from potstill.types import METRIC_ALIASES, Likelihood, Sample

READ = (
    "accuracy",
    "exact_match",
    "f1",
    "macro_f1",
    "bleu",
    "chrf",
    "rouge_1",
    "rouge_2",
    "rouge_l",
)


def answers(n, said, wanted="one two three four five"):
    return [
        sample(i, text=said, references=(wanted,), target=wanted, correct=float(said == wanted))
        for i in range(n)
    ]


@pytest.mark.parametrize("name", READ)
def test_an_empty_test_set_is_refused(name):
    with pytest.raises(DataError, match="zero answers"):
        estimate(get_metric(name), [], seed=0)


@pytest.mark.parametrize("name", READ)
def test_all_wrong_is_zero(name):
    found = estimate(get_metric(name), answers(60, "zz gg"), seed=0)
    assert found.value == 0.0 and found.n == 60
    assert found.low is None or (found.low == 0.0 and 0 < found.high < 0.1)
    assert found.low is not None or "same value" in found.note


@pytest.mark.parametrize("name", READ)
def test_all_right_is_the_maximum_without_false_certainty(name):
    metric = get_metric(name)
    found = estimate(metric, answers(60, "one two three four five"), seed=0)
    assert found.value == pytest.approx(getattr(metric, "scale", 1.0))
    assert found.low is None or found.low < 0.95


@pytest.mark.parametrize("name", READ)
def test_one_row_has_a_value(name):
    found = estimate(get_metric(name), answers(1, "one two three four five"), seed=0)
    assert found.n == 1 and found.value > 0.99
    assert found.low is None or found.low < 0.3


@pytest.mark.parametrize("name", READ)
def test_missing_gold_does_not_count_and_none_at_all_has_no_value(name):
    metric = get_metric(name)
    known = answers(60, "one two three four five")
    unknown = [sample(i, text="x") for i in range(60, 80)]
    assert estimate(metric, known + unknown, seed=0).n == 60
    none = estimate(metric, unknown, seed=0)
    if name not in ("bleu", "chrf"):
        assert none.value is None and "reference" in none.note


SURE = Likelihood(nats=0.0, num_tokens=7, num_bytes=40, divergence_nats=0.0)
BEST = {"perplexity": 1.0}
BEST |= dict.fromkeys(("ece", "bits_per_byte", "divergence"), 0.0)
BEST |= dict.fromkeys(
    ("undue_refusal", "refusal_rate", "truncation_rate", "wrong_language_rate"), 0.0
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", BUILTIN["metric"])
def test_an_answer_that_equals_its_reference_cannot_be_beaten(name, script):
    """metric(x, x) is the best value that there is, and no other text of the script has a better.

    Of copies and lengths, which are neither good nor bad, x is all of x and as long as x.
    """
    text, metric = SCRIPTS[script], get_metric(name)
    text = {"json_validity": json.dumps({"x": text}, ensure_ascii=False),
            "numeric_equality": f"{text} 5"}.get(name, text)  # fmt: skip
    others = [" ".join(text.split()[::-1]), text + " " + text, text[: len(text) // 2], "x"]

    def value(said):
        is_right = said == text
        one = sample(
            0, text=said, prompt=text, references=(text,), target=text, correct=float(is_right),
            confidence=1.0,
            likelihood=SURE if is_right else SURE.model_copy(update={"nats": 1.0}),
        )  # fmt: skip
        return estimate(metric, [one], seed=0).value

    best = BEST.get(name, getattr(metric, "scale", 1.0))
    assert value(text) == pytest.approx(best)
    if name == "length_ratio":
        assert value(others[1]) > 1 > value(others[2])
    elif metric.higher_is_better or name == "copy_rate":
        assert all(value(other) <= best + 1e-9 for other in others)
    else:
        assert all(value(other) >= best - 1e-9 for other in others)


def test_one_class_has_an_f1():
    rows = [sample(i, target="a", prediction="a" if i % 3 else "b") for i in range(60)]
    assert estimate(get_metric("macro_f1"), rows, seed=0).value == pytest.approx(0.8)
    found = class_estimates(rows, seed=0)
    assert set(found) == {"a"} and found["a"]["precision"].value == 1.0


def test_a_class_that_is_never_said_has_no_precision():
    rows = [sample(i, target="ab"[i % 2], prediction="a") for i in range(60)]
    found = class_estimates(rows, seed=0)["b"]
    assert found["precision"].value is None and "never answered" in found["precision"].note
    assert (found["recall"].value, found["f1"].value, found["f1"].low) == (0.0, 0.0, None)


def test_answers_without_a_target_are_no_class():
    assert class_estimates([sample(i, prediction="a") for i in range(5)], seed=0) == {}


def test_a_number_that_is_none_is_named_with_its_record():
    broken = MeanMetric("mine", lambda s: math.nan if s.record_id == "7" else 1.0, "")
    with pytest.raises(DataError, match=r"metric 'mine' gave \[nan, 1.0\] for record 7"):
        estimate(broken, answers(20, "x"), seed=0)
    with pytest.raises(DataError, match="record 7"):
        compare("a", "b", broken, answers(20, "x"), answers(20, "y"), margin=None, seed=0)


def polite(sample: Sample) -> float | None:
    """Says please.

    Only English."""
    return None if not sample.text else float("please" in sample.text)


def crashing(sample: Sample) -> float:
    return len(sample.metadata["missing"])


class WrongShape:
    name, unit, higher_is_better, signature = "shapely", "", True, "s"

    def rows(self, samples):
        return np.ones(len(samples))

    def value(self, sums):
        return sums[..., 0]


class WrongValue(WrongShape):
    def rows(self, samples):
        return np.array([[float(i), 1.0] for i in range(len(samples))])

    def value(self, sums):
        return float(np.asarray(sums).ravel()[0])


def test_a_function_of_an_answer_is_a_metric():
    metric = get_metric("examine.test_edges:polite")
    rows = [sample(i, text="yes please" if i % 4 else "no") for i in range(80)]
    found = estimate(metric, [*rows, sample(80, text="", prediction=None)], seed=0)
    assert (found.value, found.n, found.method) == (0.75, 80, "wilson")
    assert metric.name == "polite"
    assert found.signature == "examine.test_edges:polite: Says please"


def test_a_function_that_fails_is_named_with_what_went_wrong():
    with pytest.raises(DataError, match="metric 'crashing' failed on the answers: KeyError"):
        estimate(get_metric("examine.test_edges:crashing"), answers(3, "x"), seed=0)


def test_a_plugin_of_the_wrong_shape_is_told_the_right_one():
    with pytest.raises(
        DataError, match=r"rows of shape \(3,\) for 3 answers; it must give \[3, d\]"
    ):
        estimate(get_metric("examine.test_edges:WrongShape"), answers(3, "x"), seed=0)
    with pytest.raises(DataError, match=r"value\(\) must turn \[..., d\] sums into"):
        estimate(get_metric("examine.test_edges:WrongValue"), answers(60, "x"), seed=0)


@pytest.mark.parametrize(
    ("name", "near"),
    [("acuracy", "accuracy"), ("rogue_l", "rouge_l"), ("blue", "bleu"), ("Accuracy", "accuracy"),
     ("bleu-score", "bleu_score")],
)  # fmt: skip
def test_an_unknown_name_is_told_the_nearest_name_or_alias(name, near):
    with pytest.raises(ConfigError, match=f"no metric is called '{name}'.*{near}"):
        get_metric(name)


def test_a_name_that_is_like_none_is_told_all():
    with pytest.raises(ConfigError, match="there are: accuracy, exact_match"):
        get_metric("zzz")


@pytest.mark.parametrize("alias", METRIC_ALIASES)
def test_every_alias_is_of_a_metric(alias):
    from potstill.examine.gates import MEASURED

    assert METRIC_ALIASES[alias] in (*BUILTIN["metric"], *MEASURED)


def test_ties_in_every_answer_are_no_difference():
    rows = answers(120, "one two three four six")
    found = compare("a", "b", get_metric("rouge_l"), rows, rows, margin=0.02, seed=0)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert found.low == pytest.approx(-found.high) and found.verdict == "non_inferior"


def test_one_shared_row_is_no_comparison():
    found = compare("a", "b", accuracy, answers(1, "x"), answers(1, "x"), margin=0.02, seed=0)
    assert (found.low, found.verdict, found.method) == (None, "inconclusive", "none")
    assert "only 1 answers" in found.note


def test_references_in_neither_model_are_refused():
    rows = [sample(i) for i in range(5)]
    with pytest.raises(DataError, match="have they references"):
        compare("a", "b", accuracy, rows, rows, margin=0.02, seed=0)


@pytest.mark.slow
def test_a_hundred_thousand_answers_take_seconds():
    rng, n = np.random.default_rng(0), 100_000
    shared = {"text": "a", "error": "", "finish_reason": "stop", "group": "", "turn": 0}

    def model(share):
        right = (rng.random(n) < share).tolist()
        return [
            Sample.model_construct(record_id=str(i), correct=float(ok), target="ab"[i % 2],
                                   prediction="ab"[(i + (not ok)) % 2], **shared)
            for i, ok in enumerate(right)
        ]  # fmt: skip

    a, b = model(0.8), model(0.79)
    start = time.process_time()
    found = estimate(accuracy, a, seed=0)
    assert (found.low, found.high) == pytest.approx(wilson(found.value * n, n))
    (difference,) = compare_all([("a", "b")], [accuracy], {"a": a, "b": b}, margin=0.02, seed=0)
    assert difference.verdict == "better" and difference.discordant > 30_000
    assert time.process_time() - start < 5


@pytest.mark.slow
def test_a_hundred_thousand_answers_are_resampled_in_bounded_time():
    rows = np.random.default_rng(0).random((100_000, 3))
    texts = [
        Sample.model_construct(record_id=str(i), text="x", error="", finish_reason="stop",
                               group="", turn=0, prediction="x", metadata={"v": row.tolist()})
        for i, row in enumerate(rows)
    ]  # fmt: skip
    scored = MeanMetric("scored", lambda s: s.metadata["v"][0], "a number of the row")
    start = time.process_time()
    found = estimate(scored, texts, seed=0)
    assert "1,000 resamples" in found.method and found.high - found.low < 0.005
    assert time.process_time() - start < 20
