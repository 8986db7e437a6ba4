"""Teachers of whom only some probabilities are known."""

import pytest
import torch
from train.divergences import KINDS, at, defined, name_of, ours, softened, with_labels

from potstill.config import LossConfig
from potstill.train.sparse import SMALLEST_TAIL
from potstill.train.targets import Sampled, TeacherLogits, TopK

N, V = 7, 33
ALL = pytest.mark.parametrize("loss", KINDS, ids=name_of)
FORWARD, REVERSE = KINDS[:2]


@pytest.fixture
def logits():
    return 3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0))


def topk(teacher, k, temperature=1.0):
    logprobs, ids = (teacher.double() / temperature).log_softmax(-1).topk(k)
    return TopK(ids, logprobs)


def merged(student, target, loss):
    """The definition: an outcome for each kept token and one for all others, in float64."""
    q = (student.double() / loss.temperature).softmax(-1)
    kept = [target.logprobs_NK.double().exp(), q.gather(-1, target.ids_NK)]
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], dim=-1) for x in kept)
    p[:, -1].clamp_(min=SMALLEST_TAIL)
    power = 1 if loss.kind == "total_variation" else 2
    return loss.temperature**power * defined(p, q, loss)


def gradient_by_autograd(student, function):
    leaf = student.double().requires_grad_()
    function(leaf).sum().backward()
    return leaf.grad.float()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 4, 16])
@ALL
def test_topk_is_the_definition_over_merged_outcomes(logits, loss, k, temperature):
    student, teacher = logits
    loss, target = at(loss, temperature=temperature), topk(teacher, k, temperature)
    found = ours(student, target, loss)
    by_hand = merged(student, target, loss).float()
    torch.testing.assert_close(found.divergence_N, by_hand, atol=2e-5, rtol=1e-5)
    expected = gradient_by_autograd(student, lambda leaf: merged(leaf, target, loss))
    torch.testing.assert_close(found.gradient_NV, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_topk_mixes_with_the_label(logits, temperature):
    student, teacher = logits
    target, labels = topk(teacher, 4, temperature), torch.arange(N)
    loss = LossConfig(kind="reverse_kl", sft_weight=0.3, temperature=temperature)

    def by_hand(leaf):
        return with_labels(leaf, labels, merged(leaf, target, loss), loss)

    found = ours(student, target, loss, labels)
    mixed = 0.3 * found.sft_N + 0.7 * found.divergence_N
    torch.testing.assert_close(mixed, by_hand(student).float(), atol=1e-5, rtol=1e-5)
    expected = gradient_by_autograd(student, by_hand)
    torch.testing.assert_close(found.gradient_NV, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4, V])
@ALL
def test_topk_is_a_lower_bound_and_exact_at_full_width(logits, loss, k):
    student, teacher = logits
    sparse = ours(student, topk(teacher, k), loss)
    dense = ours(student, TeacherLogits(teacher), loss)
    assert (sparse.divergence_N >= -1e-5).all()
    if loss.kind != "adaptive_kl":
        assert (sparse.divergence_N <= dense.divergence_N + 1e-5).all()
    if k == V:
        for here, there in (
            (sparse.divergence_N, dense.divergence_N),
            (sparse.gradient_NV, dense.gradient_NV),
        ):
            torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)


@ALL
def test_topk_agrees_with_the_model_it_was_taken_from(logits, loss):
    _, teacher = logits
    found = ours(teacher, topk(teacher, 4), loss)
    torch.testing.assert_close(found.divergence_N, torch.zeros(N), atol=1e-6, rtol=0)
    if loss.kind != "total_variation":  # it has a kink there, and rounding decides the side
        torch.testing.assert_close(found.gradient_NV, torch.zeros(N, V), atol=1e-6, rtol=0)


def test_a_confident_student_still_feels_the_tail():
    """1 - sum(q) is 0 in float32 here, and a tail computed so would have no gradient."""
    student = torch.zeros(1, V)
    student[0, 0] = 40.0
    target = TopK(torch.tensor([[0]]), torch.tensor([[0.9]]).log())
    found = ours(student, target, FORWARD)
    expected = 0.9 * torch.tensor(0.9).log() + 0.1 * (torch.tensor(0.1).log() + 40 - 3.4657)
    torch.testing.assert_close(found.divergence_N[0], expected, atol=1e-3, rtol=1e-3)
    assert found.gradient_NV[0, 0].item() == pytest.approx(0.1, abs=1e-4)


@ALL
def test_a_tail_that_float32_cannot_see_costs_a_finite_price(logits, loss):
    student, _ = logits
    ids = torch.arange(2).expand(N, 2)
    found = ours(student, TopK(ids, torch.tensor([[0.75, 0.25]]).log().expand(N, 2)), loss)
    assert found.divergence_N.isfinite().all()
    assert (found.divergence_N < 1e3).all()
    assert found.gradient_NV.isfinite().all()


