"""Every token of a byte-level vocabulary is found by its bytes, and ends where its bytes end."""

from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from potstill.data.pieces import ids_by_bytes


def test_bytes_of_byte_level_pieces_are_those_of_the_text_they_write():
    tokenizer = tiny_tokenizer()
    words = ids_by_bytes(tokenizer)
    assert len(words) == len(tokenizer)
    for text in ("Where is my order?", "ഓർഡർ क्या\n\té \u00ad"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelled = {id_: word for word, id_ in words.items()}
        assert b"".join(spelled[id_] for id_ in ids) == text.encode()
    assert words[b"<|im_end|>"] == tokenizer.eos_token_id


def test_pieces_with_a_mark_for_the_space_are_preferred_to_bytes_of_last_resort():
    vocab = {"<unk>": 0, "<0x41>": 1, "<0xC3>": 2, "A": 3, "\u2581the": 4, "é": 5}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    words = ids_by_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert words[b"A"] == 3 and words[b"\xc3"] == 2
    assert words[b" the"] == 4 and words["é".encode()] == 5


def test_pieces_of_another_kind_are_not_guessed_at():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert ids_by_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) == {}
