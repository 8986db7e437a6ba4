"""What stops a training, and what does not."""

import pytest
import torch
from training import quick, rows, tiny_student

from potstill.config import LossConfig
from potstill.errors import TrainError
from potstill.train.checkpoint import TrainState
from potstill.train.guard import LEAST, MEMORY, check_step, overfitting, remember
from potstill.train.loop import Training
from potstill.train.student import prepare_student


def figures(loss, norm=1.0):
    return {"train/loss_nats": loss, "train/grad_norm": norm}


def check(loss, before, **changes):
    check_step(figures(loss), before, [4, 9], step=31, train=quick(**changes))


CALM = (0.5, 0.4, 0.6) * 10


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_its_rows(loss):
    with pytest.raises(TrainError, match=r"step 31: loss .* are 4, 9\. Lower train.learning_rate"):
        check(loss, ())


def test_a_gradient_that_is_no_number_stops_too():
    with pytest.raises(TrainError, match="gradient norm nan"):
        check_step(figures(1.0, float("nan")), (), [0], step=1, train=quick())


def test_a_loss_far_above_the_last_ones_stops_and_names_its_rows():
    with pytest.raises(TrainError, match=r"are 4, 9\. The median of the last 30 steps is 0.5"):
        check(4.6, CALM)


@pytest.mark.parametrize(
    ("loss", "before"),
    [
        (4.4, CALM),
        (9.0, CALM[: LEAST - 1]),
        (30.0, (10.0,) * 30),
    ],
    ids=["a hard batch", "the beginning", "a loss that is large by nature"],
)
def test_a_loss_that_is_merely_high_does_not_stop(loss, before):
    check(loss, before)


def test_jumps_can_be_allowed():
    check(50.0, CALM, max_loss_jump=None)


def test_only_the_last_losses_are_remembered():
    losses = ()
    for step in range(MEMORY + 7):
        losses = remember(losses, float(step))
    assert losses == tuple(map(float, range(7, MEMORY + 7)))


@pytest.mark.parametrize(
    ("best", "last", "said"), [(1.0, 1.2, True), (1.0, 1.04, False), (1.0, 1.0, False)]
)
def test_a_validation_loss_that_has_risen_is_said(best, last, said):
    state = TrainState(fingerprint="", step=30, best_step=10, best_loss=best, last_loss=last)
    found = overfitting(state)
    assert ("rose from 1 at step 10, whose weights are kept, to 1.2" in found) is said
    assert bool(found) is said


def test_without_validation_rows_nothing_is_said_of_overfitting():
    assert overfitting(TrainState(fingerprint="", step=30)) == ""


def test_a_step_whose_loss_jumps_leaves_the_weights_alone(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    train = quick(max_loss_jump=1.0)
    student = prepare_student(model, train, torch.device("cpu"))
    training = Training(student, tokenizer, rows(tokenizer), [], LossConfig(), train, None)
    training.state = training.state.model_copy(update={"losses": (0.01,) * LEAST})
    before = {name: p.detach().clone() for name, p in training.parameters.items()}
    with pytest.raises(TrainError, match="training runs away"):
        training.step()
    for name, parameter in training.parameters.items():
        assert torch.equal(parameter, before[name])
