"""Padding rows take no probability; tokenizers are mapped by bytes, or refused."""

import pytest
import torch
from tiny import tiny_tokenizer
from vocabularies import renumbered_tokenizer, sentencepiece_tokenizer, strange_tokenizer

from potstill.data.render import Rendered, render
from potstill.errors import VocabMismatch
from potstill.targets.align import (
    check_same_pieces,
    check_same_vocabulary,
    shared_logits,
    shared_tokens,
)
from potstill.targets.pieces import piece_bytes
from potstill.types import Message


def test_padding_rows_are_cut_off_and_their_mass_is_told():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 40, generator=generator)
    shared, dropped = shared_logits(logits, 33)
    assert shared.shape == (5, 33)
    torch.testing.assert_close(dropped, logits.softmax(-1)[:, 33:].sum(-1))


def test_a_shift_of_all_logits_changes_nothing():
    """Padding the narrower head with zeros would fail here."""
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    here, there = (shared_logits(x, 33)[0].log_softmax(-1) for x in (logits, logits + 7.0))
    torch.testing.assert_close(here, there)


def test_a_head_narrower_than_the_tokenizer_is_refused():
    with pytest.raises(VocabMismatch, match="33 tokens but its tokenizer has 40"):
        shared_logits(torch.zeros(2, 33), 40)


def test_another_tokenizer_is_sent_to_text_distillation():
    with pytest.raises(VocabMismatch, match=r"loss.kind: sft"):
        check_same_vocabulary("a" * 64, "b" * 64)


def end_of(tokenizer) -> int:
    return tokenizer.convert_tokens_to_ids("<|im_end|>")


def row(tokenizer, answer: str) -> Rendered:
    return render(tokenizer, (Message(role="user", content="Where is my order?"),), answer)


@pytest.mark.parametrize("kind", ["renumbered", "sentencepiece"])
def test_tokens_of_equal_bytes_are_shared_and_so_is_the_end_of_a_turn(kind):
    ours = renumbered_tokenizer() if kind == "renumbered" else sentencepiece_tokenizer()
    theirs = tiny_tokenizer()
    shared = shared_tokens(theirs, ours)
    pieces = piece_bytes(theirs), piece_bytes(ours)
    for teacher_id, student_id in zip(*(ids.tolist() for ids in shared), strict=True):
        assert pieces[0][teacher_id] == pieces[1][student_id]
    assert (end_of(theirs), end_of(ours)) in set(zip(*map(list, shared), strict=True))
    assert len(set(shared.teacher_S)) == len(set(shared.student_S)) == len(shared.student_S)
    if kind == "renumbered":
        assert len(shared.student_S) == len(theirs) - 2  # <|im_start|> and <|pad|> are not shared


def test_a_piece_goes_before_the_byte_of_last_resort():
    ours = sentencepiece_tokenizer()
    shared = shared_tokens(tiny_tokenizer(), ours)
    ids = set(shared.student_S.tolist())
    assert ours.convert_tokens_to_ids("t") in ids
    assert ours.convert_tokens_to_ids("<0x74>") not in ids
    assert ours.convert_tokens_to_ids("<0x75>") in ids  # "u" has no piece there


def test_vocabularies_with_little_in_common_are_refused():
    with pytest.raises(VocabMismatch, match=r"share 1 pieces.*loss.kind: sft"):
        shared_tokens(tiny_tokenizer(), strange_tokenizer())


def test_answers_cut_into_the_same_pieces_pass_and_others_are_counted():
    theirs, ours = tiny_tokenizer(), renumbered_tokenizer()
    shared = shared_tokens(theirs, ours)
    answers = ("It will arrive on Monday.", "9", "तीस दिनों")
    teacher_rows, student_rows = ([row(one, a) for a in answers] for one in (theirs, ours))
    check_same_pieces(teacher_rows, student_rows, shared)
    letters = [ours.convert_tokens_to_ids(letter) for letter in "It"]
    spelled = Rendered([*letters, end_of(ours)], [1, 1, 1])
    with pytest.raises(VocabMismatch, match=r"1 of 3 answers .*is row 1.*loss.kind: sft"):
        check_same_pieces(teacher_rows, [student_rows[0], spelled, student_rows[2]], shared)


def test_mass_on_tokens_that_are_not_shared_is_told():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([7, 3, 30])
    shared, dropped = shared_logits(logits, 33, columns)
    torch.testing.assert_close(shared, logits[:, columns])
    torch.testing.assert_close(dropped, 1 - logits.softmax(-1)[:, columns].sum(-1))
