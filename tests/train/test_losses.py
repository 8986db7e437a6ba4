"""Divergences four ways: the definition in float64, a limit, the gradient, an inequality."""

import math

import pytest
import torch
from train.divergences import KINDS, at, name_of, ours, softened, with_labels

from potstill.config import LossConfig
from potstill.train.losses import cross_entropy
from potstill.train.targets import TeacherLogits

N, V = 7, 33
ALL = pytest.mark.parametrize("loss", KINDS, ids=name_of)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
FORWARD, REVERSE = KINDS[:2]


@pytest.fixture
def logits():
    return 3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0))


def value(student, teacher, loss):
    return ours(student, TeacherLogits(teacher), loss).divergence_N


def gradient(student, teacher, loss):
    return ours(student, TeacherLogits(teacher), loss).gradient_NV


def gradient_by_autograd(student, function):
    leaf = student.double().requires_grad_()
    function(leaf).sum().backward()
    return leaf.grad


@TEMPERATURES
@ALL
def test_the_value_is_the_definition_written_out(logits, loss, temperature):
    student, teacher = logits
    loss = at(loss, temperature=temperature)
    by_hand = softened(student, teacher, loss).float()
    torch.testing.assert_close(value(student, teacher, loss), by_hand, atol=1e-5, rtol=1e-5)


