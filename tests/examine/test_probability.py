"""Metrics on probabilities are their definitions, and have no value where a model tells none."""

import asyncio
import math

import numpy as np
import pytest
import torch
from examine.fake_models import Answering, Topics, record, sample
from tiny import tiny_llama

from potstill.data.render import render
from potstill.examine.likelihood import likelihoods
from potstill.examine.metrics import estimate, get_metric
from potstill.examine.probability import answer_confidence
from potstill.examine.run import evaluate
from potstill.models.local import LocalModel
from potstill.models.logprobs import Capture, LogprobArrays, pack_logprobs
from potstill.rundir import read_jsonl
from potstill.types import Likelihood, Sample, Sampling

RECORDS = [
    record(i, question="Where is my order?", reference=text)
    for i, text in enumerate(["It will arrive on Monday.", "हाँ, तीस दिनों के भीतर।", "9 are left"])
]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("student"))
    return LocalModel(folder, batch_size=4, capture=Capture(k=1))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return LocalModel(tiny_llama(tmp_path_factory.mktemp("teacher"), seed=1))


def by_hand(model, one):
    """Log-probabilities [N, V] at the answer's tokens, and the tokens, one row at a time."""
    row = render(model.tokenizer, one.messages, one.reference)
    ids = torch.tensor([row.ids])
    with torch.inference_mode():
        logits = model._model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = row.loss_mask.index(1)
    return logits[start - 1 : -1], ids[0, start:]


def test_perplexity_and_bits_per_byte_are_their_definitions(student):
    found = likelihoods(student, RECORDS, Topics())
    nats, tokens = 0.0, 0
    for one in RECORDS:
        log_q, ids = by_hand(student, one)
        nats -= log_q.gather(-1, ids[:, None]).sum().item()
        tokens += len(ids)
    rows = [sample(key[0], likelihood=value) for key, value in found.items()]
    assert estimate(get_metric("ppl"), rows, seed=0).value == pytest.approx(
        math.exp(nats / tokens), rel=1e-4
    )
    num_bytes = sum(len(one.reference.encode()) for one in RECORDS)
    assert estimate(get_metric("bits_per_byte"), rows, seed=0).value == pytest.approx(
        nats / math.log(2) / num_bytes, rel=1e-4
    )


def test_divergence_is_the_definition_and_zero_for_the_teacher_itself(student, teacher):
    found = likelihoods(student, RECORDS, Topics(), teacher=teacher)
    for one in RECORDS:
        log_p, log_q = by_hand(teacher, one)[0], by_hand(student, one)[0]
        expected = (log_p.exp() * (log_p - log_q)).sum().item()
        assert found[(one.id, 0)].divergence_nats == pytest.approx(expected, rel=1e-3)
    own = likelihoods(teacher, RECORDS, Topics(), teacher=teacher)
    assert all(abs(one.divergence_nats) < 1e-6 for one in own.values())


def test_rows_in_one_batch_are_the_rows_alone(student):
    together = likelihoods(student, RECORDS, Topics())
    for one in RECORDS:
        alone = likelihoods(student, [one], Topics())[(one.id, 0)]
        assert together[(one.id, 0)].nats == pytest.approx(alone.nats, rel=1e-4)


def test_another_tokenizer_has_no_divergence_and_no_reference_no_likelihood(student, teacher):
    class Other:
        vocab_fingerprint = "other"

    found = likelihoods(student, [*RECORDS, record(9)], Topics(), teacher=Other())
    assert len(found) == 3 and all(one.divergence_nats is None for one in found.values())


