"""Probabilities that came with an answer become a row's targets exactly where they are its own."""

import numpy as np
import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from potstill.data.render import render, vocab_fingerprint
from potstill.models.logprobs import LogprobArrays, pack_logprobs
from potstill.targets.codec import Row
from potstill.targets.store import TargetSettings, TargetStore, TargetWriter
from potstill.teach.kept import Fitted, Lesson, Source, fitted, keep, words_of
from potstill.types import Message, Response

TOKENIZER = tiny_tokenizer()
PRINT, END, V = vocab_fingerprint(TOKENIZER), TOKENIZER.eos_token_id, len(TOKENIZER)
ANSWER = "It will arrive on Monday."
RAW = Source(mode=None, is_plain=False)


def settings(**changes):
    return TargetSettings(
        **{"vocab_fingerprint": PRINT, "template_fingerprint": "t", "vocab_size": V, "k": 4,
           "temperatures": (1.0,), **changes}
    )  # fmt: skip


def decode(row: Row):
    """Ids and log-probabilities as they are given to the store."""
    return np.where(row.ids_NK < 0, row.ids_NK[:, :1], row.ids_NK), row.values_NK


def tails(row: Row):
    return 1 / (1 + np.exp(-row.log_odds_NT[:, 0]))


def tokens_of(text, *, end=True):
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([END] if end else [])]


def told(tokens, *, k=4, beyond=(), **facts):
    """The sampled token first with 0.5, then others with half of what is left each.

    Args:
        beyond: Ids that stand in the second place of every position.
    """
    others = [id_ for id_ in range(5, 60) if id_ not in tokens]
    ids = np.array([[token, *beyond, *others][:k] for token in tokens])
    values = np.log(np.tile(0.5 ** np.arange(1, k + 1), (len(tokens), 1)))
    tail = np.full(len(tokens), 0.5**k)
    facts = {"mode": "raw", "vocab_fingerprint": PRINT, **facts}
    return pack_logprobs(LogprobArrays(np.array(tokens), ids, values, tail), **facts)


def lesson(logprobs, *, answer=ANSWER, is_as_asked=True, learned=None, **changes):
    learned = answer if learned is None else learned
    row = render(TOKENIZER, (Message(role="user", content="Where is my order?"),), learned)
    update = {"record_id": "r", "text": answer, "finish_reason": "stop", **changes}
    return Lesson(row, learned, Response(**update, logprobs=logprobs), is_as_asked)


def fit(one, *, source=RAW, ends=frozenset(), **changes):
    words = lambda: words_of(TOKENIZER)  # noqa: E731
    return fitted(one, settings(**changes), source=source, words=words, ends=ends)


def test_kept_probabilities_of_the_same_tokens_are_the_targets():
    found = fit(lesson(told(tokens_of(ANSWER), has_end=True)))
    ids, logprobs = decode(found.encoded)
    assert ids[:, 0].tolist() == tokens_of(ANSWER)
    np.testing.assert_allclose(np.exp(logprobs), [[0.5, 0.25, 0.125, 0.0625]] * len(ids), rtol=2e-3)
    np.testing.assert_allclose(tails(found.encoded), 0.0625, rtol=1e-3)
    assert found.mass_dropped == 0


def test_more_than_enough_are_cut_and_their_mass_joins_the_tail():
    found = fit(lesson(told(tokens_of(ANSWER), k=10)), k=3)
    assert found.encoded.ids_NK.shape[-1] == 3
    np.testing.assert_allclose(tails(found.encoded), 0.125, rtol=1e-3)


def test_an_end_that_was_not_told_is_certain_where_the_answer_ended_by_itself():
    found = fit(lesson(told(tokens_of(ANSWER, end=False))))
    ids, logprobs = decode(found.encoded)
    assert len(ids) == len(tokens_of(ANSWER)) and ids[-1].tolist() == [END] * 4
    assert np.exp(logprobs[-1]).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert tails(found.encoded)[-1] == 0


def test_any_end_token_that_is_known_as_one_stands_for_the_rows_own():
    sampled = [*tokens_of(ANSWER, end=False), 0]
    assert isinstance(fit(lesson(told(sampled, has_end=True))), Fitted)
    assert isinstance(fit(lesson(told(sampled)), ends=frozenset({0, END})), Fitted)
    assert fit(lesson(told(sampled))) == "other_tokens"
    assert fit(lesson(told(sampled, has_end=False)), ends=frozenset({0})) == "other_tokens"


def test_tokens_that_are_told_as_bytes_are_the_students_pieces():
    spelled = {id_: word.hex() for word, id_ in words_of(TOKENIZER).items()}
    by_id = told(tokens_of(ANSWER, end=False))
    table = tuple(spelled[id_] for id_ in range(V))
    by_bytes = by_id.model_copy(update={"tokens": table, "vocab_fingerprint": None})
    assert fit(lesson(by_bytes)).encoded.ids_NK.tolist() == (
        fit(lesson(by_id)).encoded.ids_NK.tolist()
    )
    shifted = by_bytes.model_copy(update={"tokens": (*table[1:], "ff00")})
    assert fit(lesson(shifted)) == "other_tokens"


