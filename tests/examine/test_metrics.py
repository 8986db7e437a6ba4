"""Metrics are what their definitions say, in every script, and their intervals hold."""

import math
import time

import numpy as np
import pytest
import sacrebleu
from examine.fake_models import sample

from potstill.errors import ConfigError, DataError
from potstill.examine.metrics import accuracy, estimate, get_metric, macro_f1
from potstill.examine.resample import resampled_sums, wilson
from potstill.protocols import BUILTIN

SCRIPTS = {
    "english": "The parcel arrives on the fifth of March.",
    "hindi": "पार्सल पाँच मार्च को आपके घर पहुँचेगा।",
    "malayalam": "പാഴ്സൽ മാർച്ച് അഞ്ചിന് നിങ്ങളുടെ വീട്ടിൽ എത്തും.",
    "arabic": "سيصل الطرد في الخامس من شهر مارس.",
    "greek": "Το δέμα φτάνει στις πέντε Μαρτίου στο σπίτι.",
    "chinese": "包裹将于三月五日送到您的家中。",
}
QUALITY = ("exact_match", "f1", "macro_f1", "accuracy", "bleu", "chrf", "rouge_1", "rouge_2")


def texts(*pairs: tuple[str, str]):
    return [sample(i, text=a, prediction=a, references=(b,)) for i, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize("name", [*QUALITY, "rouge_l", "length_ratio", "label_validity"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_that_equals_its_reference_has_the_largest_value(name, script):
    text = SCRIPTS[script]
    metric = get_metric(name)
    same = [sample(0, text=text, prediction=text, references=(text,), target=text, correct=1.0)]
    assert estimate(metric, same, seed=0).value == pytest.approx(getattr(metric, "scale", 1.0))


@pytest.mark.parametrize("script", ["hindi", "malayalam"])
@pytest.mark.parametrize("name", ["exact_match", "f1", "rouge_1", "rouge_l", "bleu", "chrf"])
def test_another_text_of_the_same_script_has_less(name, script):
    text = SCRIPTS[script]
    other = " ".join(reversed(text.split()[:-2]))
    found = estimate(get_metric(name), texts((other, text)), seed=0)
    assert found.value < getattr(get_metric(name), "scale", 1.0) * 0.95


def test_bleu_and_chrf_are_those_of_sacrebleu():
    pairs = [
        ("the cat sat on the mat", "the cat sat on a mat"),
        ("there is a dog in the garden now", "a dog is in the garden"),
        ("he reads", "he reads a book every evening"),
        ("", "something"),
    ]
    said, wanted = zip(*pairs, strict=True)
    found = estimate(get_metric("bleu"), texts(*pairs), seed=0)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(said, [wanted], force=True).score)
    assert "tok:13a" in found.signature and "nrefs:1" in found.signature
    found = estimate(get_metric("chrf"), texts(*pairs), seed=0)
    assert found.value == pytest.approx(sacrebleu.corpus_chrf(said, [wanted]).score)


def test_bleu_smooths_empty_orders_as_sacrebleu_does():
    pairs = [("a b x c d y", "a b c d e f")]
    metric = get_metric("bleu")
    found = estimate(metric, texts(*pairs), seed=0).value
    expected = sacrebleu.corpus_bleu([pairs[0][0]], [[pairs[0][1]]], force=True).score
    assert 0 < found == pytest.approx(expected)
    assert metric.value(metric.rows(texts(*pairs)))[0] == pytest.approx(expected)


def test_chinese_is_cut_into_characters():
    found = estimate(get_metric("bleu"), texts((SCRIPTS["chinese"], SCRIPTS["chinese"])), seed=0)
    assert "tok:char" in found.signature


def test_wilson_is_the_textbook_formula():
    z, n, k = 1.959963984540054, 200, 163
    p = k / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert wilson(k, n) == pytest.approx(expected)
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((interval.low, interval.high))


def test_accuracy_has_wilson_and_counts_failures():
    samples = [sample(i, correct=float(i % 4 > 0)) for i in range(40)]
    samples[0] = sample(0, correct=0.0, prediction=None, finish_reason="length")
    found = estimate(accuracy, samples, seed=0)
    assert (found.value, found.n, found.n_error, found.method) == (0.75, 40, 1, "wilson")
    assert (found.low, found.high) == pytest.approx(wilson(30, 40))


def test_answers_without_a_reference_do_not_count():
    found = estimate(accuracy, [sample(0, correct=1.0), sample(1, correct=None)], seed=0)
    assert (found.value, found.n) == (1.0, 1)
    found = estimate(accuracy, [sample(0, correct=None)], seed=0)
    assert found.value is None and "reference" in found.note


def test_an_empty_test_set_is_an_error():
    with pytest.raises(DataError, match="undefined"):
        estimate(accuracy, [], seed=0)


def test_macro_f1_is_the_mean_over_the_classes_of_the_references():
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b"), ("z", "b"), (None, "c")]
    samples = [sample(i, prediction=p, target=t) for i, (p, t) in enumerate(pairs)]
    # a: 2 of 2 said, 2 of 3 found; b: 1 of 2 said, 1 of 2 found; c: nothing
    assert estimate(macro_f1, samples, seed=0).value == pytest.approx((0.8 + 0.5 + 0) / 3)


def test_whole_groups_are_drawn_where_answers_hang_together():
    rng = np.random.default_rng(3)
    alike, apart = [], []
    for group in range(40):
        share = rng.beta(0.3, 0.3)
        for turn in range(10):
            right = float(rng.random() < share)
            alike.append(sample(f"{group}-{turn}", group=f"g{group}", correct=right))
            apart.append(sample(f"{group}-{turn}", correct=right))
    clustered, plain = (estimate(accuracy, rows, seed=0) for rows in (alike, apart))
    assert clustered.value == plain.value
    assert clustered.high - clustered.low > 1.8 * (plain.high - plain.low)
    assert "groups" in clustered.method and "40 groups" in clustered.note


def test_the_turns_of_one_record_are_one_unit():
    rows = [sample(i // 2, turn=i % 2, correct=float(i % 4 < 2)) for i in range(40)]
    assert "20 groups" in estimate(accuracy, rows, seed=0).note


def test_equal_clustered_answers_do_not_claim_certainty():
    rows = [sample(i // 2, turn=i % 2, correct=1.0) for i in range(40)]
    found = estimate(accuracy, rows, seed=0)
    assert found.low == pytest.approx(wilson(20, 20)[0])


def test_the_bootstrap_interval_of_a_mean_holds_it_about_95_times_in_100():
    rng = np.random.default_rng(0)
    metric = get_metric("rouge_l")
    hits = 0
    for trial in range(120):
        values = rng.exponential(1.0, size=60)
        rows = np.stack([values, np.ones(60)], axis=1)
        from potstill.examine.resample import bca_interval

        sums = resampled_sums(rows, seed=trial, num_resamples=1000)
        low, high = bca_interval(rows, metric.value, metric.value(sums))
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 120 <= 0.99


def test_bca_is_that_of_scipy():
    from scipy.stats import bootstrap

    from potstill.examine.resample import bca_interval

    values = np.random.default_rng(1).exponential(1.0, size=80)
    rows = np.stack([values, np.ones(80)], axis=1)
    metric = get_metric("rouge_l")
    ours = bca_interval(rows, metric.value, metric.value(resampled_sums(rows, seed=0)))
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="BCa", rng=0)
    assert ours == pytest.approx(theirs.confidence_interval, abs=0.01)


def test_ten_thousand_resamples_of_a_thousand_answers_take_less_than_a_second():
    rows = np.random.default_rng(0).random((1000, 18))
    start = time.perf_counter()
    sums = resampled_sums(rows, seed=0)
    assert time.perf_counter() - start < 1
    assert sums.shape == (10_000, 18)
    assert sums.mean(axis=0) == pytest.approx(rows.sum(axis=0), rel=0.01)


def test_the_same_seed_gives_the_same_interval():
    rows = texts(*[("a b c d " * (i % 5), "a b c d e") for i in range(60)])
    one, other = (estimate(get_metric("rouge_l"), rows, seed=5) for _ in range(2))
    assert one == other and "seed 5" in one.method


def test_names_of_other_tools_find_our_metrics():
    assert get_metric("bleu_score").name == "bleu"
    assert get_metric("rouge").name == "rouge_l"


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="did you mean accuracy"):
        get_metric("acuracy")


def test_a_plugin_is_found_by_module_and_attribute():
    assert get_metric("potstill.examine.metrics:accuracy") is accuracy
    with pytest.raises(ConfigError, match="has no"):
        get_metric("potstill.examine.metrics:math")


@pytest.mark.parametrize("name", BUILTIN["metric"])
def test_every_built_in_metric_has_the_shape_of_the_protocol(name):
    metric = get_metric(name)
    rows = metric.rows(texts(("one two three four five", "one two three four six")))
    assert metric.name == name
    assert rows.ndim == 2 and rows.shape[0] == 1
    assert np.shape(metric.value(rows)) == (1,)


def test_rates_describe_answers():
    rows = [
        sample(0, text='{"a": 1}'),
        sample(1, text="I'm sorry, but I can't help with that."),
        sample(2, text="3", finish_reason="length"),
        sample(3, text="Sorry for the delay, the parcel is here."),
    ]
    rates = {n: estimate(get_metric(n), rows, seed=0).value for n in
             ("json_validity", "refusal_rate", "truncation_rate")}  # fmt: skip
    assert rates == {"json_validity": 0.25, "refusal_rate": 0.25, "truncation_rate": 0.25}


def test_a_copied_answer_has_copy_rate_one():
    rows = [sample(0, text="the fan came broken today", prompt="Hello, the fan came broken today!")]
    assert estimate(get_metric("copy_rate"), rows, seed=0).value == 1.0
    rows = [sample(0, text="a refund is on its way", prompt="Hello, the fan came broken today!")]
    assert estimate(get_metric("copy_rate"), rows, seed=0).value == 0.0
