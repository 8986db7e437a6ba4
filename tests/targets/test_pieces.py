"""Pieces of every usual kind of tokenizer are the bytes they stand for."""

import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from vocabularies import sentencepiece

from potstill.errors import VocabMismatch
from potstill.targets.pieces import ids_by_bytes, piece_bytes

TEXTS = ("The answer: 12 - 3 = 9.\n\n\tOK", "तीस दिनों", "😀 café", "  two  spaces ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_the_pieces_of_a_text_joined_are_its_bytes(kind, text):
    tokenizer = tiny_tokenizer().backend_tokenizer if kind == "byte_level" else sentencepiece()
    pieces = piece_bytes(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(pieces[id_] for id_ in ids) == text.encode()


def test_control_tokens_have_no_bytes_and_added_words_have_their_own():
    tokenizer = sentencepiece()
    pieces = piece_bytes(tokenizer)
    assert [pieces[tokenizer.token_to_id(name)] for name in ("<s>", "</s>", "<unk>")] == [None] * 3
    assert pieces[tokenizer.token_to_id("<tool>")] == b"<tool>"
    assert pieces[tokenizer.token_to_id("<0x0A>")] == b"\n"
    assert pieces[tokenizer.token_to_id("\u2581the")] == b" the"


def test_every_token_has_a_place_and_a_transformers_tokenizer_will_do():
    tokenizer = tiny_tokenizer()
    pieces = piece_bytes(tokenizer)
    assert len(pieces) == len(tokenizer)
    assert pieces == piece_bytes(tokenizer.backend_tokenizer)
    assert pieces[tokenizer.eos_token_id] is None


def test_a_tokenizer_of_another_kind_is_refused_with_the_way_out():
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(VocabMismatch, match=r"neither byte-level BPE nor .*loss.kind: sft"):
        piece_bytes(tokenizer)


def test_each_token_is_found_by_its_bytes_and_control_tokens_by_their_names():
    tokenizer = tiny_tokenizer()
    words = ids_by_bytes(tokenizer, with_control=True)
    assert len(words) == len(tokenizer)
    assert words[b"<|im_end|>"] == tokenizer.eos_token_id
    assert b"<|im_end|>" not in ids_by_bytes(tokenizer)


def test_pieces_are_preferred_to_bytes_of_last_resort():
    vocab = {"<unk>": 0, "<0x41>": 1, "<0xC3>": 2, "A": 3, "\u2581the": 4, "é": 5}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    words = ids_by_bytes(tokenizer)
    assert words[b"A"] == 3 and words[b"\xc3"] == 2
    assert words[b" the"] == 4 and words["é".encode()] == 5