def test_what_the_students_vocabulary_has_not_is_left_out_and_counted():
    tokens = tokens_of(ANSWER)
    found = fit(lesson(told(tokens, k=6, beyond=(V + 3,))))
    _, logprobs = decode(found.encoded)
    assert found.mass_dropped == pytest.approx(0.25 * len(tokens), rel=1e-3)
    for row in (logprobs[0], found.encoded.values_NK[0].astype(float)):
        np.testing.assert_allclose(np.exp(row), np.array([32, 8, 4, 2]) / 48, rtol=2e-3)
    np.testing.assert_allclose(tails(found.encoded), 2 / 48, rtol=2e-3)
    known = fit(lesson(told(tokens, beyond=(V + 3,))))
    ids, logprobs = decode(known.encoded)
    assert np.isneginf(logprobs[:, -1]).all() and (ids[:, -1] == ids[:, 0]).all()


def test_tokens_that_are_spelled_alike_count_once():
    spelled = {id_: word.hex() for word, id_ in words_of(TOKENIZER).items()}
    other = spelled[70]
    table = tuple(other if id_ in range(5, 60) else spelled[id_] for id_ in range(V))
    alike = told([id_ for id_ in tokens_of("It", end=False)])
    alike = alike.model_copy(update={"tokens": table, "vocab_fingerprint": None})
    found = fit(lesson(alike, answer="It"))
    ids, logprobs = decode(found.encoded)
    assert ids[0, 1] == 70 and np.isneginf(logprobs[0, 2:]).all()
    assert found.mass_dropped == pytest.approx(0.125 + 0.0625, rel=1e-3)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (lesson(None), "not_kept"),
        (Lesson(lesson(None).row, ANSWER, None, True), "not_kept"),
        (lesson(told(tokens_of(ANSWER), k=3)), "too_few"),
        (lesson(told(tokens_of(ANSWER), temperature=2.0)), "other_temperature"),
        (lesson(told(tokens_of(ANSWER), mode="processed")), "processed"),
        (lesson(told(tokens_of(ANSWER), mode=None)), "processed"),
        (lesson(told(tokens_of(ANSWER)), is_as_asked=False), "other_prompt"),
        (lesson(told(tokens_of(ANSWER), vocab_fingerprint="0" * 64)), "other_vocabulary"),
        (lesson(told(tokens_of(ANSWER)), learned="It will arrive."), "other_text"),
        (lesson(told(tokens_of("Hm. " + ANSWER)), reasoning="Hm."), "other_text"),
        (lesson(told([*tokens_of("It will arr"), *tokens_of("ive on Monday.")])), "other_tokens"),
        (lesson(told(tokens_of(ANSWER, end=False)), finish_reason="length"), "cut"),
    ],
)
def test_what_is_not_the_rows_own_is_refused_with_its_reason(one, reason):
    assert fit(one) == reason


@pytest.mark.parametrize("vocabulary", [None, PRINT])
def test_unnamed_ids_are_the_students_where_they_spell_the_answer(vocabulary):
    assert isinstance(fit(lesson(told(tokens_of(ANSWER), vocab_fingerprint=vocabulary))), Fitted)
    others = [id_ + 1 for id_ in tokens_of(ANSWER)]
    assert fit(lesson(told(others, vocab_fingerprint=vocabulary))) == "other_tokens"


@pytest.mark.parametrize("source", [Source("raw", is_plain=False), Source(None, is_plain=True)])
def test_a_mode_that_nobody_told_is_taken_from_the_config_or_does_not_matter(source):
    assert isinstance(fit(lesson(told(tokens_of(ANSWER), mode=None)), source=source), Fitted)


def test_a_position_without_any_token_makes_the_answer_useless():
    logprobs = told(tokens_of(ANSWER))
    ids = np.frombuffer(logprobs.ids, "<u2").reshape(-1, 4).copy()
    ids[2] = 0xFFFF
    assert fit(lesson(logprobs.model_copy(update={"ids": ids.tobytes()}))) == "too_few"


def test_what_fits_is_in_the_store_and_the_rest_is_named(tmp_path):
    fits, cut = lesson(told(tokens_of(ANSWER))), lesson(told(tokens_of("No.", end=False)),
        answer="No.", finish_reason="length")  # fmt: skip
    writer = TargetWriter(tmp_path, settings())
    kept = keep([cut, fits, fits], writer, source=RAW, tokenizer=TOKENIZER)
    assert list(kept.misfits.values()) == ["cut"] and len(kept.rows) == 2
    assert writer.finish().num_rows == 1
    store = TargetStore(
        tmp_path, vocab_fingerprint=PRINT, template_fingerprint="t", temperature=1.0
    )
    (key,) = set(kept.rows) - set(kept.misfits)
    assert len(store.lookup(key)[0]) == len(tokens_of(ANSWER))
    again = keep([fits], TargetWriter(tmp_path, settings()), source=RAW, tokenizer=TOKENIZER)
    assert not again.misfits


def test_words_of_another_kind_of_tokenizer_are_not_guessed_at():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert words_of(PreTrainedTokenizerFast(tokenizer_object=backend)) == {}
