"""A killed training goes on exactly where it was."""

import json

import pytest
import torch
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig
from potstill.errors import DataError
from potstill.train.checkpoint import latest_checkpoint, remove_checkpoints
from potstill.train.loop import fine_tune_student

SETTINGS = {
    "max_steps": 6,
    "batch_size": 3,
    "micro_batch_size": 2,
    "schedule": "cosine",
    "eval_steps": 2,
}


class Killed(Exception):
    pass


def train(home, out, *, kill_after=None, checkpoint_seconds=0.0, **changes):
    model, tokenizer = tiny_student(home, seed=1)

    def progress(step, _total, _figures):
        if step == kill_after:
            raise Killed

    return fine_tune_student(
        model,
        tokenizer,
        rows(tokenizer),
        rows(tokenizer)[:2],
        loss=LossConfig(),
        train=quick(**{**SETTINGS, **changes}),
        targets=None,
        out=run_dir(out),
        on_progress=progress,
        checkpoint_seconds=checkpoint_seconds,
    )


def losses(out):
    lines = [json.loads(line) for line in run_dir(out).metrics.read_text().splitlines()]
    return [
        (line["step"], line["train/loss_nats"], line.get("validation/loss_nats")) for line in lines
    ]


WAYS = {
    "full": {},
    "padded": {"packing": False},
    "drawn at random": {"order": "random"},
    "autocast": {"precision": "autocast"},
    "activations twice": {"gradient_checkpointing": True},
    "lora with dropout": {"adapter": {"kind": "lora", "r": 4, "dropout": 0.2}},
    "average": {"ema": 0.8},
    "adafactor": {"optimizer": "adafactor", "learning_rate": 1e-2},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-2},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_a_run_killed_at_any_step_ends_with_the_same_bits(tmp_path, kill_after, changes):
    whole = train(tmp_path / "m", tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "cut", kill_after=kill_after, **changes)
    again = train(tmp_path / "m", tmp_path / "cut", **changes)
    assert again.resumed_from == kill_after - 1
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (again.best_step, again.best_validation_loss_nats) == (
        whole.best_step,
        whole.best_validation_loss_nats,
    )
    models = [
        (run_dir(tmp_path / name).model / "model.safetensors").read_bytes()
        for name in ("cut", "whole")
    ]
    assert models[0] == models[1]


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=3)
    with pytest.raises(DataError, match=r"another training .* delete .*checkpoints to start over"):
        train(tmp_path / "m", tmp_path / "run", learning_rate=1e-3)


def test_a_training_goes_on_when_it_is_only_computed_in_another_way(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=3)
    again = train(
        tmp_path / "m", tmp_path / "run", packing=False, micro_batch_size=1, max_loss_jump=None
    )
    assert again.resumed_from == 2


def test_a_training_that_ends_before_it_is_noted_does_the_last_steps_again(tmp_path):
    """The model is written, and then the machine goes down."""
    whole = train(tmp_path / "m", tmp_path / "run")
    model = run_dir(tmp_path / "run").model / "model.safetensors"
    before = model.read_bytes()
    again = train(tmp_path / "m", tmp_path / "run")
    assert again.resumed_from == whole.num_steps - 1
    assert model.read_bytes() == before
    checkpoints = run_dir(tmp_path / "run").checkpoints
    remove_checkpoints(checkpoints)
    assert not checkpoints.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=3)
    checkpoint = latest_checkpoint(run_dir(tmp_path / "run").checkpoints)
    file = checkpoint / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged"):
        train(tmp_path / "m", tmp_path / "run")


@pytest.mark.parametrize("name", ["weights", "optimizer", "average", "best"])
def test_one_flipped_bit_of_a_checkpoint_is_found(tmp_path, name):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=3, ema=0.8)
    file = latest_checkpoint(run_dir(tmp_path / "run").checkpoints) / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}\.safetensors is damaged .* to start over"):
        train(tmp_path / "m", tmp_path / "run", ema=0.8)


def test_only_the_latest_checkpoint_is_kept_and_nothing_in_it_is_pickled(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=4)
    (checkpoint,) = run_dir(tmp_path / "run").checkpoints.iterdir()
    assert checkpoint.name == "000003"
    assert {file.suffix for file in checkpoint.iterdir()} == {".safetensors", ".json"}


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tmp_path / "m", tmp_path / "run", max_steps=1)
    assert torch.equal(torch.get_rng_state(), before)
