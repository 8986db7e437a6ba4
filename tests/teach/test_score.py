"""Scoring: the teacher's probability of each label, at the row that it belongs to."""

import numpy as np
import pytest
import torch
from training import ANSWERS, quick, rows, run_dir, tiny_student
from vocabularies import renumbered_tokenizer

from potstill.config import LossConfig
from potstill.data.render import template_fingerprint, vocab_fingerprint
from potstill.errors import DataError, VocabMismatch
from potstill.targets.store import TargetStore, content_key
from potstill.teach.score import Translation, drawn, score


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
        by_hand = alone[[place - 1 for place in labels]].detach()
        best = by_hand.topk(8)
        assert np.array_equal(ids, best.indices.sort(-1).values)
        rounding = 2.0 / 8 / 2.0  # half a step, and as much by what all of them share
        np.testing.assert_allclose(
            logprobs, by_hand.gather(-1, torch.from_numpy(ids)), atol=rounding
        )
        np.testing.assert_allclose(np.exp(logprobs).sum(-1), best.values.exp().sum(-1), atol=1e-3)


def test_one_scoring_serves_several_temperatures(teacher, tmp_path):
    row = rows(teacher.tokenizer)[0]
    manifest = run(teacher, [row], tmp_path / "t", k=64, temperatures=(1.0, 4.0))
    assert manifest.settings.temperatures == (1.0, 2.0, 4.0)
    assert [at.temperature for at in manifest.at] == [1.0, 2.0, 4.0]
    assert all(at.error_nats < 1e-3 for at in manifest.at)
    label = row.loss_mask.index(1)
    logits = teacher.model(torch.tensor([row.ids])).logits[0, label - 1].detach()
    for temperature in (1.0, 2.0, 4.0):
        store = opened(teacher, tmp_path / "t", temperature)
        found = store.lookup(content_key(row.ids, row.loss_mask)).logprobs_NK[0]
        kept = (logits / temperature).softmax(-1).topk(64).values.sum()
        assert np.exp(found).sum() == pytest.approx(kept.item(), abs=1e-3)


def test_the_mass_that_is_kept_is_told(teacher, tmp_path):
    part = run(teacher, rows(teacher.tokenizer), tmp_path / "part")
    assert part.num_positions == sum(sum(row.loss_mask) for row in rows(teacher.tokenizer))
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


def test_draws_are_the_teachers_probabilities_on_average():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 33, generator=generator)
    offsets = torch.rand(20_000, generator=generator, dtype=torch.float64)
    found = drawn(logits.expand(20_000, 33), offsets, 12)
    assert (found.values_NK.sum(-1) == 12).all()
    counts = np.zeros((20_000, 33))
    places, draws = np.nonzero(found.ids_NK >= 0)
    counts[places, found.ids_NK[places, draws]] = found.values_NK[places, draws]
    p = logits[0].double().softmax(-1).numpy()
    assert (np.abs(counts - 12 * p) < 1 + 1e-9).all()
    error = counts.mean(0) / 12 - p
    deviation = counts.std(0) / 12 / 20_000**0.5
    assert (np.abs(error) <= 3 * deviation + 1e-9).all()


def test_draws_are_the_same_whatever_is_scored_with_a_row(teacher, tmp_path):
    train_rows = rows(teacher.tokenizer)
    for name, part, size in (("one", train_rows[:1], 1), ("all", train_rows[::-1], 4096)):
        run(teacher, part, tmp_path / name, kind="sampled", k=12, batch_tokens=size)
    key = content_key(train_rows[0].ids, train_rows[0].loss_mask)
    one, other = (opened(teacher, tmp_path / name).lookup(key) for name in ("one", "all"))
    assert np.array_equal(one.ids_NK, other.ids_NK)
    assert np.array_equal(one.weights_NK, other.weights_NK)


def test_learning_from_draws_brings_the_student_near_the_teacher(teacher, tmp_path):
    from potstill.train.loop import fine_tune_student

    student, tokenizer = tiny_student(tmp_path / "student", seed=4)
    train_rows = rows(tokenizer)
    with torch.no_grad():  # random weights are nearly certain of nothing: make them say something
        teacher.model.model.norm.weight.mul_(20)
    run(teacher, train_rows, tmp_path / "t", kind="sampled", k=200, temperature=1.0)

    def distance():
        ids = torch.tensor([train_rows[0].ids])
        place = train_rows[0].loss_mask.index(1)
        p, q = (m(ids).logits[0, place - 1].softmax(-1) for m in (teacher.model, student))
        return (p * (p / q).log()).sum().item()

    before = distance()
    fine_tune_student(
        student,
        tokenizer,
        train_rows,
        [],
        loss=LossConfig(kind="forward_kl", sft_weight=0.0),
        train=quick(max_steps=40),
        targets=opened(teacher, tmp_path / "t", 1.0),
        out=run_dir(tmp_path / "run"),
    )
    assert distance() < 0.5 * before


def mapped(teacher, path, **changes):
    ours = renumbered_tokenizer()
    return ours, {
        "student_vocab_fingerprint": vocab_fingerprint(ours),
        "student_template_fingerprint": template_fingerprint(ours),
        "translation": Translation(ours, rows(teacher.tokenizer)),
        "max_dropped": 1.0,
        **changes,
    }


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_another_numbering_of_the_pieces_gets_the_probabilities_of_the_same_pieces(
    teacher, tmp_path, kind
):
    ours, settings = mapped(teacher, tmp_path, kind=kind, k=64, temperature=1.0)
    manifest = run(teacher, rows(ours), tmp_path / "t", **settings)
    store = TargetStore(
        tmp_path / "t",
        vocab_fingerprint=vocab_fingerprint(ours),
        template_fingerprint=template_fingerprint(ours),
        temperature=1.0,
    )
    mine, theirs = rows(ours)[0], rows(teacher.tokenizer)[0]
    assert mine.ids != theirs.ids
    ids, values = store.lookup(content_key(mine.ids, mine.loss_mask))
    logits = teacher.model(torch.tensor([theirs.ids])).logits[0].detach()
    foreign = [teacher.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|pad|>")]
    logits[:, foreign] = -torch.inf
    p = logits.softmax(-1)[[place - 1 for place, on in enumerate(theirs.loss_mask) if on]]
    names = ours.convert_ids_to_tokens(ids.clip(0)[0])
    wanted = p[0, teacher.tokenizer.convert_tokens_to_ids(names)].numpy()
    shares = np.exp(values[0]) if kind == "topk" else values[0]
    near = {"rtol": 0.15} if kind == "topk" else {"atol": 1 / 64}
    np.testing.assert_allclose(shares[ids[0] >= 0], wanted[ids[0] >= 0], **near)
    assert len(ids) == len(p)
    assert 0 < manifest.mass_dropped < 0.05


def test_more_lost_mass_than_allowed_is_refused(teacher, tmp_path):
    ours, settings = mapped(teacher, tmp_path, max_dropped=1e-6)
    for _ in ("first", "again"):
        with pytest.raises(VocabMismatch, match=r"% of its probability.*loss.targets.max_dropped"):
            run(teacher, rows(ours), tmp_path / "t", **settings)
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_answers_cut_another_way_are_refused_before_any_work(teacher, tmp_path):
    ours, settings = mapped(teacher, tmp_path)
    other = rows(ours, {**ANSWERS, "Where is my order?": "It will arrive on Tuesday."})
    with pytest.raises(VocabMismatch, match=r"1 of 4 answers are cut into other pieces"):
        run(teacher, other, tmp_path / "t", **settings)
    assert teacher.num_rows == 0
