"""What the codec gives back is what it was given: ids exactly, mass within 1e-3 nat."""

import numpy as np
import pytest

from potstill.targets.buckets import fit_buckets, make_buckets, read_classes, write_classes
from potstill.targets.codec import (
    STEPS,
    Code,
    Drawn,
    Row,
    TopK,
    Written,
    error_nats,
    joined,
    ordered,
    read_row,
    topk_row,
    write_row,
)

N, V = 200, 2203


def logits(scale: float = 4.0, vocab_size: int = V, num: int = N) -> np.ndarray:
    return scale * np.random.default_rng(0).standard_normal((num, vocab_size))


def softmax(logits_NV: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp((logits_NV - logits_NV.max(-1, keepdims=True)) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def largest(logits_NV: np.ndarray, k: int, temperatures=(1.0,)) -> Row:
    ids = np.argsort(-logits_NV, axis=-1)[:, :k]
    odds = []
    for temperature in temperatures:
        p = softmax(logits_NV, temperature)
        kept = np.take_along_axis(p, ids, -1).sum(-1)
        np.put_along_axis(p, ids, 0.0, -1)
        with np.errstate(divide="ignore"):
            odds.append(np.log(p.sum(-1)) - np.log(kept))
    return Row(ids, np.take_along_axis(logits_NV, ids, -1), np.stack(odds, -1))


def code_for(row: Row, vocab_size: int = V, temperatures=(1.0,), step: float | None = None) -> Code:
    if step is None:
        step = min(temperatures) / STEPS
    ids = row.ids_NK[row.ids_NK >= 0]
    return Code(fit_buckets(ids, len(row.ids_NK), vocab_size), step, tuple(temperatures))


def written_row(row: Row, code: Code) -> Written:
    return write_row(ordered(row, code), code)


def there_and_back(row: Row, code: Code, temperature: float | None = 1.0) -> TopK | Drawn:
    data = written_row(row, code).data
    return read_row(np.frombuffer(data, np.uint8), len(row.ids_NK), code, temperature)


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("k", [1, 16, 64])
def test_a_round_trip_keeps_the_ids_and_costs_less_than_a_thousandth_of_a_nat(k, scale):
    row = largest(logits(scale), k)
    code = code_for(row)
    found = there_and_back(row, code)
    assert np.array_equal(np.sort(found.ids_NK, -1), np.sort(row.ids_NK, -1))
    errors = error_nats(ordered(row, code), found, code, 1.0)
    assert errors.mean() < 1e-3
    assert errors.min() > -1e-6


def test_the_error_is_the_divergence_written_out():
    temperatures = (1.0, 2.0)
    given = logits(num=5)
    row = largest(given, 8, temperatures)
    code = code_for(row, temperatures=temperatures)
    found = there_and_back(row, code, 2.0)
    by_hand = []
    for position in range(5):
        p = softmax(given[position : position + 1], 2.0)[0][found.ids_NK[position]]
        q = np.exp(found.logprobs_NK[position].astype(float))
        tails = (1 - p.sum()) * np.log((1 - p.sum()) / (1 - q.sum()))
        by_hand.append((p * np.log(p / q)).sum() + tails)
    np.testing.assert_allclose(error_nats(ordered(row, code), found, code, 2.0), by_hand, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_kept_and_tail_are_right_at_every_stored_temperature(temperature):
    temperatures = (0.5, 1.0, 2.0, 4.0)
    given = logits()
    row = largest(given, 64, temperatures)
    code = code_for(row, temperatures=temperatures)
    found = there_and_back(row, code, temperature)
    p = np.take_along_axis(softmax(given, temperature), found.ids_NK, -1)
    q = np.exp(found.logprobs_NK.astype(float))
    np.testing.assert_allclose(q.sum(-1), p.sum(-1), atol=5e-4)
    # Half a step of the logits' rounding, at most, on either side of a ratio.
    np.testing.assert_allclose(np.log(q), np.log(p), atol=code.step / temperature + 2e-3)
    assert error_nats(ordered(row, code), found, code, temperature).mean() < 1e-3


def test_a_vocabulary_kept_as_a_whole_has_no_tail():
    row = largest(logits(vocab_size=97), 97)
    found = there_and_back(row, code_for(row, 97))
    np.testing.assert_allclose(np.exp(found.logprobs_NK.astype(float)).sum(-1), 1.0, atol=1e-6)


def test_a_large_vocabulary_keeps_its_ids():
    row = topk_row(np.array([[260_000, 3, 70_000]]), np.log([[0.5, 0.25, 0.125]]))
    found = there_and_back(row, code_for(row, 262_144))
    assert found.ids_NK.tolist() == [[3, 70_000, 260_000]]
    np.testing.assert_allclose(np.exp(found.logprobs_NK), [[0.25, 0.125, 0.5]], rtol=0.05)


def test_a_token_that_is_impossible_does_not_become_infinite():
    row = topk_row(np.array([[1, 2]]), np.array([[0.0, -np.inf]]))
    found = there_and_back(row, code_for(row))
    assert np.isfinite(found.logprobs_NK).all()
    assert found.logprobs_NK[0, 1] < -50


def test_where_fewer_tokens_are_known_the_first_stands_again_with_no_probability():
    ids, p = np.array([[7, 5, -1], [9, 8, 3]]), np.array([[0.5, 0.25, 1.0], [0.5, 0.25, 0.125]])
    row = topk_row(ids, np.log(p))
    found = there_and_back(row, code_for(row))
    assert found.ids_NK.tolist() == [[5, 7, 5], [3, 8, 9]]
    assert found.logprobs_NK[0, 2] == -np.inf
    np.testing.assert_allclose(np.exp(found.logprobs_NK[0, :2]), [0.25, 0.5], rtol=0.05)


def test_log_probabilities_of_another_temperature_are_right_at_that_one():
    given = logits(num=4)
    ids = np.argsort(-given, axis=-1)[:, :8]
    p = np.take_along_axis(softmax(given, 2.0), ids, -1)
    row = topk_row(ids, np.log(p), temperature=2.0)
    found = there_and_back(row, code_for(row, temperatures=(2.0,)), 2.0)
    np.testing.assert_allclose(np.exp(found.logprobs_NK).sum(-1), p.sum(-1), atol=5e-4)
    first = np.take_along_axis(softmax(given, 2.0), found.ids_NK, -1)
    np.testing.assert_allclose(found.logprobs_NK, np.log(first), atol=0.14)


def test_draws_come_back_as_they_were_made():
    row = Row(np.array([[4, -1, 2, 1], [9, -1, -1, -1]]), np.array([[1, 0, 5, 2], [8, 0, 0, 0]]))
    found = there_and_back(row, code_for(row, step=0.0, temperatures=()), None)
    assert found.ids_NK.tolist() == [[1, 2, 4], [9, -1, -1]]
    np.testing.assert_array_equal(found.weights_NK, [[0.25, 0.625, 0.125], [1, 0, 0]])


def test_rows_of_different_widths_are_joined():
    few, many = topk_row(np.array([[4]]), np.log([[0.5]])), largest(logits(num=2), 3)
    rows = [there_and_back(row, code_for(row)) for row in (few, many)]
    found = joined(rows)
    assert found.ids_NK.shape == (3, 3)
    assert found.ids_NK[0].tolist() == [4, 4, 4]
    assert found.logprobs_NK[0, 1:].tolist() == [-np.inf, -np.inf]
    assert np.array_equal(found.ids_NK[1:], rows[1].ids_NK)


def test_ids_take_what_their_distribution_allows():
    """Ids spread evenly: no code of sets is below log2 C(V, K), and this one is near it."""
    from math import comb, log2

    generator, k, vocab_size = np.random.default_rng(0), 16, 4096
    ids = np.stack([generator.permutation(vocab_size)[:k] for _ in range(400)])
    row = Row(ids, np.zeros_like(ids, float), np.zeros((400, 1)))
    written = written_row(row, code_for(row, vocab_size))
    bits = 8 * written.ids / len(ids)
    assert log2(comb(vocab_size, k)) < bits < 1.09 * log2(comb(vocab_size, k))


def test_common_ids_take_less_than_rare_ones():
    generator = np.random.default_rng(0)
    common = np.minimum(generator.zipf(1.3, (400, 1)), V - 1) % V
    row = Row(common, np.zeros((400, 1)), np.zeros((400, 1)))
    even = Row(generator.integers(0, V, (400, 1)), np.zeros((400, 1)), np.zeros((400, 1)))
    sizes = [written_row(one, code_for(one)).ids for one in (row, even)]
    assert sizes[0] < 0.8 * sizes[1]


def test_buckets_follow_one_another_over_the_whole_vocabulary():
    buckets = fit_buckets(np.array([0, 0, 5, 900]), 4, V)
    sizes = 1 << buckets.widths_B.astype(int)
    assert sizes[:-1].sum() < V <= sizes.sum()
    assert buckets.starts_B.tolist() == [0, *np.cumsum(sizes)[:-1]]
    assert sorted(buckets.ids_V) == list(range(V))


def test_a_table_of_common_tokens_is_kept_where_it_pays_and_comes_back():
    """Thirty tokens scattered over the ids take most of the room."""
    generator = np.random.default_rng(0)
    favourites = generator.permutation(V)[:30]
    ids = favourites[generator.integers(0, 30, (2000, 1))]
    row = Row(ids, np.zeros(ids.shape), np.zeros(ids.shape))
    rare, many = fit_buckets(generator.permutation(V)[:400], 400, V), fit_buckets(ids, 2000, V)
    assert not rare.classes_V.any()
    assert set(np.flatnonzero(many.classes_V)) == set(favourites)
    assert set(many.ids_V[:30]) == set(favourites)
    assert 8 * write_row(row, Code(many, 1.0, (1.0,))).ids / len(ids) < 10
    again = make_buckets(read_classes(write_classes(many.classes_V)), many.widths_B)
    assert all(np.array_equal(a, b) for a, b in zip(many, again, strict=True))


def test_the_sizes_by_part_add_up():
    row = largest(logits(), 16)
    written = written_row(row, code_for(row))
    assert written.ids + written.values + written.tail == len(written.data)
    assert written.tail == 2 * N
