"""The loss on draws: cross entropy with soft labels, and its gradient is the teacher's."""

import torch

from potstill.train.losses import soft_cross_entropy

N, V = 3, 11


def test_it_is_the_weighted_cross_entropy_and_absent_draws_count_nothing():
    student = torch.randn(N, V, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 5, -1], [0, -1, -1], [10, 3, 4]])
    weights = torch.tensor([[0.25, 0.75, 0], [1, 0, 0], [0.5, 0.25, 0.25]])
    found = soft_cross_entropy(student, ids, weights, temperature=2.0)
    dense = torch.zeros(N, V)
    for row in range(N):
        for id_, weight in zip(ids[row], weights[row], strict=True):
            if id_ >= 0:
                dense[row, id_] += weight
    by_hand = -4 * (dense * (student / 2).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(found, by_hand)


def test_its_gradient_is_student_minus_weights():
    student = torch.randn(1, V, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids, weights = torch.tensor([[2, 5]]), torch.tensor([[0.25, 0.75]])
    soft_cross_entropy(student, ids, weights).sum().backward()
    wanted = student.detach().softmax(-1)
    wanted[0, ids[0]] -= weights[0]
    torch.testing.assert_close(student.grad, wanted)