def test_an_evaluation_has_them_and_keeps_them_for_comparisons(student, teacher, tmp_path):
    names = ["accuracy", "ece", "perplexity", "bits_per_byte", "kl_divergence"]
    found = asyncio.run(
        evaluate(student, RECORDS, Topics(), role="distilled", metrics=names, teacher=teacher,
                 sampling=Sampling(max_new_tokens=5), out_samples=tmp_path / "s.jsonl",
                 format="huggingface")
    )  # fmt: skip
    assert 300 < found["perplexity"] < 600  # random weights on 421 tokens
    assert found["divergence"] > 0 and found["bits_per_byte"] > 0
    assert found.metrics["perplexity"].n == 3 and 0 <= found["ece"] <= 1
    kept = read_jsonl(tmp_path / "s.jsonl", Sample)
    assert all(0 < s.confidence < 1 and s.likelihood.num_tokens for s in kept)


def test_a_model_that_tells_no_probabilities_has_no_value_and_a_reason(tmp_path):
    found = asyncio.run(
        evaluate(Answering(lambda r: "x"), RECORDS, Topics(), role="teacher", format="endpoint",
                 metrics=["accuracy", "ece", "perplexity", "divergence"], sampling=Sampling(),
                 out_samples=tmp_path / "s.jsonl")
    )  # fmt: skip
    assert found.metrics["perplexity"].value is None
    assert "the model's probabilities of known answers" in found.metrics["perplexity"].note
    assert "probabilities of the model's answers" in found.metrics["ece"].note


def test_answers_kept_without_a_confidence_are_asked_again(student, tmp_path):
    def run(metrics):
        return asyncio.run(
            evaluate(student, RECORDS, Topics(), role="distilled", metrics=metrics, format="x",
                     sampling=Sampling(max_new_tokens=3), out_samples=tmp_path / "s.jsonl")
        )  # fmt: skip

    run(["accuracy"])
    bare = [s.model_copy(update={"confidence": None})
            for s in read_jsonl(tmp_path / "s.jsonl", Sample)]  # fmt: skip
    (tmp_path / "s.jsonl").write_text(
        "".join(s.model_dump_json(exclude_defaults=True) + "\n" for s in bare)
    )
    assert run(["accuracy", "ece"]).metrics["ece"].n == 3


def test_the_confidence_is_the_product_of_the_tokens_probabilities():
    def told(sampled):
        return pack_logprobs(
            LogprobArrays(
                np.array(sampled), np.array([[5, 7], [9, 2]]),
                np.log([[0.5, 0.25], [0.75, 0.125]]), np.zeros(2),
            )
        )  # fmt: skip

    assert answer_confidence(told([7, 9])) == pytest.approx(0.25 * 0.75, rel=1e-3)
    assert answer_confidence(told([7, 4])) is None
    assert answer_confidence(None) is None


def test_the_calibration_error_is_that_of_scikit_learns_curve():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    sure = rng.random(400)
    right = (rng.random(400) < 0.5).astype(float)  # unsure answers are better than they say
    rows = [sample(i, confidence=c, correct=r) for i, (c, r) in
            enumerate(zip(sure.tolist(), right.tolist(), strict=True))]  # fmt: skip
    share, confidence = calibration_curve(right, sure, n_bins=10)
    counts = np.histogram(sure, bins=np.linspace(0, 1, 11))[0]
    expected = float((np.abs(share - confidence) * counts).sum() / 400)
    found = estimate(get_metric("ece"), rows, seed=0)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_a_sure_and_right_model_is_calibrated():
    rows = [sample(i, confidence=1.0, correct=1.0) for i in range(60)]
    assert estimate(get_metric("ece"), rows, seed=0).value == 0.0
    assert estimate(get_metric("ece"), [sample(0)], seed=0).value is None


def test_a_likelier_answer_has_less_of_all():
    def rows(nats):
        return [
            sample(i, likelihood=Likelihood(nats=nats, num_tokens=4, num_bytes=10))
            for i in range(3)
        ]

    for name in ("perplexity", "bits_per_byte"):
        metric = get_metric(name)
        assert not metric.higher_is_better
        assert estimate(metric, rows(1.0), seed=0).value < estimate(metric, rows(2.0), seed=0).value
