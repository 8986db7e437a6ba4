"""A disk that fills up while the student is scored for and trained: said so, and nothing lost."""

import contextlib
import errno
import os
import shutil

import numpy as np
import pytest
import torch
from faults.test_disk import room_for
from teach.test_score import Teacher, opened, run
from training import quick, rows, run_dir, tiny_student

from potstill.cli.options import ended
from potstill.config import LossConfig
from potstill.errors import DataError
from potstill.rundir import disk_errors
from potstill.train.checkpoint import check_room, checkpoint_bytes
from potstill.train.loop import Training, fine_tune_student
from potstill.train.student import prepare_student

LORA = {"adapter": {"kind": "lora", "r": 2}}
POINTS = {
    "in the figures": (700, {}),
    "in the weights of a checkpoint": (100_000, {}),
    "in the moments of a checkpoint": (400_000, {}),
    "in the finished model": (100_000, LORA),
}
"""Bytes that no file can exceed, and the training that then stops there."""


def settings(**changes):
    return quick(max_steps=5, batch_size=3, eval_steps=2, **changes)


def trained(home, out, *, num_bytes=None, **changes):
    model, tokenizer = tiny_student(home, seed=1)
    found = rows(tokenizer)
    with contextlib.nullcontext() if num_bytes is None else room_for(num_bytes):
        return fine_tune_student(
            model,
            tokenizer,
            found,
            found[:2],
            loss=LossConfig(),
            train=settings(**changes),
            targets=None,
            out=run_dir(out),
            checkpoint_seconds=0.0,
        )


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("num_bytes", "changes"), POINTS.values(), ids=POINTS)
def test_training_stops_when_the_disk_is_full_and_ends_as_without_it(tmp_path, num_bytes, changes):
    trained(tmp_path / "m", tmp_path / "whole", **changes)
    with pytest.raises(OSError, match="too large") as stopped:
        trained(tmp_path / "m", tmp_path / "cut", num_bytes=num_bytes, **changes)
    assert stopped.value.errno == errno.EFBIG
    out = run_dir(tmp_path / "cut")
    assert not out.model.exists()
    assert not [name for name in files(out.path) if name.split("/")[-1].startswith(".")]
    trained(tmp_path / "m", tmp_path / "cut", **changes)
    for name in ("model/model.safetensors", "model/tokenizer.json"):
        assert (out.path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(out.metrics.read_text().splitlines()) == 5


def test_scoring_stops_when_the_disk_is_full_and_ends_as_without_it(tmp_path):
    teacher = Teacher(*tiny_student(tmp_path / "teacher", seed=3))
    known = rows(teacher.tokenizer)
    run(teacher, known, tmp_path / "whole")
    with room_for(1000), pytest.raises(OSError, match=r"shard-00000\.safetensors"):
        run(teacher, known, tmp_path / "cut")
    assert files(tmp_path / "cut") == []
    run(teacher, known, tmp_path / "cut")
    stores = [opened(teacher, tmp_path / name) for name in ("whole", "cut")]
    assert stores[0].keys() == stores[1].keys()
    for key in stores[0].keys():
        for whole, cut in zip(*(store.lookup(key) for store in stores), strict=True):
            assert np.array_equal(whole, cut)


def test_a_full_disk_is_told_as_one_whichever_library_was_writing(tmp_path, capsys):
    """safetensors and tokenizers have errors of their own, with the number in the message."""

    def writes():
        with disk_errors(tmp_path / "model"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    assert ended(writes) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no space left on the disk" in said and "run the same command again" in said
    with pytest.raises(RuntimeError, match="another"), disk_errors(tmp_path):
        raise RuntimeError("another")


def test_a_training_that_the_disk_has_no_room_for_is_refused_before_its_first_step(tmp_path):
    place = tmp_path / "run" / "checkpoints"
    check_room(place, 10**9, 3 * 10**9, free=4 * 10**9)
    with pytest.raises(DataError, match=r"writes up to 4\.0 GB to .*run .* and 3\.9 GB are free"):
        check_room(place, 10**9, 3 * 10**9, free=39 * 10**8)
    with pytest.raises(DataError, match=r"up to 6\.0 GB"):
        check_room(place, 3 * 10**9, 10**9, free=5 * 10**9)
    (place / "000004").mkdir(parents=True)
    (place / "000004" / "state.json").write_text("{}")
    check_room(place, 3 * 10**9, 10**9, free=3 * 10**9)


def test_the_room_that_is_asked_for_is_what_a_checkpoint_takes(tmp_path):
    trained(tmp_path / "m", tmp_path / "run", ema=0.9)
    model, tokenizer = tiny_student(tmp_path / "m", seed=1)
    train = settings(ema=0.9)
    student = prepare_student(model, train, torch.device("cpu"))
    training = Training(student, tokenizer, rows(tokenizer), [], LossConfig(), train, None)
    asked = checkpoint_bytes(training.parameters, train, has_best=True)
    (last,) = run_dir(tmp_path / "run").checkpoints.iterdir()
    found = sum(os.path.getsize(file) for file in last.iterdir())
    assert found == pytest.approx(asked, rel=0.05)


def test_a_training_without_room_takes_no_step(tmp_path, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda place: real(place)._replace(free=10**6))
    with pytest.raises(DataError, match=r"0\.0 GB are free; free some"):
        trained(tmp_path / "m", tmp_path / "run")
    assert files(tmp_path / "run") == []
