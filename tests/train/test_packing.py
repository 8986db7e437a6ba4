"""Packed documents: each is computed as if it were alone, in every family that can."""

import logging

import pytest
import torch
from families import FAMILIES, tiny_family
from training import quick, rows, run_dir, tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from potstill.config import LossConfig
from potstill.data.batch import collate, pack
from potstill.data.render import Rendered
from potstill.errors import TrainError
from potstill.models.packed import (
    BY_DOCUMENT,
    attend_as_before,
    attend_by_document,
    packed_states,
    packing_error,
)
from potstill.train.loop import Training, fine_tune_student
from potstill.train.objective import Objective
from potstill.train.packing import Parts, choose_parts
from potstill.train.student import prepare_student

SFT = LossConfig()
DOCUMENTS = [
    Rendered([(7 * i + 11 * n) % 400 + 3 for i in range(n)], [0] * (n // 2) + [1] * (n - n // 2))
    for n in (25, 3, 12, 2)
]
"""One longer than any sliding window here, and two of a few tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family's tiny model."""
    torch.set_num_threads(1)
    return lambda family: tiny_family(tmp_path_factory.mktemp("family") / "model", family)


def loss_and_gradient(model, documents, *, packed):
    model.zero_grad()
    batch = pack(documents) if packed else collate(documents, pad_id=0)
    positions = {"position_BT": batch.position_BT} if packed else {}
    loss = Objective(model, SFT)(batch.ids_BT, batch.loss_mask_BT, None, None, **positions).loss
    loss.backward()
    return loss.item(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("by_document", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_loss_and_gradient_of_each_alone(family, by_document, folder):
    model = AutoModelForCausalLM.from_pretrained(folder(family))
    alone = [loss_and_gradient(model, [one], packed=False) for one in DOCUMENTS]
    if by_document:
        attend_by_document(model)
    loss, gradient = loss_and_gradient(model, DOCUMENTS, packed=True)
    assert loss == pytest.approx(sum(part for part, _ in alone), rel=1e-5)
    for name, value in gradient.items():
        wanted = sum(part[name] for _, part in alone)
        scale = wanted.abs().max().item()
        torch.testing.assert_close(value, wanted, atol=2e-5 * max(scale, 1.0), rtol=0)


def test_a_model_with_the_attention_of_packed_rows_computes_others_as_before(folder):
    model = AutoModelForCausalLM.from_pretrained(folder("gemma3"))
    ids = torch.tensor([DOCUMENTS[0].ids, DOCUMENTS[0].ids[::-1]])
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with torch.no_grad():
        before = model(ids, attention_mask=mask).logits
        attend_by_document(model)
        assert model.config._attn_implementation == BY_DOCUMENT
        assert torch.equal(model(ids, attention_mask=mask).logits, before)
        attend_as_before(model)
    assert model.config._attn_implementation == "sdpa"


def test_no_score_is_computed_between_documents(folder):
    """With a mask for the whole row a long row would cost the square of its length."""
    model = AutoModelForCausalLM.from_pretrained(folder("llama3"))
    attend_by_document(model)
    seen = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    batch = pack(DOCUMENTS)
    packed_states(model, batch.ids_BT, batch.position_BT)
    assert seen[0].lengths == (25, 3, 12, 2)
    assert seen[0].masks == (None,) * 4


def convolving():
    """A small LFM2: its convolutions run on over the border of two documents."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=421,
        hidden_size=32,
        intermediate_size=52,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "conv", "full_attention"],
        initializer_range=0.2,
    )
    return Lfm2ForCausalLM(config)


def test_a_family_in_which_documents_see_each_other_is_padded(caplog):
    model = convolving()
    assert packing_error(model, [one.ids for one in DOCUMENTS]) > 0.1
    with caplog.at_level(logging.INFO):
        parts = choose_parts(model, DOCUMENTS, quick(), pad_id=0)
    assert not parts.packed
    assert "rows are padded, because in Lfm2ForCausalLM packed rows see each other" in caplog.text
    assert model.config._attn_implementation == "sdpa"


def test_packing_that_is_asked_for_is_refused_where_documents_would_see_each_other():
    with pytest.raises(TrainError, match=r"set train\.packing: auto"):
        choose_parts(convolving(), DOCUMENTS, quick(packing=True), pad_id=0)


def test_a_loss_that_does_not_know_positions_gets_padded_rows(tmp_path):
    model, _ = tiny_student(tmp_path / "m")
    assert choose_parts(model, DOCUMENTS, quick(), pad_id=0).packed
    parts = choose_parts(model, DOCUMENTS, quick(), pad_id=0, takes_packed=False)
    assert not parts.packed


@pytest.mark.parametrize(
    ("changes", "packed"),
    [({}, False), ({"order": "random"}, True), ({"packing": True}, True)],
    ids=["of like length", "random", "packed in any case"],
)
def test_steps_that_are_hardly_padded_are_not_packed(tmp_path, changes, packed):
    model, tokenizer = tiny_student(tmp_path / "m")
    lengths = [10] * 8 + [40] * 8
    many = [Rendered([5 + i % 300 for i in range(n)], [0] + [1] * (n - 1)) for n in lengths]
    train = quick(batch_size=8, **changes)
    student = prepare_student(model, train, torch.device("cpu"))
    training = Training(student, tokenizer, many, [], SFT, train, None)
    assert training.parts.packed is packed
    assert (training.plan.padding > 1.15) is ("order" in changes)
    assert training.parts.max_tokens == 2048, "memory is bounded however rows are computed"


def test_parts_hold_the_same_rows_however_they_are_cut():
    lengths = [5, 40, 12, 33, 8, 21, 9]
    ways = [
        Parts(True, 0, max_tokens=50),
        Parts(True, 0, max_rows=2),
        Parts(False, 0),
        Parts(False, 0, max_rows=3),
        Parts(False, 0, max_tokens=60),
    ]
    for parts in ways:
        found = parts.cut([6, 1, 3, 4], lengths)
        assert sorted(row for part in found for row in part) == [1, 3, 4, 6], parts
        assert parts.cut([], lengths) == []


def test_rows_before_and_after_the_switch_of_longrope_never_share_a_packed_row(folder):
    model = AutoModelForCausalLM.from_pretrained(folder("phi3.5"))
    parts = choose_parts(model, DOCUMENTS, quick(micro_batch_tokens=10_000), pad_id=0)
    lengths = [257, 258, 20, 300]
    assert [sorted(part) for part in parts.cut([0, 1, 2, 3], lengths)] == [[0, 2], [1, 3]]


def test_longrope_packs_short_rows_beside_long_ones_without_changing_either(folder):
    model = AutoModelForCausalLM.from_pretrained(folder("phi3.5"))
    long = Rendered([(7 * i) % 400 + 3 for i in range(290)], [0] * 280 + [1] * 10)
    documents = [long, *DOCUMENTS]
    parts = choose_parts(model, documents, quick(micro_batch_tokens=10_000), pad_id=0)
    alone = sum(loss_and_gradient(model, [one], packed=False)[0] for one in documents)
    cut = parts.cut(range(len(documents)), [len(one.ids) for one in documents])
    packed = sum(
        loss_and_gradient(model, [documents[row] for row in part], packed=True)[0] for part in cut
    )
    assert packed == pytest.approx(alone, rel=1e-5)


def test_the_validation_loss_does_not_depend_on_packing(tmp_path):
    found = []
    for packing in (True, False):
        model, tokenizer = tiny_student(tmp_path / "m")
        train = quick(packing=packing, batch_size=3)
        student = prepare_student(model, train, torch.device("cpu"))
        known = rows(tokenizer)
        found.append(Training(student, tokenizer, known, known, SFT, train, None).look())
    assert found[0]["validation/loss_nats"] == pytest.approx(
        found[1]["validation/loss_nats"], abs=1e-6
    )


def test_a_student_trained_on_packed_rows_is_saved_as_any_other(tmp_path):
    saved = []
    for packing in (True, False):
        model, tokenizer = tiny_student(tmp_path / "m")
        out = run_dir(tmp_path / str(packing))
        train = quick(packing=packing, max_steps=5, micro_batch_tokens=48)
        fine_tune_student(
            model, tokenizer, rows(tokenizer), (), loss=SFT, train=train, targets=None, out=out
        )
        assert model.config._attn_implementation == "sdpa"
        saved.append(AutoModelForCausalLM.from_pretrained(out.model))
        assert AutoTokenizer.from_pretrained(out.model).chat_template == tokenizer.chat_template
    for (name, packed), padded in zip(
        saved[0].state_dict().items(), saved[1].state_dict().values(), strict=True
    ):
        # AdamW's first steps are the sign of the gradient: what is near 0 may tip over.
        assert (packed - padded).abs().mean() < 1e-5, name