def drawn(teacher, num_draws, generator, head=0):
    """`head` tokens exactly and `num_draws` of the others, as importance weights."""
    p = teacher.double().softmax(-1)
    exact, ids = p.topk(head, dim=-1)
    rest = p.scatter(-1, ids, 0.0)
    mass = rest.sum(-1, keepdim=True)
    draws = torch.multinomial(rest, num_draws, replacement=True, generator=generator)
    weights = torch.cat([exact, (mass / num_draws).expand(-1, num_draws)], -1)
    return Sampled(torch.cat([ids, draws], -1), weights)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head", [0, 4])
def test_the_mean_over_samples_is_forward_kl(head, temperature):
    """Each coordinate of the gradient and the value, within three standard errors."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 1, V, generator=generator, dtype=torch.float64)
    many, loss = 20_000, at(FORWARD, temperature=temperature)
    target = drawn((teacher / temperature).expand(many, V), 3, generator, head)
    found = ours(student.expand(many, V), target, loss)
    exact = ours(student, TeacherLogits(teacher), loss)
    told = (teacher / temperature).log_softmax(-1)
    entropy = -(temperature**2) * (told.exp() * told).sum(-1)
    for samples, mean in (
        (found.gradient_NV, exact.gradient_NV[0]),
        (found.divergence_N[:, None], exact.divergence_N + entropy),
    ):
        stderr = samples.std(0) / many**0.5
        sigmas = (samples.mean(0) - mean).abs() / stderr.clamp_min(1e-12)
        assert (sigmas < 3.5).all(), sigmas
        assert (sigmas < 3).float().mean() > 0.95


def test_a_sample_of_every_token_is_exact(logits):
    student, teacher = logits
    p = teacher.softmax(-1)
    found = ours(student, Sampled(torch.arange(V).expand(N, V), p), FORWARD)
    exact = ours(student, TeacherLogits(teacher), FORWARD)
    entropy = -(p * p.log()).sum(-1)
    torch.testing.assert_close(
        found.divergence_N, exact.divergence_N + entropy, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(found.gradient_NV, exact.gradient_NV, atol=1e-6, rtol=1e-5)


def test_draws_that_repeat_add_up_and_missing_ones_count_nothing(logits):
    student, _ = logits
    ids = torch.tensor([[5, 9, 5, -1]]).expand(N, 4)
    weights = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).expand(N, 4)
    once = Sampled(torch.tensor([[5, 9]]).expand(N, 2), torch.tensor([[0.5, 0.5]]).expand(N, 2))
    for here, there in zip(
        ours(student, Sampled(ids, weights), FORWARD), ours(student, once, FORWARD), strict=True
    ):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_sampled_targets_mix_with_the_label(logits, weight):
    student, teacher = logits
    target = drawn(teacher, 5, torch.Generator().manual_seed(2), head=3)
    labels, loss = torch.arange(N), LossConfig(kind="forward_kl", sft_weight=weight)

    def by_hand(leaf):
        picked = leaf.log_softmax(-1).gather(-1, target.ids_NK)
        return with_labels(leaf, labels, -(target.weights_NK * picked).sum(-1), loss)

    found = ours(student, target, loss, labels)
    expected = gradient_by_autograd(student, by_hand)
    torch.testing.assert_close(found.gradient_NV, expected, atol=1e-5, rtol=1e-5)


def test_softened_agrees_with_merged_at_full_width(logits):
    """The two definitions of these tests are one."""
    student, teacher = logits / 3
    for loss in KINDS[:2]:
        here = merged(student, topk(teacher.double(), V - 1), loss)
        torch.testing.assert_close(here, softened(student, teacher, loss), atol=1e-6, rtol=1e-6)


@ALL
def test_places_without_a_token_change_neither_loss_nor_gradient(logits, loss):
    student, teacher = logits
    few = topk(teacher, 4)
    many = TopK(
        torch.cat([few.ids_NK, few.ids_NK[:, :1].expand(N, 3)], dim=-1),
        torch.cat([few.logprobs_NK, torch.full((N, 3), -torch.inf)], dim=-1),
    )
    for here, there in zip(ours(student, many, loss), ours(student, few, loss), strict=True):
        torch.testing.assert_close(here, there)


def test_a_certain_token_alone_is_the_loss_on_its_text(logits):
    student, _ = logits
    labels = torch.arange(N)
    certain = torch.tensor([0.0, -torch.inf, -torch.inf]).expand(N, 3)
    found = ours(student, TopK(labels[:, None].expand(N, 3), certain), FORWARD, labels)
    torch.testing.assert_close(found.divergence_N, found.sft_N)
