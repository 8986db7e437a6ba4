"""Losses four ways: the definition in float64, a limit, the gradient, an inequality."""

import pytest
import torch

from potstill.train.losses import cross_entropy, forward_kl, forward_kl_topk

N, V = 7, 33


@pytest.fixture
def logits():
    return 3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0))


def topk(teacher, k, temperature=1.0):
    logprobs, ids = (teacher / temperature).log_softmax(-1).topk(k)
    return ids, logprobs


def merged_kl(student, ids, logprobs, temperature):
    """The definition: an outcome for each kept token and one for all others, in float64."""
    q = (student.double() / temperature).softmax(-1)
    p_kept, q_kept = logprobs.double().exp(), q.gather(-1, ids)
    p = torch.cat([p_kept, 1 - p_kept.sum(-1, keepdim=True)], dim=-1)
    q = torch.cat([q_kept, 1 - q_kept.sum(-1, keepdim=True)], dim=-1)
    return temperature**2 * (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_forward_kl_is_the_definition_written_out(logits, temperature):
    student, teacher = logits
    p, q = ((x.double() / temperature).softmax(-1) for x in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum(-1)
    found = forward_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, by_hand.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_topk_is_the_definition_written_out(logits, k, temperature):
    student, teacher = logits
    ids, logprobs = topk(teacher, k, temperature)
    found = forward_kl_topk(student, ids, logprobs, temperature=temperature)
    by_hand = merged_kl(student, ids, logprobs, temperature).float()
    torch.testing.assert_close(found, by_hand, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_topk_has_the_gradient_of_its_definition(logits, temperature):
    student, teacher = logits
    ids, logprobs = topk(teacher, 4, temperature)
    here, there = (student.clone().requires_grad_() for _ in range(2))
    forward_kl_topk(here, ids, logprobs, temperature=temperature).sum().backward()
    merged_kl(there, ids, logprobs, temperature).sum().backward()
    torch.testing.assert_close(here.grad, there.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4, V])
def test_topk_is_a_lower_bound_and_exact_at_full_width(logits, k):
    student, teacher = logits
    sparse = forward_kl_topk(student, *topk(teacher, k))
    dense = forward_kl(student, teacher)
    assert (sparse <= dense + 1e-5).all()
    assert (sparse >= -1e-5).all()
    if k == V:
        torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-4)


def test_a_model_agrees_with_itself(logits):
    _, teacher = logits
    torch.testing.assert_close(forward_kl(teacher, teacher), torch.zeros(N))
    itself = forward_kl_topk(teacher, *topk(teacher, 4))
    torch.testing.assert_close(itself, torch.zeros(N), atol=1e-6, rtol=0)


def test_a_confident_student_still_feels_the_tail():
    """1 - sum(q) is 0 in float32 here, and a tail computed so would have no gradient."""
    student = torch.zeros(1, V)
    student[0, 0] = 40.0
    student.requires_grad_()
    ids, logprobs = torch.tensor([[0]]), torch.tensor([[0.9]]).log()
    found = forward_kl_topk(student, ids, logprobs)
    found.sum().backward()
    expected = 0.9 * torch.tensor(0.9).log() + 0.1 * (torch.tensor(0.1).log() + 40 - 3.4657)
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=1e-3)
    assert student.grad[0, 0].item() == pytest.approx(0.1, abs=1e-4)


def test_temperature_keeps_the_gradient_in_scale(logits):
    """Without the factor T^2 the gradient at T = 8 would be about 64 times smaller."""
    student, teacher = logits

    def norm(temperature: float) -> float:
        leaf = student.clone().requires_grad_()
        targets = topk(teacher, 8, temperature)
        forward_kl_topk(leaf, *targets, temperature=temperature).sum().backward()
        return leaf.grad.norm().item()

    assert 0.2 < norm(8.0) / norm(1.0) < 8.0


def test_the_teacher_gets_no_gradient(logits):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    forward_kl(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_cross_entropy_is_the_log_probability_of_the_label(logits):
    student, _ = logits
    labels = torch.arange(N)
    by_hand = -student.double().softmax(-1)[labels, labels].log()
    torch.testing.assert_close(cross_entropy(student, labels), by_hand.float())


def test_half_precision_logits_are_computed_in_float32(logits):
    student, teacher = logits.bfloat16()
    ids, logprobs = topk(teacher.float(), 4)
    found = forward_kl_topk(student, ids, logprobs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, forward_kl_topk(student.float(), ids, logprobs))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(logits, temperature):
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        forward_kl(*logits, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        forward_kl_topk(logits[0], *topk(logits[1], 2), temperature=temperature)


def test_a_vocabulary_mismatch_says_what_to_do():
    with pytest.raises(ValueError, match=r"\(7, 33\).*\(7, 40\).*loss.kind: sft"):
        forward_kl(torch.zeros(7, 33), torch.zeros(7, 40))


def test_places_without_a_token_change_neither_loss_nor_gradient(logits):
    student, teacher = logits
    ids, logprobs = topk(teacher, 4)
    padded = (
        torch.cat([ids, ids[:, :1].expand(N, 3)], dim=-1),
        torch.cat([logprobs, torch.full((N, 3), -torch.inf)], dim=-1),
    )
    here, there = (student.clone().requires_grad_() for _ in range(2))
    few, many = forward_kl_topk(here, ids, logprobs), forward_kl_topk(there, *padded)
    torch.testing.assert_close(many, few)
    few.sum().backward()
    many.sum().backward()
    torch.testing.assert_close(there.grad, here.grad)


def test_a_certain_token_alone_is_the_loss_on_its_text(logits):
    student, _ = logits
    labels = torch.arange(N)
    ids = labels[:, None].expand(N, 3)
    certain = torch.tensor([0.0, -torch.inf, -torch.inf]).expand(N, 3)
    torch.testing.assert_close(
        forward_kl_topk(student, ids, certain), cross_entropy(student, labels)
    )
