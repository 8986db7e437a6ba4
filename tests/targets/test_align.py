"""Padding rows of a head take no probability, and foreign tokenizers are refused."""

import pytest
import torch

from potstill.errors import VocabMismatch
from potstill.targets.align import check_same_vocabulary, shared_logits


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
