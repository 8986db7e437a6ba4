"""The head without [N, V]: the same numbers as the definition, however it is cut up."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train.divergences import KINDS, at, name_of, softened, with_labels
from train.divergences import defined as divergence

from potstill.config import LossConfig
from potstill.errors import ConfigError, VocabMismatch
from potstill.train.fused import head_loss
from potstill.train.head import Head, LowRank
from potstill.train.targets import Sampled, TeacherHidden, TeacherLogits, TopK

N, V, H = 23, 61, 12
ALL = pytest.mark.parametrize("loss", KINDS, ids=name_of)
FORWARD = KINDS[0]
ROW = V * 4
"""Bytes of a position's logits in float32."""


def numbers(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def made(dtype=torch.float32, *, rows=N, bias=True, **head):
    """Hidden states, a head and labels; a teacher of another width."""
    hidden = numbers(rows, H, seed=1, dtype=dtype).requires_grad_()
    weight = numbers(V, H, seed=2, dtype=dtype).requires_grad_()
    bias_V = numbers(V, seed=3, dtype=dtype).requires_grad_() if bias else None
    labels = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(4))
    teacher = TeacherHidden(
        numbers(rows, 9, seed=5, dtype=dtype), Head(numbers(V, 9, seed=6, dtype=dtype))
    )
    return hidden, Head(weight, bias_V, **head), labels, teacher


