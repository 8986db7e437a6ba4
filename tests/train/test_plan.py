"""What is decided before the first step: rates, order, and what nobody asked for."""

import json
import math

import pytest
import torch
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig, TrainConfig
from potstill.models.weights import fast_bfloat16
from potstill.train.loop import fine_tune_student
from potstill.train.plan import StepPlan
from potstill.train.student import number_format

LENGTHS = tuple((37 * i) % 61 + 3 for i in range(50))


def rates(**changes):
    plan = StepPlan(LENGTHS, quick(max_steps=20, learning_rate=1e-3, **changes))
    return [plan.learning_rate(step) for step in range(20)]


def test_the_rate_rises_and_then_falls_as_the_schedule_says():
    assert rates() == [1e-3] * 20
    line = rates(schedule="linear", warmup=0.2)
    assert line[:4] == pytest.approx([1e-3 * n / 5 for n in (1, 2, 3, 4)])
    assert line[4:] == pytest.approx([1e-3 * (1 - n / 16) for n in range(16)])
    curve = rates(schedule="cosine", warmup=0.2)
    assert curve[:4] == line[:4]
    assert curve[4:] == pytest.approx(
        [1e-3 * (1 + math.cos(math.pi * n / 16)) / 2 for n in range(16)]
    )


@pytest.mark.parametrize("order", ["by_length", "random"])
def test_the_order_follows_from_seed_and_step_alone(order):
    """So a checkpoint need not keep it: any step can be asked for first."""
    train = quick(max_steps=None, num_epochs=3, batch_size=8, order=order)
    plan, again = (StepPlan(LENGTHS, train) for _ in range(2))
    assert plan.num_steps == 3 * plan.steps_per_epoch == 21
    steps = [plan.rows(step) for step in range(21)]
    assert [again.rows(step) for step in reversed(range(21))] == steps[::-1]
    for epoch in range(3):
        seen = [row for step in steps[7 * epoch : 7 * epoch + 7] for row in step]
        assert sorted(seen) == list(range(50))
    assert steps[:7] != steps[7:14]
    other = StepPlan(LENGTHS, train.model_copy(update={"seed": 1}))
    assert [other.rows(step) for step in range(7)] != steps[:7]


def test_a_long_gradient_is_scaled_down_and_a_short_one_left(tmp_path):
    def moved(max_grad_norm):
        model, tokenizer = tiny_student(tmp_path / "m")
        before = [p.detach().clone() for p in model.parameters()]
        out = run_dir(tmp_path / str(max_grad_norm))
        settings = {"optimizer": "sgd", "weight_decay": 0.0, "learning_rate": 0.5, "max_steps": 1}
        train = quick(max_grad_norm=max_grad_norm, **settings)
        fine_tune_student(
            model, tokenizer, rows(tokenizer), (), loss=LossConfig(), train=train, targets=None,
            out=out,
        )  # fmt: skip
        steps = [now - then for now, then in zip(model.parameters(), before, strict=True)]
        told = json.loads(out.metrics.read_text())["train/grad_norm"]
        return torch.cat([step.flatten() for step in steps]).norm().item() / 0.5, told

    short, told = moved(0.1)
    assert short == pytest.approx(0.1, rel=1e-3)
    assert moved(1e9) == (pytest.approx(told, rel=1e-3), pytest.approx(told))
    assert told > 0.5


def test_what_nobody_asked_for_is_off():
    train = TrainConfig()
    assert (train.ema, train.adapter, train.max_steps, train.track) == (None, None, None, ())
    assert not (train.gradient_checkpointing or train.freeze_embeddings or train.freeze_layers)


def test_defaults_lie_in_the_ranges_that_are_usual():
    assert 1e-5 <= TrainConfig().learning_rate <= 5e-5
    for adapter in ("lora", "qlora", {"r": 8}):
        assert 1e-4 <= TrainConfig(adapter=adapter).learning_rate <= 1e-3
    assert 2 <= TrainConfig().num_epochs <= 5


def test_a_rate_that_is_given_is_the_rate_also_with_an_adapter():
    assert TrainConfig(adapter="lora", learning_rate=3e-5).learning_rate == 3e-5
    same = TrainConfig(**TrainConfig(learning_rate=3e-5, adapter="lora").model_dump())
    assert same.learning_rate == 3e-5


def test_the_number_format_is_chosen_by_the_device_and_said(tmp_path):
    fast = fast_bfloat16()
    assert number_format("auto") == (torch.float32, torch.bfloat16 if fast else None)
    model, tokenizer = tiny_student(tmp_path / "m")
    result = fine_tune_student(
        model, tokenizer, rows(tokenizer), (), loss=LossConfig(),
        train=quick(precision="auto", max_steps=1), targets=None, out=run_dir(tmp_path / "run"),
    )  # fmt: skip
    assert result.precision == ("autocast" if fast else "fp32")
