"""The store gives each row its own targets, or refuses and says the way out."""

import numpy as np
import pytest

from potstill.errors import DataError, VocabMismatch
from potstill.targets.codec import encode
from potstill.targets.store import TargetSettings, TargetStore, TargetWriter, content_key

V, K = 1009, 5
SETTINGS = TargetSettings(
    vocab_fingerprint="v" * 64, template_fingerprint="t" * 64, vocab_size=V, k=K, temperature=2.0
)
READER = {"vocab_fingerprint": "v" * 64, "template_fingerprint": "t" * 64, "temperature": 2.0}


def row(number: int, length: int = 3):
    """A row whose ids tell its number, so that a mix-up is seen."""
    ids = np.arange(K)[None] + np.full((length, 1), 10 * number)
    logprobs = np.log(np.tile([[0.4, 0.2, 0.1, 0.05, 0.05]], (length, 1)))
    return encode(ids, logprobs, vocab_size=V)


def key(number: int) -> bytes:
    return content_key([number, 7, 8], [0, 1, 1])


def written(path, shards=((0, 1), (2,))):
    writer = TargetWriter(path, SETTINGS)
    for numbers in shards:
        writer.write([key(n) for n in numbers], [row(n, n + 1) for n in numbers])
    return writer.finish()


def test_each_row_gets_back_its_own_targets(tmp_path):
    manifest = written(tmp_path)
    store = TargetStore(tmp_path, **READER)
    for number in (2, 0, 1):
        ids, logprobs = store.lookup(key(number))
        assert ids.shape == (number + 1, K)
        assert ids[0, 0] == 10 * number
        np.testing.assert_allclose(np.exp(logprobs[0]), [0.4, 0.2, 0.1, 0.05, 0.05], rtol=1e-3)
    assert manifest.mass_kept == pytest.approx(0.8, abs=1e-4)
    assert (manifest.num_rows, manifest.num_positions) == (3, 6)


def test_a_key_depends_on_tokens_and_on_where_loss_is():
    keys = {
        content_key([1, 2, 3], [0, 1, 1]),
        content_key([1, 2, 4], [0, 1, 1]),
        content_key([1, 2, 3], [0, 0, 1]),
    }
    assert len(keys) == 3


def test_another_vocabulary_is_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(VocabMismatch, match=r"loss.kind: sft"):
        TargetStore(tmp_path, **{**READER, "vocab_fingerprint": "w" * 64})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template_fingerprint": "x" * 64}, "another chat template"),
        ({"temperature": 1.0}, "loss.temperature 2 and cannot be softened to 1"),
    ],
)
def test_another_template_or_temperature_is_refused(tmp_path, change, message):
    written(tmp_path)
    with pytest.raises(DataError, match=message):
        TargetStore(tmp_path, **{**READER, **change})


def test_one_flipped_bit_is_found(tmp_path):
    written(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged .* score again"):
        TargetStore(tmp_path, **READER)


def test_an_unfinished_store_is_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="scoring has not finished"):
        TargetStore(tmp_path, **READER)


def test_a_row_that_was_not_scored_is_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(DataError, match="no targets for a row"):
        TargetStore(tmp_path, **READER).lookup(key(9))


def test_a_second_writer_goes_on_where_the_first_was_killed(tmp_path):
    first = TargetWriter(tmp_path, SETTINGS)
    first.write([key(0)], [row(0)])
    (tmp_path / "shard-00001.safetensors.part").write_bytes(b"cut")
    second = TargetWriter(tmp_path, SETTINGS)
    assert key(0) in second
    second.write([key(1)], [row(1)])
    assert second.finish().num_rows == 2
    assert not list(tmp_path.glob("*.part"))


def test_shards_of_other_settings_are_not_mixed_in(tmp_path):
    TargetWriter(tmp_path, SETTINGS).write([key(0)], [row(0)])
    other = TargetWriter(tmp_path, SETTINGS.model_copy(update={"temperature": 1.0}))
    assert key(0) not in other
    other.write([key(1)], [row(1)])
    assert other.finish().num_rows == 1
