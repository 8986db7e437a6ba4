"""Students whose weights are shared out among processes learn what they learn in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from sharded_pair import CASES, weights_of
from training import quick, tiny_student

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes have tried all cases."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_student(folder / "student")
    tiny_student(folder / "teacher", layers=4, hidden=48, seed=1)
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(TESTS / "sharded_pair.py")]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)[-4000:]
    return folder


def found(pair, rank=0):
    return json.loads((pair / f"found-{rank}.json").read_text())


@pytest.mark.slow
def test_each_of_two_holds_half(pair):
    for rank in range(2):
        weights, all_weights, kept, all_kept = found(pair, rank)["held"]
        assert 0.45 * all_weights < weights < 0.55 * all_weights
        assert all_kept == 2 * all_weights
        assert 0.45 * all_kept < kept < 0.55 * all_kept


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_losses_and_the_weights_are_those_of_one_process(pair, case):
    figures = found(pair)[case]
    # In bf16 a sum over two processes is rounded at other places, and steps follow signs.
    near = 0.1 if case == "bf16" else 2e-5
    assert len(figures["both"]) == len(figures["one"]) == 5
    for one, both in zip(figures["one"], figures["both"], strict=True):
        assert both["train/num_loss_tokens"] == one["train/num_loss_tokens"]
        for name, value in one.items():
            if name.endswith(("_nats", "grad_norm", "cosine")):
                assert both[name] == pytest.approx(value, abs=near), name
    one, both = (weights_of(pair / case / who) for who in ("one", "both"))
    assert one.keys() == both.keys()
    for name, value in one.items():
        # AdamW's first steps are the sign of the gradient: what is near 0 may tip over.
        assert (both[name] - value).abs().float().mean() < near, name


@pytest.mark.slow
@pytest.mark.parametrize("order", ["both, then both", "both, then one", "one, then both"])
def test_a_checkpoint_is_gone_on_with_shared_out_or_not(pair, order):
    assert found(pair)[order] == 3
    whole, there = weights_of(pair / "whole"), weights_of(pair / order)
    assert whole.keys() == there.keys()
    for name, value in whole.items():
        assert (there[name] - value).abs().mean() < 1e-5, name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "train.processes is 1"),
        ({"processes": 2, "optimizer": "adafactor"}, "use adamw or sgd"),
        ({"processes": 2, "adapter": "qlora"}, "use adapter: lora"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        quick(shard=True, **changes)
