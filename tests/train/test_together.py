"""Processes that train together learn what one would learn alone."""

import os
import signal
import threading

import pytest
import torch
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig
from potstill.errors import DataError, TrainError
from potstill.train.loop import Training, fine_tune_student
from potstill.train.ranks import Ranks
from potstill.train.student import prepare_student
from potstill.train.together import fine_tune_together, read_rows, write_rows

SFT = LossConfig()


class Apart(Ranks):
    """One of several that has nobody to talk to: what it would have sent stays with it."""

    def add_gradients(self, parameters):
        self.gradients = {id(p): p.grad for p in parameters}

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradients_of_all_shares_add_up_to_that_of_one_process(tmp_path, size):
    def gradient(ranks):
        model, tokenizer = tiny_student(tmp_path / "m")
        train = quick(max_grad_norm=1e9)
        student = prepare_student(model, train, torch.device("cpu"))
        training = Training(student, tokenizer, rows(tokenizer), [], SFT, train, None, ranks)
        found = {}
        training.optimizer.step = lambda: found.update(
            {name: p.grad.clone() for name, p in training.parameters.items()}
        )
        loss = training.step()["train/loss_nats"]
        return loss, found

    loss, whole = gradient(Ranks())
    shares = [gradient(Apart(rank, size)) for rank in range(size)]
    assert sum(part for part, _ in shares) == pytest.approx(loss, abs=1e-6)
    for name, value in whole.items():
        total = sum(part[name] for _, part in shares)
        torch.testing.assert_close(total, value, atol=1e-6, rtol=0)


def test_shares_are_disjoint_and_of_about_the_same_length():
    lengths = [(37 * i) % 61 + 3 for i in range(40)]
    step = list(range(5, 21))
    shares = [Ranks(rank, 3).share(step, lengths) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == step
    tokens = [sum(lengths[row] for row in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_dropout_differs_between_processes_and_steps_and_not_between_runs():
    seeds = [Ranks(rank, 2).seed(7, step) for rank in range(2) for step in range(3)]
    assert len(set(seeds)) == 6
    assert seeds[0] == Ranks(0, 2).seed(7, 0)


def test_rows_come_back_from_their_file(tmp_path):
    _, tokenizer = tiny_student(tmp_path / "m")
    known = rows(tokenizer)
    write_rows(tmp_path / "rows.npz", known)
    assert read_rows(tmp_path / "rows.npz") == [(list(r.ids), list(r.loss_mask)) for r in known]


def test_one_process_refuses_to_pass_for_two(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    with pytest.raises(TrainError, match=r"train\.processes: 2"):
        fine_tune_student(
            model,
            tokenizer,
            rows(tokenizer),
            (),
            loss=SFT,
            train=quick(processes=2),
            targets=None,
            out=run_dir(tmp_path / "run"),
        )


def together(tmp_path, out, *, train_rows=None, **changes):
    _, tokenizer = tiny_student(tmp_path / "m")
    known = rows(tokenizer)
    return fine_tune_together(
        tmp_path / "m",
        known if train_rows is None else train_rows,
        known[:3],
        loss=SFT,
        train=quick(**{"processes": 2, "batch_size": 3, "max_steps": 5, "eval_steps": 2} | changes),
        targets=tmp_path / "none",
        out=run_dir(out),
        on_progress=changes.pop("on_progress", None),
    )


@pytest.mark.slow
def test_two_processes_have_the_losses_and_the_weights_of_one(tmp_path):
    """The last step of an epoch has a single row: one of the two has nothing to do."""
    from safetensors.torch import load_file

    seen = []
    model, tokenizer = tiny_student(tmp_path / "m")
    known = rows(tokenizer)
    settings = {"batch_size": 3, "max_steps": 5, "eval_steps": 2}
    alone = fine_tune_student(
        model,
        tokenizer,
        known,
        known[:3],
        loss=SFT,
        train=quick(**settings),
        targets=None,
        out=run_dir(tmp_path / "one"),
        on_progress=lambda *told: seen.append(told),
    )
    told = []
    two = fine_tune_together(
        tmp_path / "m",
        known,
        known[:3],
        loss=SFT,
        train=quick(processes=2, **settings),
        targets=tmp_path / "none",
        out=run_dir(tmp_path / "two"),
        on_progress=lambda *figures: told.append(figures),
    )
    assert [(done, total) for done, total, _ in told] == [(n, 5) for n in range(1, 6)]
    for (_, _, one), (_, _, both) in zip(seen, told, strict=True):
        for name in ("train/loss_nats", "train/grad_norm", "validation/loss_nats"):
            if name in one:
                assert both[name] == pytest.approx(one[name], abs=2e-5), name
        assert both["train/num_loss_tokens"] == one["train/num_loss_tokens"]
    assert two.best_step == alone.best_step
    weights = [
        load_file(run_dir(tmp_path / name).model / "model.safetensors") for name in ("one", "two")
    ]
    for name, value in weights[0].items():
        # AdamW's first steps are the sign of the gradient: what is near 0 may tip over.
        assert (weights[1][name] - value).abs().mean() < 1e-5, name
    lines = run_dir(tmp_path / "two").metrics.read_text().splitlines()
    assert len(lines) == 5


@pytest.mark.slow
def test_the_reason_of_one_process_ends_all(tmp_path):
    with pytest.raises(DataError, match="rows 0, 1, 2, 3 are longer than 8"):
        together(tmp_path, tmp_path / "run", max_tokens=8)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_training_goes_on_in_one(tmp_path):
    from pathlib import Path

    def kill_one(done, _total, _figures):
        if done == 2:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    command = (folder / "cmdline").read_bytes().split(b"\0")
                    parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except OSError:
                    continue
                if parent == os.getpid() and command[-2].endswith(b"task-1.json"):
                    os.kill(int(folder.name), signal.SIGKILL)

    _, tokenizer = tiny_student(tmp_path / "m")
    known = rows(tokenizer)
    settings = {"batch_size": 3, "max_steps": 60}
    with pytest.raises(TrainError, match=r"process 2 of 2 was ended by SIGKILL"):
        fine_tune_together(
            tmp_path / "m",
            known,
            (),
            loss=SFT,
            train=quick(processes=2, **settings),
            targets=tmp_path / "none",
            out=run_dir(tmp_path / "run"),
            on_progress=kill_one,
            checkpoint_seconds=0.0,
        )
    assert threading.active_count() < 20
    model, tokenizer = tiny_student(tmp_path / "m")
    result = fine_tune_student(
        model,
        tokenizer,
        known,
        (),
        loss=SFT,
        train=quick(**settings),
        targets=None,
        out=run_dir(tmp_path / "run"),
    )
    assert result.resumed_from >= 1
    assert result.steps == 60
