"""What training takes is reckoned from the probe's figures, and what does not fit has a way out."""

import json

import pytest
from tiny import tiny_llama

from potstill.config import TrainConfig, parse_config
from potstill.data.render import Rendered
from potstill.pipeline.context import Context
from potstill.pipeline.estimate import estimate
from potstill.pipeline.estimate_training import _forecast, num_weights, trained_bytes
from potstill.rundir import RunDir
from potstill.train.probe import Probed

ROWS = [Rendered([1] * 60, [1] * 60), Rendered([1] * 40, [1] * 40)]
PROBED = Probed(
    micro_batch_size=4, parts_per_step=2,
    peak_memory_bytes=2_000_000_000, usable_memory_bytes=8_000_000_000,
    seconds_per_step=4.0, look_seconds_per_token=0.002, checkpoint_seconds=1.0,
    num_parameters=100_000_000, num_trainable=100_000_000, precision="autocast", device="cpu",
)  # fmt: skip


def reckoned(tmp_path, found=PROBED, num_rows=80, watched=((), 0), **train):
    tree = {"name": "x", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    settings = {"batch_size": 8, "num_epochs": 2, "micro_batch_size": 4, **train}
    ctx = Context(parse_config({**tree, "train": settings}), RunDir(tmp_path))
    return _forecast(ctx, found, num_rows, watched, [])


def test_time_is_steps_looks_and_checkpoints(tmp_path):
    found = reckoned(tmp_path)
    assert (found.num_steps, found.micro_batch_size, found.accumulation) == (20, 4, 2)
    steps = 20 * 4.0
    assert found.seconds == pytest.approx(steps + 1 * 1.0)  # 80 s: one checkpoint
    assert found.seconds_low < found.seconds < found.seconds_most
    assert found.seconds_most == pytest.approx(1.15 * found.seconds)
    looked = reckoned(tmp_path, watched=(ROWS, 10))
    assert looked.seconds == pytest.approx(steps + 10 * 10 * 50 * 0.002 + 1.0)


@pytest.mark.parametrize(
    ("precision", "train", "num_bytes"),
    [
        ("fp32", {}, 16),
        ("bf16", {}, 8),
        ("autocast", {"optimizer": "sgd"}, 12),
        ("bf16", {"optimizer": "adafactor"}, 4),
        ("fp32", {"ema": 0.99}, 20),
    ],
)
def test_what_a_trained_weight_takes_depends_on_the_optimizer(precision, train, num_bytes):
    assert trained_bytes(precision, TrainConfig(**train)) == num_bytes


def test_several_processes_are_reckoned_as_one_and_that_is_said(tmp_path):
    found = reckoned(tmp_path, processes=3)
    assert "of one process that computes alone what 3 will share" in found.notes
    assert found.seconds == reckoned(tmp_path).seconds


def test_max_steps_are_the_steps(tmp_path):
    assert reckoned(tmp_path, max_steps=7).num_steps == 7


def test_a_smaller_micro_batch_is_proposed_where_it_is_needed(tmp_path):
    found = reckoned(tmp_path, PROBED.model_copy(update={"is_cut": True}))
    assert not found.fits
    assert found.proposal == "set train.micro_batch_size: 4, which fits"
    assert found.accumulation == 2 and found.seconds is not None


@pytest.mark.parametrize(
    ("peak", "train", "proposal"),
    [
        (9.0, {}, "gradient_checkpointing: true, which keeps fewer activations"),
        (9.0, {"gradient_checkpointing": True}, "take a student of at most about 80 million"),
        (7.3, {"gradient_checkpointing": True}, "adapter: lora, which takes about 6.1 GB"),
        (8.6, {"gradient_checkpointing": True}, "adapter: qlora, which takes about 7.1 GB"),
        (8.6, {"gradient_checkpointing": True, "adapter": "lora"}, "adapter: qlora, which takes"),
        (90.0, {}, "a student of at most about 8 million weights"),
    ],
)
def test_what_does_not_fit_has_a_way_out(tmp_path, peak, train, proposal):
    found = PROBED.model_copy(
        update={"fits": False, "micro_batch_size": 0, "peak_memory_bytes": round(peak * 1e9)}
    )
    found = reckoned(tmp_path, found, **train)
    assert not found.fits and found.seconds is None
    assert proposal in found.proposal and "train.max_tokens" in found.proposal


@pytest.mark.parametrize(("device", "is_proposed"), [("cuda", True), ("cpu", False)])
def test_four_bits_are_no_way_out_where_the_whole_weights_must_fit_first(
    tmp_path, device, is_proposed
):
    large = {"num_parameters": 3 * 10**9, "num_trainable": 3 * 10**9, "device": device}
    found = PROBED.model_copy(
        update={"fits": False, "peak_memory_bytes": 49 * 10**9, "micro_batch_size": 0} | large
    )
    said = reckoned(tmp_path, found).proposal
    assert ("qlora, which takes about 4.0 GB" in said) is is_proposed


def test_weights_are_counted_from_headers_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "m")
    assert num_weights(folder) == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def files(tmp_path, student):
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "x", "task": "conversation", "student": student, "data": {"validation": 0.25},
        "teacher": "http://teacher.example/v1", "train_data": str(tmp_path / "train.jsonl"),
        "train": {"batch_size": 4, "precision": "fp32", "num_epochs": 2},
    }  # fmt: skip
    return Context(parse_config(tree), RunDir(tmp_path / "run"))


def test_a_student_that_is_not_here_is_not_estimated_and_not_fetched(tmp_path):
    found = estimate(files(tmp_path, "some/student"), training=True)
    assert found.training is None
    assert any("some/student are not on this machine" in note for note in found.notes)


@pytest.mark.slow
def test_a_students_training_is_probed_in_a_process_of_its_own(tmp_path):
    student = tiny_llama(tmp_path / "student")
    before = {path: path.stat().st_mtime_ns for path in student.iterdir()}
    found = estimate(files(tmp_path, str(student)), training=True).training
    assert found.fits and found.seconds > 0 and found.micro_batch_size == 4
    assert found.num_rows + round(0.25 * 12) in (11, 12, 13)
    assert found.num_parameters == num_weights(student)
    assert {path: path.stat().st_mtime_ns for path in student.iterdir()} == before
    assert not (tmp_path / "run").exists()
