"""The probe trains for a moment, finds what fits, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from tiny import tiny_llama
from training import quick, rows, tiny_student

from potstill.config import LossConfig, PruneConfig, TargetsConfig
from potstill.models.energy import EnergyMeter
from potstill.train.loop import Training
from potstill.train.probe import DrawnTargets, ProbeSpec, _parts_that_fit, main, probe
from potstill.train.student import prepare_student


@pytest.fixture
def spec(tmp_path):
    """A probe of a tiny student; more by keyword."""

    def make(loss=None, train=None, **changes):
        _, tokenizer = tiny_student(tmp_path / "student", layers=4)
        some = tuple((list(row.ids), list(row.loss_mask)) for row in rows(tokenizer))
        return ProbeSpec(
            student=str(tmp_path / "student"),
            loss=loss or LossConfig(),
            train=quick(**(train or {})),
            rows=some,
            validation_rows=some[:2],
            num_steps=3,
            num_planned=5,
            num_threads=1,
            **changes,
        )

    return make


def test_a_probe_tells_time_memory_and_size(spec, tmp_path):
    asked = spec()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "student").glob("*")}
    found = probe(asked)
    assert found.fits and not found.is_cut
    assert (found.micro_batch_size, found.parts_per_step) == (4, 1)
    assert found.seconds_per_step > 0 and found.look_seconds_per_token > 0
    assert found.checkpoint_seconds > 0
    assert 10_000_000 < found.peak_memory_bytes < found.usable_memory_bytes
    assert found.num_parameters == found.num_trainable > 0
    assert (found.precision, found.device) == ("fp32", "cpu")
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "student").glob("*")
    } == before


def test_a_probe_learns_from_probabilities_layers_and_an_adapter_as_training_does(spec, tmp_path):
    teacher = tiny_llama(tmp_path / "teacher", layers=3, hidden=48)
    loss = LossConfig(kind="forward_kl", hidden="cosine", attention="value")
    found = probe(spec(loss, {"adapter": "lora"}, teacher=str(teacher)))
    assert found.fits and 0 < found.num_trainable < found.num_parameters


@pytest.mark.parametrize("kept", ["topk", "sampled"])
def test_a_probe_learns_from_what_is_kept_of_probabilities(spec, kept):
    found = probe(spec(LossConfig(kind="forward_kl", targets={"kind": kept}), {"ema": 0.9}))
    assert found.fits and found.parts_per_step == 1 and found.seconds_per_step > 0


@pytest.mark.parametrize(
    ("cut", "num_parameters"),
    [
        ({"layers": 2}, 2 * (2 * 32 + 3 * 32 * 96 + 3 * 32 * 32)),
        ({"layers": [0, 1, 3], "ffn": 40, "kv_heads": 1}, 3 * (2 * 32 + 3 * 32 * 40 + 1536)),
    ],
)
def test_a_cut_student_is_probed_in_its_own_size(spec, cut, num_parameters):
    found = probe(spec(prune=PruneConfig.model_validate({"from": "x", **cut})))
    assert found.num_parameters == 2 * 421 * 32 + 32 + num_parameters


def test_what_does_not_fit_is_said_and_not_tried(spec):
    found = probe(spec(memory_bytes=50_000_000))
    assert not found.fits and found.micro_batch_size == 0
    assert found.peak_memory_bytes > 50_000_000
    assert found.seconds_per_step == 0


class Peaks:
    """Tells peaks that were thought up."""

    def __init__(self, *peaks):
        self._peaks = list(peaks)

    def peak(self):
        return self._peaks.pop(0)


@pytest.mark.parametrize(
    ("allowed", "wanted", "size"),
    [
        (999, None, None),
        (220, None, 2),
        (180, None, 2),
        (150, None, 1),
        (999, 3, None),
        (129, None, 0),
    ],
)
def test_the_largest_micro_batch_that_fits_is_found_from_smaller_ones(
    tmp_path, allowed, wanted, size
):
    """A quarter of the longest row takes 100, the row 130: 40 a row, beside 90 that stay."""
    model, tokenizer = tiny_student(tmp_path / "m")
    train = quick(micro_batch_size=wanted, packing=False)
    student = prepare_student(model, train, torch.device("cpu"))
    training = Training(student, tokenizer, rows(tokenizer), [], LossConfig(), train, None)
    memory = Peaks(0, 0, 100, 130, 999)
    assert _parts_that_fit(training, memory, allowed)[0] == size
    if size != 0:
        assert len(training.train_rows) == 4


def test_a_whole_row_is_not_tried_where_a_quarter_is_too_much(tmp_path):
    model, tokenizer = tiny_student(tmp_path / "m")
    student = prepare_student(model, quick(), torch.device("cpu"))
    training = Training(student, tokenizer, rows(tokenizer), [], LossConfig(), quick(), None)
    assert _parts_that_fit(training, Peaks(0, 0, 200), 150) == (0, 200)


def test_drawn_targets_are_like_stored_ones(tmp_path):
    _, tokenizer = tiny_student(tmp_path / "m")
    some = rows(tokenizer)
    targets = DrawnTargets(some, TargetsConfig(k=8), 421)
    from potstill.targets.store import content_key

    keys = [content_key(row.ids, row.loss_mask) for row in some[:2]]
    ids, logprobs = targets.batch(keys)
    assert ids.shape == logprobs.shape == (sum(sum(row.loss_mask) for row in some[:2]), 8)
    assert all(len(set(row)) == 8 and max(row) < 421 for row in ids.tolist())
    assert np.exp(logprobs).sum(-1) == pytest.approx(0.95)
    assert keys[0] in targets and b"other" not in targets
    kept = TargetsConfig(kind="sampled", num_draws=5)
    _, weights = DrawnTargets(some, kept, 421).batch(keys)
    assert weights.sum(-1) == pytest.approx(1.0)


def test_a_probe_that_fails_says_why(spec, tmp_path):
    asked, answer = tmp_path / "spec", tmp_path / "answer"
    asked.write_text(spec(LossConfig(hidden="cosine")).model_dump_json(by_alias=True))
    main(asked, answer)
    assert "no teacher was given" in answer.read_text()


def package(folder, name, energy, most=1000):
    domain = folder / name
    domain.mkdir(parents=True, exist_ok=True)
    (domain / "energy_uj").write_text(f"{energy}\n")
    (domain / "max_energy_range_uj").write_text(f"{most}\n")
    return domain


def test_energy_is_what_the_packages_counted_also_when_a_counter_turned_over(tmp_path):
    package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:1", 900)
    package(tmp_path, "intel-rapl:0:0", 50)  # its cores: part of the package
    meter = EnergyMeter(tmp_path, gpus=[])
    package(tmp_path, "intel-rapl:0", 300)
    package(tmp_path, "intel-rapl:1", 100)
    package(tmp_path, "intel-rapl:0:0", 90)
    assert meter.source == "processor (RAPL)"
    assert meter.joules() == pytest.approx((200 + 200) / 1e6)


def test_a_counter_that_cannot_be_read_is_not_counted(tmp_path):
    counter = package(tmp_path, "intel-rapl:0", 100) / "energy_uj"
    counter.unlink()
    counter.mkdir()  # an OSError, as for whoever is not root, but also for root
    assert EnergyMeter(tmp_path, gpus=[]).joules() is None


def test_energy_is_not_guessed_where_nothing_tells(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    meter = EnergyMeter(tmp_path, gpus=[])
    assert (meter.source, meter.joules()) == ("not measured", None)
