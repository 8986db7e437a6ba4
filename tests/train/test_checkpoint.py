"""A killed training goes on exactly where it was."""

import json

import pytest
import torch
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig
from potstill.errors import DataError
from potstill.train.checkpoint import latest_checkpoint
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


LORA = {"adapter": {"kind": "lora", "r": 4, "dropout": 0.2}}


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora with dropout"])
@pytest.mark.parametrize("kill_after", [1, 2, 3, 5])
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


def test_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "m", tmp_path / "run", kill_after=3)
    checkpoint = latest_checkpoint(run_dir(tmp_path / "run").checkpoints)
    file = checkpoint / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        train(tmp_path / "m", tmp_path / "run")


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