def defined(hidden, head, labels, teacher, loss):
    """The loss of all positions in float64 by autograd, and its gradients."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, head.weight_VH, head.bias_V)]
    raw = F.linear(*leaves) * head.scale
    logits = raw if head.soft_cap is None else head.soft_cap * torch.tanh(raw / head.soft_cap)
    told = F.linear(teacher.hidden_NH.double(), teacher.head.weight_VH.double())
    total = with_labels(logits, labels, softened(logits, told, loss), loss).sum()
    total.backward()
    return total.detach(), [leaf.grad for leaf in leaves]


def gradients(hidden, head):
    return [x.grad for x in (hidden, head.weight_VH, head.bias_V) if x is not None]


@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"soft_cap": 5.0, "scale": 1.7}], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@ALL
def test_value_and_gradients_are_the_definitions(loss, temperature, head):
    loss = at(loss, temperature=temperature, sft_weight=0.25)
    hidden, head, labels, teacher = made(**head)
    found = head_loss(hidden, head, labels, loss, teacher, slice_bytes=10 * ROW)
    found.total.backward()
    total, expected = defined(hidden, head, labels, teacher, loss)
    torch.testing.assert_close(found.total.double(), total, atol=0, rtol=1e-5)
    for here, there in zip(gradients(hidden, head), expected, strict=True):
        scale = max(1.0, there.abs().max().item())
        torch.testing.assert_close(here.double() / scale, there / scale, atol=1e-5, rtol=0)


SLOPES = [
    pytest.param(loss, kind, id=f"{name_of(loss)}-{kind}")
    for loss in KINDS
    for kind in ("hidden", "topk", "sampled", "none")
    # Adaptive KL's weight is a constant to the gradient (compared with autograd above), and
    # draws serve forward KL alone.
    if loss.kind != "adaptive_kl" and (kind != "sampled" or loss.kind == "forward_kl")
]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("loss", "kind"), SLOPES)
def test_gradients_are_the_slopes_of_the_value(loss, kind, temperature):
    """Central differences in float64, along random directions of all inputs at once."""
    loss = at(loss, temperature=temperature, sft_weight=0.25)
    hidden, head, labels, teacher = made(torch.float64, rows=3, soft_cap=7.0)
    target, leaves = targets_of(teacher)[kind], (hidden, head.weight_VH, head.bias_V)

    def total(hidden, weight, bias):
        return head_loss(hidden, Head(weight, bias, 1.0, 7.0), labels, loss, target).total

    total(*leaves).backward()
    for seed in range(3):
        steps = [1e-5 * numbers(*x.shape, seed=seed, dtype=torch.float64) for x in leaves]
        expected = sum((x.grad * step).sum() for x, step in zip(leaves, steps, strict=True))
        with torch.no_grad():
            up, down = (
                total(*(x + sign * step for x, step in zip(leaves, steps, strict=True)))
                for sign in (1, -1)
            )
        torch.testing.assert_close((up - down) / 2, expected, atol=1e-9, rtol=1e-6)


def targets_of(teacher):
    logits = teacher.head.logits(teacher.hidden_NH)
    logprobs, ids = logits.log_softmax(-1).topk(5)
    p = logits.softmax(-1)
    drawn = torch.multinomial(p, 6, replacement=True, generator=torch.Generator().manual_seed(7))
    return {
        "hidden": teacher,
        "logits": TeacherLogits(logits),
        "topk": TopK(ids, logprobs),
        "sampled": Sampled(drawn, torch.full((len(p), 6), 1 / 6)),
        "none": None,
    }


@pytest.mark.parametrize("slice_rows", [1, 2, 7, 16])
@pytest.mark.parametrize("kind", ["hidden", "logits", "topk", "sampled", "none"])
def test_slices_change_nothing(kind, slice_rows):
    def run(slice_bytes):
        hidden, head, labels, teacher = made()
        loss = at(FORWARD, sft_weight=0.4, temperature=2.0)
        target = targets_of(teacher)[kind]
        found = head_loss(hidden, head, labels, loss, target, slice_bytes=slice_bytes)
        (found.total / 9).backward()
        return [found.total, found.sft_N, *gradients(hidden, head)]

    for here, there in zip(run(slice_rows * ROW * 2), run(None), strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def test_teacher_logits_and_teacher_hidden_states_are_one():
    hidden, head, labels, teacher = made()
    capped = TeacherHidden(teacher.hidden_NH, teacher.head._replace(soft_cap=3.0, scale=0.5))
    told = TeacherLogits(capped.head.logits(capped.hidden_NH))
    here, there = (head_loss(hidden, head, labels, FORWARD, x) for x in (capped, told))
    torch.testing.assert_close(here.divergence_N, there.divergence_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled", "none"])
def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same(kind):
    def run(is_frozen):
        hidden, head, labels, teacher = made(bias=False)
        head.weight_VH.requires_grad_(not is_frozen)
        head_loss(hidden, head, labels, FORWARD, targets_of(teacher)[kind]).total.backward()
        return hidden.grad, head.weight_VH.grad

    (frozen, nothing), (free, something) = run(True), run(False)
    assert nothing is None
    assert something is not None
    torch.testing.assert_close(frozen, free)


def test_a_tied_head_adds_to_the_gradient_of_the_embedding():
    _, _, labels, teacher = made()
    weight = numbers(V, H, seed=2).requires_grad_()
    ids = torch.arange(N)
    for fused in (True, False):
        hidden = torch.tanh(weight[ids])
        if fused:
            head_loss(hidden, Head(weight), labels, FORWARD, teacher).total.backward()
            found, weight.grad = weight.grad, None
        else:
            told = teacher.head.logits(teacher.hidden_NH)
            softened(F.linear(hidden, weight), told, FORWARD).sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-5, rtol=1e-5)


def test_without_a_graph_the_values_are_the_same():
    hidden, head, labels, teacher = made()
    with_graph = head_loss(hidden, head, labels, FORWARD, teacher)
    with torch.no_grad():
        without = head_loss(hidden, head, labels, FORWARD, teacher)
    assert not without.total.requires_grad
    torch.testing.assert_close(without.total, with_graph.total.detach())
    torch.testing.assert_close(without.sft_N, with_graph.sft_N)
    assert not with_graph.sft_N.requires_grad


def test_a_second_backward_pass_is_refused():
    hidden, head, labels, _ = made()
    total = head_loss(hidden, head, labels, LossConfig()).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        total.backward()


def test_no_positions_give_no_loss():
    hidden, head, labels, _ = made(rows=0)
    found = head_loss(hidden, head, labels, LossConfig())
    found.total.backward()
    assert found.total.item() == 0.0
    assert not head.weight_VH.grad.any()


def test_a_low_rank_update_of_the_head_is_followed():
    hidden, head, labels, teacher = made(bias=False)
    down, up = (numbers(*s, seed=8).requires_grad_() for s in ((3, H), (V, 3)))
    head.weight_VH.requires_grad_(False)
    head = head._replace(low_rank=LowRank(down, up, 0.5, nn.Identity()))
    leaves = (hidden, down, up)
    head_loss(hidden, head, labels, FORWARD, teacher, slice_bytes=16 * ROW).total.backward()
    found = [leaf.grad for leaf in leaves]
    told = teacher.head.logits(teacher.hidden_NH)
    total = softened(head.logits(hidden), told, FORWARD).sum()
    for here, there in zip(found, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def errors(rows, loss, *, autocast, slice_bytes):
    """Relative errors of ours and of plain torch, in bfloat16, against float64."""
    hidden, head, labels, teacher = made(rows=rows)
    total, expected = defined(hidden, head, labels, teacher, loss)
    told = teacher.head.logits(teacher.hidden_NH)
    dtype = torch.float32 if autocast else torch.bfloat16
    found = []
    for fused in (True, False):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (hidden, *head[:2])]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fused:
                target, own = TeacherLogits(told), Head(*leaves[1:])
                here = head_loss(leaves[0], own, labels, loss, target, slice_bytes=slice_bytes)
                here = here.total
            else:
                q = (F.linear(*leaves).float() / loss.temperature).softmax(-1)
                p = (told / loss.temperature).softmax(-1)
                power = 1 if loss.kind == "total_variation" else 2
                here = loss.temperature**power * divergence(p, q, loss).sum()
        here.backward()
        found.append(
            [abs(here.item() / total.item() - 1)]
            + [
                ((leaf.grad.double() - exact).norm() / exact.norm()).item()
                for leaf, exact in zip(leaves, expected, strict=True)
            ]
        )
    return found


@pytest.mark.parametrize("autocast", [True, False])
@ALL
def test_in_bfloat16_the_error_is_no_larger_than_plain_torchs(loss, autocast):
    ours, plain = errors(400, at(loss, temperature=2.0), autocast=autocast, slice_bytes=None)
    # A bias is a sum of few numbers here: one rounding less or more turns out either way.
    for here, there, most in zip(ours, plain, (1.02, 1.02, 1.02, 1.1), strict=True):
        assert here <= most * there + 1e-6, (ours, plain)


@pytest.mark.parametrize("autocast", [True, False])
@ALL
def test_slices_add_little_to_the_error_in_bfloat16(loss, autocast):
    """Each slice's part of the head's gradient is rounded once before it is added in float32."""
    ours, plain = errors(400, at(loss, temperature=2.0), autocast=autocast, slice_bytes=50 * V * 2)
    for here, there in zip(ours, plain, strict=True):
        assert here <= 1.15 * there + 1e-6, (ours, plain)


def test_many_slices_do_not_wear_away_the_gradient_of_the_head():
    """In bfloat16 the sum over 100 slices would stand still long before its end."""
    hidden, head, labels, _ = made(torch.bfloat16, bias=False)
    many = hidden.detach()[:1].expand(800, -1).contiguous().requires_grad_()
    head_loss(many, head, labels[:1].expand(800), LossConfig(), slice_bytes=V * 2).total.backward()
    one = hidden.detach()[:1].clone().requires_grad_()
    weight = head.weight_VH.detach().clone().requires_grad_()
    head_loss(one, Head(weight), labels[:1], LossConfig()).total.backward()
    ratio = head.weight_VH.grad.float().norm() / weight.grad.float().norm()
    assert ratio.item() == pytest.approx(800, rel=5e-3)


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd", "skew_forward_kl", "total_variation"])
def test_sampled_targets_are_refused_where_they_do_not_suffice(kind):
    hidden, head, labels, teacher = made()
    target = targets_of(teacher)["sampled"]
    with pytest.raises(ConfigError, match=f"{kind} needs the probability of each token.*topk"):
        head_loss(hidden, head, labels, LossConfig(kind=kind), target)


def test_heads_of_different_width_need_the_size_of_the_tokenizer():
    hidden, head, labels, _ = made()
    told = TeacherLogits(numbers(N, V + 3))
    with pytest.raises(VocabMismatch, match=r"61 tokens and the teacher for 64.*loss.kind: sft"):
        head_loss(hidden, head, labels, FORWARD, told)
    with pytest.raises(VocabMismatch, match="the student has logits for 61 tokens but"):
        head_loss(hidden, head, labels, FORWARD, told, num_shared=V + 1)
    labels = labels.clamp(max=V - 6)
    here = head_loss(hidden, head, labels, FORWARD, told, num_shared=V - 5)
    short = TeacherLogits(told.logits_NV[:, : V - 5])
    there = head_loss(hidden, head, labels, FORWARD, short, num_shared=V - 5)
    torch.testing.assert_close(here.divergence_N, there.divergence_N)
