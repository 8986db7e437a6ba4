"""Optimizers and the moving average of the weights."""

import json

import pytest
import torch
from torch import nn
from training import quick, rows, run_dir, tiny_student
from transformers import AutoModelForCausalLM

from potstill.config import LossConfig
from potstill.train.average import Average
from potstill.train.loop import fine_tune_student
from potstill.train.optimizers import build_optimizer


def train_tiny(tmp_path, name="run", **changes):
    model, tokenizer = tiny_student(tmp_path / "m")
    out = run_dir(tmp_path / name)
    known = rows(tokenizer)
    result = fine_tune_student(
        model,
        tokenizer,
        known,
        known,
        loss=LossConfig(),
        train=quick(**changes),
        targets=None,
        out=out,
    )
    lines = [json.loads(line) for line in out.metrics.read_text().splitlines()]
    return result, lines, out


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("adamw", 3e-3), ("adafactor", 5e-2), ("sgd", 3e-2)]
)
def test_every_optimizer_brings_the_loss_down(tmp_path, optimizer, learning_rate):
    _, lines, _ = train_tiny(
        tmp_path, optimizer=optimizer, learning_rate=learning_rate, max_steps=12
    )
    losses = [line["train/loss_nats"] for line in lines]
    assert losses[-1] < losses[0] - 0.3, losses


@pytest.mark.parametrize(("optimizer", "most"), [("adamw", 2.1), ("adafactor", 0.2), ("sgd", 1.1)])
def test_an_optimizer_keeps_as_many_numbers_as_it_says(optimizer, most):
    weights = nn.Parameter(torch.randn(40, 30))
    found = build_optimizer({"w": weights}, quick(optimizer=optimizer))
    weights.sum().backward()
    found.step()
    kept = sum(value.numel() for value in found.state[weights].values())
    assert most / 3 < kept / weights.numel() + 0.05 < most + 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_vectors_do_not_decay(optimizer):
    parameters = {"w": nn.Parameter(torch.ones(3, 3)), "b": nn.Parameter(torch.ones(3))}
    train = quick(optimizer=optimizer, weight_decay=0.5)
    found = build_optimizer(parameters, train)
    decays = {len(group["params"][0].shape): group["weight_decay"] for group in found.param_groups}
    assert decays == {2: 0.5, 1: 0.0}


def test_the_average_follows_the_weights_slowly_and_soon_forgets_the_first():
    weight = nn.Parameter(torch.tensor([0.0]))
    average = Average({"w": weight}, decay=0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    by_hand = 0.0
    for step in range(40):
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * 1.0
    assert average.values["w"].item() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand > 0.99


def test_the_average_is_in_place_only_inside_its_block():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    average = Average({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    with average.in_place():
        assert weight.item() == 1.0
    assert weight.item() == 3.0


def test_validation_judges_the_average_and_it_is_what_is_saved(tmp_path):
    settings = {"max_steps": 8, "eval_steps": 4, "learning_rate": 1e-2}
    _, plain, _ = train_tiny(tmp_path, "plain", **settings)
    result, lines, out = train_tiny(tmp_path, "averaged", ema=0.9, **settings)
    train, judged = ("train/loss_nats", "validation/loss_nats")
    assert [line[train] for line in lines] == [line[train] for line in plain]
    assert lines[-1][judged] != plain[-1][judged]
    saved = AutoModelForCausalLM.from_pretrained(out.model)
    _, tokenizer = tiny_student(tmp_path / "m")
    total = count = 0.0
    for row in rows(tokenizer):
        logprobs = saved(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        labels = [place for place, carries in enumerate(row.loss_mask) if carries]
        total -= sum(logprobs[place - 1, row.ids[place]].item() for place in labels)
        count += len(labels)
    assert total / count == pytest.approx(result.best_validation_loss_nats, abs=1e-4)
