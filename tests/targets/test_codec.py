"""What the codec gives back is what it was given, up to float16."""

import numpy as np
import pytest
import torch

from potstill.targets.codec import bytes_per_position, decode, encode

N, V = 500, 2203


def topk(k: int, *, scale: float = 4.0):
    generator = torch.Generator().manual_seed(0)
    logprobs = (scale * torch.randn(N, V, generator=generator)).log_softmax(-1)
    top = logprobs.topk(k, dim=-1)
    return top.indices.numpy(), top.values.numpy()


def kl(given, found):
    """KL over the kept tokens and one bucket for the rest, float64, per position."""
    p, q = np.exp(given.astype(np.float64)), np.exp(found.astype(np.float64))
    tails = np.clip(1 - p.sum(-1), 1e-300, 1), np.clip(1 - q.sum(-1), 1e-300, 1)
    return (p * (np.log(p) - np.log(q))).sum(-1) + tails[0] * np.log(tails[0] / tails[1])


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("k", [1, 16, 64])
def test_a_round_trip_costs_less_than_a_hundred_thousandth_of_a_nat(k, scale):
    ids, logprobs = topk(k, scale=scale)
    found_ids, found = decode(encode(ids, logprobs, vocab_size=V))
    assert np.array_equal(found_ids, ids)
    assert kl(logprobs, found).mean() < 1e-5


def test_kept_and_tail_sum_to_one_again():
    ids, logprobs = topk(64)
    encoded = encode(ids, logprobs, vocab_size=V)
    _, found = decode(encoded)
    total = np.exp(found.astype(np.float64)).sum(-1) + encoded.tail_N
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_a_large_vocabulary_keeps_its_ids():
    ids, logprobs = np.array([[70_000, 3]]), np.log([[0.5, 0.25]])
    found, _ = decode(encode(ids, logprobs, vocab_size=151_665))
    assert found.tolist() == [[70_000, 3]]


def test_a_token_that_is_impossible_does_not_become_infinite():
    ids, logprobs = np.array([[1, 2]]), np.array([[0.0, -np.inf]])
    _, found = decode(encode(ids, logprobs, vocab_size=V))
    assert np.isfinite(found).all()


def test_the_size_on_disk_is_what_the_arrays_take():
    for vocab_size in (V, 151_665):
        encoded = encode(*topk(64), vocab_size=vocab_size)
        assert sum(array.nbytes for array in encoded) == N * bytes_per_position(64, vocab_size)


def test_where_fewer_are_known_the_rest_has_no_probability_and_no_token_of_its_own():
    ids, logprobs = np.array([[5, 9, -1]]), np.log([[0.5, 0.25, 1.0]])
    found_ids, found = decode(encode(ids, logprobs, vocab_size=V, tail_N=np.array([0.25])))
    assert found_ids.tolist() == [[5, 9, 5]]
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.25, 0.0]], rtol=1e-3)
