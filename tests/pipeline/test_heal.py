"""Healing wins back what 4 bits cost, is kept only where it surely helps, and says what it did."""

import json
import random

import numpy as np
import pytest
import torch
from tiny import LINES, tiny_llama

from potstill.config import TrainConfig
from potstill.data.render import render
from potstill.errors import ConfigError, ExportError
from potstill.export.manifest import Healing, read_manifest
from potstill.models.weights import load_weights
from potstill.pipeline.artefacts import Healed, make_artefact, own_prompts
from potstill.pipeline.heal import (
    HEALABLE,
    Lessons,
    heal,
    judge,
    lessons_of_file,
    make_healed,
    refuse_unhealable,
)
from potstill.rundir import RunDir, content_hash
from potstill.train.quantised import store_weights
from potstill.types import Estimate, Message

TRAIN = TrainConfig(batch_size=4, precision="fp32")


def coarse_llama(path):
    """A tiny model with weights so large that 4 bits change what it says."""
    tiny_llama(path, hidden=64)
    model, _ = load_weights(path)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(3.0 if "mlp" in name or "attn" in name else 6.0)
    model.save_pretrained(path)
    return path


def lessons(folder, *, num_rows=64, num_judged=24):
    """Questions of words of a few languages, each answered with another line."""
    _, tokenizer = load_weights(folder)
    draw, words = random.Random(0), " ".join(LINES).split()

    def row():
        prompt = Message(role="user", content=" ".join(draw.choices(words, k=3)))
        return render(tokenizer, [prompt], " ".join(draw.choices(words, k=5)))

    return Lessons([row() for _ in range(num_rows)], [[row()] for _ in range(num_judged)], TRAIN)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_healed_student_is_nearer_to_itself_on_records_it_never_saw(tmp_path):
    source, told = coarse_llama(tmp_path / "m"), []
    work = RunDir(tmp_path / "work")
    found = heal(source, "q4_0", lessons(source), work, lambda *one: told.append(one))
    assert found.kept
    assert found.gain.low > 0
    assert found.after.high < found.before.low
    assert found.gain.n == 24
    plain, _ = load_weights(source)
    healed, _ = load_weights(work.model)
    assert torch.equal(plain.lm_head.weight, healed.lm_head.weight)
    assert healed.dtype == torch.float32
    assert ["asking", "nats"] == [told[0][2].split()[0], told[-1][2].split()[1]]


def test_a_gain_that_is_not_sure_is_none():
    draw = np.random.default_rng(0)
    tokens = np.full(40, 10.0)
    before = np.column_stack([draw.gamma(2.0, 1.0, 40), tokens])
    sure = judge(before, np.column_stack([0.8 * before[:, 0], tokens]))
    assert sure["before"].value == pytest.approx(before[:, 0].sum() / 400)
    assert sure["gain"].value == pytest.approx(0.2 * sure["before"].value)
    assert 0 < sure["gain"].low < sure["gain"].value < sure["gain"].high
    noise = np.column_stack([before[:, 0] + draw.normal(0, 1.0, 40), tokens])
    open_ = judge(before, noise)["gain"]
    assert open_.low < 0 < open_.high