@TEMPERATURES
@ALL
def test_the_gradient_is_that_of_the_definition(logits, loss, temperature):
    student, teacher = logits
    loss = at(loss, temperature=temperature)
    by_hand = gradient_by_autograd(student, lambda leaf: softened(leaf, teacher, loss)).float()
    torch.testing.assert_close(gradient(student, teacher, loss), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_shared", [V, V - 4])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_label_is_mixed_in_over_the_whole_head(logits, num_shared, temperature, weight):
    student, teacher = logits
    labels = torch.arange(N)
    loss = at(KINDS[2], sft_weight=weight, temperature=temperature)

    def by_hand(leaf):
        divergence = softened(leaf[:, :num_shared], teacher[:, :num_shared], loss)
        return with_labels(leaf, labels, divergence, loss)

    found = ours(student, TeacherLogits(teacher), loss, labels, num_shared)
    mixed = weight * found.sft_N + (1 - weight) * found.divergence_N
    torch.testing.assert_close(mixed, by_hand(student).float(), atol=1e-5, rtol=1e-5)
    expected = gradient_by_autograd(student, by_hand).float()
    torch.testing.assert_close(found.gradient_NV, expected, atol=1e-5, rtol=1e-5)


@ALL
def test_padding_rows_change_nothing(logits, loss):
    student, teacher = logits
    wide = torch.cat([student, torch.zeros(N, 5)], -1)
    alone = ours(student, TeacherLogits(teacher), loss)
    padded = ours(wide, TeacherLogits(teacher), loss, num_shared=V)
    torch.testing.assert_close(padded.divergence_N, alone.divergence_N)
    torch.testing.assert_close(padded.gradient_NV[:, :V], alone.gradient_NV)
    assert not padded.gradient_NV[:, V:].any()


@ALL
def test_a_model_agrees_with_itself(logits, loss):
    _, teacher = logits
    torch.testing.assert_close(value(teacher, teacher, loss), torch.zeros(N), atol=1e-6, rtol=0)
    zeros = torch.zeros(N, V)
    torch.testing.assert_close(gradient(teacher, teacher, loss), zeros, atol=1e-6, rtol=0)


@ALL
def test_a_constant_added_to_logits_changes_nothing(logits, loss):
    student, teacher = logits
    found = value(student + 5.0, teacher - 7.0, loss)
    torch.testing.assert_close(found, value(student, teacher, loss), atol=1e-5, rtol=1e-5)


@ALL
def test_a_gradient_moves_no_constant(logits, loss):
    found = gradient(*logits, loss)
    assert (found.sum(-1).abs() <= 5e-6 * found.abs().sum(-1).clamp_min(1)).all()


def test_normalized_jsd_tends_to_both_kls(logits):
    student, teacher = logits.double() / 3
    for beta, end in ((1e-8, FORWARD), (1 - 1e-8, REVERSE)):
        loss = LossConfig(kind="jsd", beta=beta, sft_weight=0)
        for function in (value, gradient):
            expected = function(student, teacher, end)
            torch.testing.assert_close(
                function(student, teacher, loss), expected, atol=1e-4, rtol=1e-4
            )


def test_raw_jsd_shrinks_towards_its_ends_and_jumps_there(logits):
    student, teacher = logits.double() / 10
    near, end = (
        LossConfig(kind="jsd", beta=beta, normalized=False, sft_weight=0) for beta in (1e-4, 0)
    )
    forward = value(student, teacher, FORWARD)
    torch.testing.assert_close(value(student, teacher, near) / 1e-4, forward, atol=0, rtol=1e-2)
    torch.testing.assert_close(value(student, teacher, end), forward)


@pytest.mark.parametrize("alpha", [0, 1e-9])
def test_without_skew_the_kls_remain(logits, alpha):
    student, teacher = logits.double() / 3
    for kind, end in (("skew_forward_kl", FORWARD), ("skew_reverse_kl", REVERSE)):
        loss = LossConfig(kind=kind, alpha=alpha, sft_weight=0)
        for function in (value, gradient):
            expected = function(student, teacher, end)
            torch.testing.assert_close(
                function(student, teacher, loss), expected, atol=1e-5, rtol=1e-5
            )


@ALL
def test_no_divergence_is_negative_and_each_keeps_its_bound(logits, loss):
    student, teacher = 4 * logits
    found = value(student, teacher, loss)
    most = {"total_variation": 1.0, "jsd": math.log(2) if not loss.normalized else math.inf}
    if loss.kind.startswith("skew"):
        most[loss.kind] = -math.log(loss.alpha)
    assert (found >= -1e-6).all()
    assert (found <= most.get(loss.kind, math.inf) + 1e-6).all()


def test_total_variation_is_bounded_by_both_kls(logits):
    """Pinsker: 2 TV^2 <= KL."""
    variation = value(*logits, KINDS[-1])
    for loss in (FORWARD, REVERSE):
        assert (2 * variation**2 <= value(*logits, loss) + 1e-6).all()


@ALL
def test_near_the_teacher_every_divergence_is_a_known_share_of_forward_kl(logits, loss):
    """All f-divergences are alike there: f''(1) / 2 of the same square, skew and raw JSD less."""
    teacher = logits[1].double()
    near = teacher + 1e-3 * logits[0].double()
    if loss.kind == "total_variation":
        p, q = teacher.softmax(-1), near.softmax(-1)
        expected = (p * (1 - q / p).abs()).sum(-1) / 2
    else:
        share = (1 - loss.alpha) ** 2 if loss.kind.startswith("skew") else 1.0
        if not loss.normalized:
            share = loss.beta * (1 - loss.beta)
        expected = share * value(near, teacher, FORWARD)
    torch.testing.assert_close(value(near, teacher, loss), expected, atol=0, rtol=2e-2)


def test_the_furthest_apart_that_two_models_can_be():
    """Each is certain, of another token: what each divergence tends to there."""
    student, teacher = torch.zeros(2, 1, V, dtype=torch.float64)
    student[:, 0], teacher[:, 1] = 80.0, 80.0

    def found(**loss):
        return value(student, teacher, LossConfig(sft_weight=0, **loss)).item()

    assert found(kind="total_variation") == pytest.approx(1.0)
    for beta in (0.1, 0.5, 0.9):
        raw = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
        assert found(kind="jsd", beta=beta, normalized=False) == pytest.approx(raw)
        assert found(kind="jsd", beta=beta) == pytest.approx(raw / (beta * (1 - beta)))
    for kind in ("skew_forward_kl", "skew_reverse_kl"):
        assert found(kind=kind, alpha=0.1) == pytest.approx(-math.log(0.1))
    for kind in ("forward_kl", "reverse_kl", "adaptive_kl"):
        assert found(kind=kind) == pytest.approx(80.0)


def test_adaptive_kl_lies_between_both_kls(logits):
    both = torch.stack([value(*logits, loss) for loss in (FORWARD, REVERSE)])
    found = value(*logits, LossConfig(kind="adaptive_kl", sft_weight=0))
    assert (found >= both.amin(0) - 1e-5).all() and (found <= both.amax(0) + 1e-5).all()
    assert (found - both).abs().min() > 1e-3, "it is neither of them"


@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_skew_takes_more_than_its_share_off_a_kl(logits, alpha, scale):
    """KL is convex: KL(p || alpha p + (1 - alpha) q) <= (1 - alpha) KL(p || q)."""
    student, teacher = scale * logits.double()
    for kind, whole in (("skew_forward_kl", FORWARD), ("skew_reverse_kl", REVERSE)):
        found = value(student, teacher, LossConfig(kind=kind, alpha=alpha, sft_weight=0))
        share = found / value(student, teacher, whole)
        assert (share <= 1 - alpha).all()
        if scale < 1:  # near each other both are squares of the difference
            assert (share <= 1.15 * (1 - alpha) ** 2).all()


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_jsd_is_the_same_from_the_other_side(logits, beta):
    student, teacher = logits
    here = value(student, teacher, LossConfig(kind="jsd", beta=beta, sft_weight=0))
    there = value(teacher, student, LossConfig(kind="jsd", beta=1 - beta, sft_weight=0))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


@ALL
def test_the_temperature_keeps_the_gradient_in_scale(logits, loss):
    """Without its factor the gradient at T = 16 would be 256 times smaller (16 for variation)."""
    small = logits / 3
    norms = [gradient(*small, at(loss, temperature=t)).norm().item() for t in (8.0, 16.0)]
    assert 0.8 < norms[1] / norms[0] < 1.25


@ALL
def test_certain_distributions_give_finite_numbers(loss):
    student, teacher = torch.zeros(2, V), torch.zeros(2, V)
    student[:, 0], teacher[:, 1] = 200.0, 200.0
    found = ours(student, TeacherLogits(teacher), loss)
    assert found.divergence_N.isfinite().all()
    assert found.gradient_NV.isfinite().all()


@ALL
def test_tokens_that_the_teacher_rules_out_give_no_nan(logits, loss):
    student, teacher = logits
    teacher = teacher.clone()
    teacher[:, 3] = -math.inf
    found = ours(student, TeacherLogits(teacher), loss)
    assert not found.divergence_N.isnan().any()
    assert not found.gradient_NV.isnan().any()


def test_adaptive_kl_finds_a_head_beyond_sixty_four_tokens():
    flat = torch.zeros(2, 300, dtype=torch.float64)
    flat[:, ::7] += 0.1
    student = torch.linspace(0, 1, 300, dtype=torch.float64).expand(2, -1)
    loss = LossConfig(kind="adaptive_kl", sft_weight=0)
    torch.testing.assert_close(value(student, flat, loss), softened(student, flat, loss))


def test_cross_entropy_is_the_log_probability_of_the_label(logits):
    student, _ = logits
    labels = torch.arange(N)
    by_hand = -student.double().softmax(-1)[labels, labels].log()
    for weight in (None, 1.0):
        found = cross_entropy(student, labels, weight=weight)
        torch.testing.assert_close(found.value_N, by_hand.float())


@ALL
def test_half_precision_logits_are_computed_in_float32(logits, loss):
    student, teacher = logits.bfloat16()
    found = value(student, teacher, loss)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value(student.float(), teacher.float(), loss))
