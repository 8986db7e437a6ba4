"""Scoring: the teacher's probability of each label, at the row that it belongs to."""

import numpy as np
import pytest
import torch
from training import quick, rows, run_dir, tiny_student

from potstill.config import LossConfig
from potstill.data.render import template_fingerprint, vocab_fingerprint
from potstill.errors import DataError, VocabMismatch
from potstill.targets.store import TargetStore, content_key
from potstill.teach.score import score


class Teacher:
    """Local weights with the two members of `WhiteBoxModel` that scoring uses."""

    name = "tiny"

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.vocab_fingerprint = vocab_fingerprint(tokenizer)
        self.num_rows = 0

    def logits(self, ids_BT, positions_BT):
        self.num_rows += len(ids_BT)
        return self.model(ids_BT).logits[positions_BT].float()


@pytest.fixture
def teacher(tmp_path):
    return Teacher(*tiny_student(tmp_path / "teacher", seed=3))


def run(teacher, train_rows, path, **changes):
    settings = {
        "k": 8,
        "temperature": 2.0,
        "student_vocab_fingerprint": teacher.vocab_fingerprint,
        "batch_tokens": 64,
        **changes,
    }
    return score(teacher, train_rows, path, **settings)


def opened(teacher, path, temperature=2.0):
    return TargetStore(
        path,
        vocab_fingerprint=teacher.vocab_fingerprint,
        template_fingerprint=template_fingerprint(teacher.tokenizer),
        temperature=temperature,
    )


def test_targets_are_the_softened_probabilities_one_position_before_each_label(teacher, tmp_path):
    train_rows = rows(teacher.tokenizer)
    run(teacher, train_rows, tmp_path / "targets")
    store = opened(teacher, tmp_path / "targets")
    for row in train_rows:
        ids, logprobs = store.lookup(content_key(row.ids, row.loss_mask))
        alone = (teacher.model(torch.tensor([row.ids])).logits[0] / 2.0).log_softmax(-1)
        labels = [place for place, is_label in enumerate(row.loss_mask) if is_label]
        assert len(ids) == len(labels)
        by_hand = alone[[place - 1 for place in labels]].topk(8).values
        np.testing.assert_allclose(logprobs, by_hand.detach().numpy(), atol=5e-3)


def test_the_mass_that_is_kept_is_told(teacher, tmp_path):
    part = run(teacher, rows(teacher.tokenizer), tmp_path / "part")
    whole = run(teacher, rows(teacher.tokenizer), tmp_path / "whole", k=421)
    assert 0 < part.mass_kept < 1
    assert whole.mass_kept == pytest.approx(1.0, abs=1e-5)
    assert whole.mass_dropped == 0.0


def test_a_crash_loses_no_finished_shard(teacher, tmp_path):
    train_rows = rows(teacher.tokenizer)

    def crash(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(teacher, train_rows, tmp_path / "t", shard_seconds=0, batch_tokens=1, on_progress=crash)
    teacher.num_rows = 0
    run(teacher, train_rows, tmp_path / "t")
    assert teacher.num_rows == len(train_rows) // 2
    assert len(opened(teacher, tmp_path / "t")) == len(train_rows)


def test_the_same_row_is_scored_once(teacher, tmp_path):
    row = rows(teacher.tokenizer)[0]
    assert run(teacher, [row, row, row], tmp_path / "t").num_rows == 1
    assert teacher.num_rows == 1


def test_another_tokenizer_is_refused_before_any_work(teacher, tmp_path):
    with pytest.raises(VocabMismatch, match=r"loss.kind: sft"):
        run(teacher, rows(teacher.tokenizer), tmp_path / "t", student_vocab_fingerprint="0" * 64)
    assert teacher.num_rows == 0


def test_more_tokens_than_the_vocabulary_has_are_refused(teacher, tmp_path):
    with pytest.raises(DataError, match="between 1 and 421"):
        run(teacher, rows(teacher.tokenizer), tmp_path / "t", k=1000)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_learning_from_probabilities_brings_the_student_near_the_teacher(
    teacher, tmp_path, temperature
):
    from potstill.train.loop import fine_tune_student

    student, tokenizer = tiny_student(tmp_path / "student", seed=4)
    train_rows = rows(tokenizer)
    run(teacher, train_rows, tmp_path / "t", k=64, temperature=temperature)
    kept = []
    fine_tune_student(
        student,
        tokenizer,
        train_rows,
        train_rows[:2],
        loss=LossConfig(kind="forward_kl", temperature=temperature, sft_weight=0.0),
        train=quick(max_steps=40),
        targets=opened(teacher, tmp_path / "t", temperature),
        out=run_dir(tmp_path / "run"),
        on_progress=lambda _step, _total, figures: kept.append(figures),
    )
    assert kept[-1]["train/forward_kl_nats"] < 0.2 * kept[0]["train/forward_kl_nats"]
    assert kept[-1]["validation/forward_kl_nats"] < kept[3]["validation/forward_kl_nats"]
    ids = torch.tensor([train_rows[0].ids])
    place = train_rows[0].loss_mask.index(1)
    p = teacher.model(ids).logits[0, place - 1].softmax(-1)
    q = student(ids).logits[0, place - 1].softmax(-1)
    assert (p * (p / q).log()).sum() < 0.05


def test_validation_is_judged_by_one_kind_of_loss_whoever_has_targets(teacher, tmp_path):
    from potstill.train.loop import fine_tune_student

    train_rows = rows(teacher.tokenizer)
    run(teacher, train_rows[:3], tmp_path / "t", temperature=1.0)

    def looked(validation, name):
        student, tokenizer = tiny_student(tmp_path / name, seed=4)
        kept = []
        fine_tune_student(
            student,
            tokenizer,
            train_rows[:3],
            validation,
            loss=LossConfig(kind="forward_kl", sft_weight=0.0),
            train=quick(max_steps=1, eval_steps=1, micro_batch_size=1),
            targets=opened(teacher, tmp_path / "t", 1.0),
            out=run_dir(tmp_path / f"run-{name}"),
            on_progress=lambda _step, _total, figures: kept.append(figures),
        )
        return kept[-1]

    some = looked(train_rows, "some")
    assert some["validation/loss_nats"] == pytest.approx(some["validation/sft_nats"])
    assert "validation/forward_kl_nats" not in some
    every = looked(train_rows[:3], "all")
    assert every["validation/loss_nats"] == pytest.approx(every["validation/forward_kl_nats"])