@pytest.mark.slow
def test_what_the_gate_refuses_passes_when_it_is_healed(tmp_path):
    source, out = coarse_llama(tmp_path / "m"), tmp_path / "out"
    known, limits = lessons(source), {"mean_kl_nats": 0.004}
    with pytest.raises(ExportError, match=r"mean_kl_nats is 0\.0"):
        make_artefact(source, out, "gguf:q4_0", own_prompts(), limits=limits)
    made = make_healed(source, out, "gguf:q4_0", own_prompts(), known, limits=limits)
    manifest = read_manifest(out)
    assert "; healed: from 0.0" in made.text
    assert manifest.healing.kept
    assert manifest.healing.num_rows == 58
    assert manifest.parity.passed
    assert manifest.source_sha256 == content_hash(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


@pytest.mark.slow
def test_what_does_not_help_is_left_out_and_said(tmp_path):
    source = coarse_llama(tmp_path / "m")
    model, _ = load_weights(source)
    store_weights(model, "q4_0")  # of these weights 4 bits lose nothing
    model.save_pretrained(source)
    plain = make_artefact(source, tmp_path / "plain", "gguf:q4_0", own_prompts())
    made = make_healed(source, tmp_path / "out", "gguf:q4_0", own_prompts(), lessons(source))
    assert "healing did not help and was left out" in made.text
    assert not read_manifest(tmp_path / "out").healing.kept
    assert made.file.read_bytes() == plain.file.read_bytes()


@pytest.mark.slow
def test_another_limit_does_not_train_again(tmp_path):
    source, out = coarse_llama(tmp_path / "m"), tmp_path / "out"
    known, told = lessons(source), []
    arguments = (source, out, "gguf:q4_1", own_prompts(), known)
    with pytest.raises(ExportError, match="must be at most 1e-09"):
        make_healed(*arguments, limits={"mean_kl_nats": 1e-9})
    assert not out.exists()
    make_healed(*arguments, report=lambda *one: told.append(one))
    assert not told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_an_interruption_leaves_nothing_that_could_be_taken(tmp_path):
    source, out = coarse_llama(tmp_path / "m"), tmp_path / "out"

    def stop(done, total, text):
        if "nats" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_healed(source, out, "gguf:q4_0", own_prompts(), lessons(source), report=stop)
    (left,) = tmp_path.glob("[!m]*")
    assert left.name.startswith(".out.healing-")
    assert not RunDir(left).model.exists()
    others = lessons(source, num_rows=40)
    with pytest.raises(KeyboardInterrupt):
        make_healed(source, out, "gguf:q4_0", own_prompts(), others, report=stop)
    assert len(list(tmp_path.glob(".out.healing-*"))) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gguf:q8_0", "gguf:q8_0 loses next to nothing"),
        ("gguf", "gguf loses next to nothing"),
        ("ctranslate2:int8", "loses next to nothing"),
        ("onnx:int4", "is rounded by a library in a way that training cannot repeat"),
    ],
)
def test_what_cannot_be_healed_is_refused_with_what_can(name, why):
    with pytest.raises(ConfigError, match=f"--heal: {name}.*gguf:q4_0 and gguf:q4_1") as found:
        refuse_unhealable([*HEALABLE, name])
    assert why in str(found.value)


def test_rows_of_a_file_need_answers_and_there_must_be_enough(tmp_path):
    source, file = tiny_llama(tmp_path / "m"), tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lessons_of_file(file, source)
    assert (len(found.rows), len(found.judged)) == (80, 20)
    ids = {tuple(row.ids) for row in found.rows}
    assert not ids & {tuple(row.ids) for rows in found.judged for row in rows}
    file.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"rows with answers, 0 rows .* needs 32 and 16"):
        lessons_of_file(file, source)


def test_healed_weights_are_compared_with_the_student_as_it_was(tmp_path):
    source, other = tiny_llama(tmp_path / "m"), tiny_llama(tmp_path / "other", seed=1)
    one = Estimate(value=0.1, low=0.05, high=0.2, n=20)
    told = Healing(
        kept=True, num_rows=40, steps=9, best_step=9, seconds=1.0, learning_rate=1e-3,
        before=one, after=one, gain=one,
    )  # fmt: skip
    arguments = (source, tmp_path / "out", "huggingface:f32", own_prompts())
    with pytest.raises(ExportError, match="argmax_agreement"):
        make_artefact(*arguments, healed=Healed(told, other))
    made = make_artefact(*arguments, healed=Healed(told, source))
    assert "on 20 validation records, +0.100 [+0.050, +0.200] nearer, after 9 steps" in made.text
