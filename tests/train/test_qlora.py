"""Frozen weights in 4 bits: less memory, learning as with LoRA, and a plain model at the end."""

import sys

import pytest
import torch
from torch import nn
from training import quick, rows, run_dir, tiny_student
from transformers import AutoModelForCausalLM

from potstill.config import LossConfig
from potstill.errors import MissingExtra, TrainError
from potstill.train.loop import Training, fine_tune_student
from potstill.train.qlora import BITS, is_four_bit, plain_weights, to_four_bits
from potstill.train.student import merged, prepare_student

CPU = torch.device("cpu")
QLORA = {"kind": "qlora", "r": 4}


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip(
        "bitsandbytes", reason='no 4-bit layers here: pip install "potstill[qlora]"'
    )


def prepared(folder, **changes):
    model, tokenizer = tiny_student(folder, hidden=64)
    torch.manual_seed(0)
    return prepare_student(model, quick(adapter=QLORA, **changes), CPU), tokenizer


def linear(model):
    return {n: m for n, m in model.base_model.named_modules() if isinstance(m, nn.Linear)}


def test_the_backbone_is_in_four_bits_and_head_and_word_vectors_are_not(bitsandbytes, tmp_path):
    model, _ = tiny_student(tmp_path / "m", hidden=64)
    exact = {name: m.weight.detach().clone() for name, m in linear(model).items()}
    head, words = model.lm_head.weight.clone(), model.get_input_embeddings().weight.clone()
    to_four_bits(model, CPU, torch.float32)
    assert is_four_bit(model)
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.get_input_embeddings().weight, words)
    found = linear(model)
    assert found.keys() == exact.keys() and len(found) == 14
    for name, layer in found.items():
        state = layer.weight.quant_state
        num_bytes = layer.weight.nbytes + state.absmax.nbytes
        # Tables of 256 and 16 numbers are shared by all layers of a model that is not tiny.
        assert num_bytes * 8 / exact[name].numel() == pytest.approx(BITS, abs=0.01)
        error = (plain_weights(layer) - exact[name]).norm() / exact[name].norm()
        assert 0.01 < error < 0.12, name


def learned(student, tokenizer):
    """By how much the loss falls."""
    train = quick(adapter=QLORA, learning_rate=2e-2)
    training = Training(student, tokenizer, rows(tokenizer), [], LossConfig(), train, None)
    losses = [training.step()["train/loss_nats"] for _ in range(8)]
    return losses[0] - losses[-1]


def test_only_the_updates_learn_and_the_student_learns_by_them(bitsandbytes, tmp_path):
    student, tokenizer = prepared(tmp_path / "m")
    assert {name.split(".")[-3] for name in student.trainable()} == {"lora_A", "lora_B"}
    before = {
        name: m.base_layer.weight.clone()
        for name, m in student.model.named_modules()
        if hasattr(m, "base_layer")
    }
    fallen = learned(student, tokenizer)
    whole, tokenizer = tiny_student(tmp_path / "m", hidden=64)
    torch.manual_seed(0)
    exact = learned(prepare_student(whole, quick(adapter=QLORA | {"kind": "lora"}), CPU), tokenizer)
    assert fallen == pytest.approx(exact, rel=0.3) and exact > 0.15
    for name, weights in before.items():
        assert torch.equal(student.model.get_submodule(name).base_layer.weight, weights)


def test_weights_are_counted_as_what_they_stand_for(bitsandbytes, tmp_path):
    student, _ = prepared(tmp_path / "m")
    model, _ = tiny_student(tmp_path / "m", hidden=64)
    updates = sum(p.numel() for p in student.trainable().values())
    assert student.num_weights == model.num_parameters() + updates


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_what_is_saved_is_a_plain_model_that_says_what_was_trained(
    bitsandbytes, tmp_path, precision
):
    student, tokenizer = prepared(tmp_path / "m", precision=precision)
    with torch.no_grad():
        for name, p in student.trainable().items():
            p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.05)
    ids = torch.tensor([rows(tokenizer)[0].ids])
    with torch.no_grad(), student.computing():
        trained = student.model.eval()(ids).logits
    plain = merged(student)
    assert not is_four_bit(plain)
    assert not any("lora" in name or "absmax" in name for name in plain.state_dict())
    assert {type(m) for m in linear(plain).values()} == {nn.Linear}
    with torch.no_grad():
        found = plain(ids).logits.float()
    tolerance = 2e-5 if precision == "fp32" else 0.02
    assert (found - trained.float()).abs().max() <= tolerance * trained.abs().max()


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(bitsandbytes, tmp_path):
    class Killed(Exception):
        pass

    def train(out, kill_after=None):
        model, tokenizer = tiny_student(tmp_path / "m", hidden=64)

        def progress(step, _total, _figures):
            if step == kill_after:
                raise Killed

        settings = {"batch_size": 3, "eval_steps": 2, "max_steps": 5, "precision": "autocast"}
        fine_tune_student(
            model, tokenizer, rows(tokenizer), rows(tokenizer)[:2], loss=LossConfig(),
            train=quick(adapter=QLORA | {"dropout": 0.1}, **settings), targets=None,
            out=run_dir(out), on_progress=progress, checkpoint_seconds=0.0,
        )  # fmt: skip
        return (run_dir(out).model / "model.safetensors").read_bytes()

    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=3)
    assert train(tmp_path / "cut") == whole
    saved = AutoModelForCausalLM.from_pretrained(run_dir(tmp_path / "cut").model)
    assert not getattr(saved.config, "quantization_config", None)


def test_without_bitsandbytes_the_extra_is_named(tmp_path, monkeypatch):
    model, _ = tiny_student(tmp_path / "m")
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not, where it is
    with pytest.raises(MissingExtra, match=r"train\.adapter: qlora needs.*potstill\[qlora\]"):
        to_four_bits(model, CPU, torch.float32)


def test_a_device_without_four_bits_is_said(bitsandbytes, tmp_path):
    model, _ = tiny_student(tmp_path / "m")
    with pytest.raises(TrainError, match=r"not compute in 4 bits on meta .*train\.adapter: lora"):
        to_four_bits(model, torch.device("meta"), torch.float32)
