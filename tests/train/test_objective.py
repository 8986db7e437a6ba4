"""From a batch to a loss: which head is used, what is called what, what is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from train.divergences import KINDS, at, defined, name_of, with_labels
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from potstill.config import LossConfig
from potstill.errors import TrainError
from potstill.train.head import head_of
from potstill.train.objective import Objective, TeacherTargets
from potstill.train.targets import Sampled, TeacherLogits, TopK

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SHARED = 90
"""The last seven rows of the head are padding."""


def student(*, tied=False):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def batch():
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(SHARED, (3, 8), generator=generator)
    loss_mask_BT = torch.zeros(3, 8, dtype=torch.int64)
    loss_mask_BT[:, 4:] = 1
    return ids_BT, loss_mask_BT


def teacher_logits():
    return 3 * torch.randn(12, SHARED, generator=torch.Generator().manual_seed(2))


def topk(k=5, temperature=1.0):
    logprobs, ids = (teacher_logits() / temperature).log_softmax(-1).topk(k)
    return TeacherTargets(TopK(ids, logprobs), SHARED)


def by_hand(model, ids_BT, targets, loss):
    """The loss from the whole model's logits, by autograd."""
    logits_NV = model(input_ids=ids_BT, use_cache=False).logits[:, 3:-1].reshape(12, -1)
    target = targets.target
    q = (logits_NV[:, :SHARED].double() / loss.temperature).softmax(-1)
    kept = [target.logprobs_NK.double().exp(), q.gather(-1, target.ids_NK)]
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in kept)
    power = 1 if loss.kind == "total_variation" else 2
    divergence = loss.temperature**power * defined(p, q, loss)
    return with_labels(logits_NV, ids_BT[:, 4:].reshape(-1), divergence, loss).sum()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("loss", KINDS, ids=name_of)
def test_every_loss_reaches_every_weight_as_if_all_logits_were_there(loss, tied):
    loss = at(loss, sft_weight=0.25, temperature=2.0)
    model, targets = student(tied=tied), topk(temperature=2.0)
    ids_BT, loss_mask_BT = batch()
    found = Objective(model, loss)(ids_BT, loss_mask_BT, None, targets)
    found.loss.backward()
    here = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = by_hand(model, ids_BT, targets, loss)
    expected.backward()
    torch.testing.assert_close(found.loss.double(), expected, atol=1e-5, rtol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(here[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert found.name == loss.kind


def test_what_samples_tell_has_a_name_of_its_own():
    drawn = torch.randint(SHARED, (12, 6), generator=torch.Generator().manual_seed(3))
    targets = TeacherTargets(Sampled(drawn, torch.full((12, 6), 1 / 6)), SHARED)
    loss = LossConfig(kind="forward_kl", sft_weight=0)
    found = Objective(student(), loss)(*batch(), None, targets)
    assert found.name == "soft_cross_entropy"
    assert found.divergence.item() == pytest.approx(found.loss.item())


def test_a_teacher_beside_the_student_is_one_of_the_targets():
    loss = LossConfig(kind="jsd", sft_weight=0)
    whole = TeacherTargets(TeacherLogits(teacher_logits()), SHARED)
    model = student()
    here, there = (Objective(model, loss)(*batch(), None, x).loss for x in (whole, topk(SHARED)))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-5)


def test_lora_on_the_head_learns():
    model = student()
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(model, settings).get_base_model()
    with torch.no_grad():
        model.lm_head.lora_B["default"].weight.normal_()
    loss, targets = LossConfig(kind="forward_kl", sft_weight=0.25), topk()
    ids_BT, loss_mask_BT = batch()
    found = Objective(model, loss)(ids_BT, loss_mask_BT, None, targets)
    found.loss.backward()
    here = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in here} == {"lora_A", "lora_B"}
    expected = by_hand(model, ids_BT, targets, loss)
    leaves = [p for p in model.parameters() if p.requires_grad]
    for (name, found), there in zip(
        here.items(), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, there, atol=1e-5, rtol=1e-4, msg=name)


def test_another_update_of_the_head_than_plain_lora_is_refused():
    settings = LoraConfig(r=2, target_modules=["lm_head"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(student(), settings).get_base_model()
    with pytest.raises(TrainError, match=r"LoRA update of a kind.*one plain adapter"):
        head_of(model)


def test_a_head_without_weights_of_its_own_is_refused():
    model = student()
    model.set_output_embeddings(nn.Sequential(model.lm_head))
    with pytest.raises(TrainError, match=r"is a Sequential.*plain linear layer"):
        head_of(model)


def test_a_soft_cap_of_the_family_is_in_the_head():
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=4.0)
    assert head_of(Gemma2ForCausalLM(config)).soft_cap == 4.0
