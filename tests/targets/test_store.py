"""The store gives each row its own targets, or refuses and says the way out."""

import json

import numpy as np
import pytest

from potstill.errors import DataError, VocabMismatch
from potstill.targets.codec import Row, topk_row
from potstill.targets.store import TargetSettings, TargetStore, TargetWriter, content_key

V, K = 1009, 5
SETTINGS = TargetSettings(
    vocab_fingerprint="v" * 64,
    template_fingerprint="t" * 64,
    vocab_size=V,
    k=K,
    temperatures=(2.0,),
)
READER = {"vocab_fingerprint": "v" * 64, "template_fingerprint": "t" * 64, "temperature": 2.0}


def row(number: int, length: int = 3):
    """A row whose ids tell its number, so that a mix-up is seen."""
    ids = np.arange(K)[None] + np.full((length, 1), 10 * number)
    logprobs = np.log(np.tile([[0.4, 0.2, 0.1, 0.05, 0.05]], (length, 1)))
    return topk_row(ids, logprobs, temperature=2.0)


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
        np.testing.assert_allclose(np.exp(logprobs[0]), [0.4, 0.2, 0.1, 0.05, 0.05], rtol=0.07)
        assert np.exp(logprobs[0]).sum() == pytest.approx(0.8, abs=1e-3)
    assert manifest.mass_kept == pytest.approx(0.8, abs=1e-4)
    assert (manifest.num_rows, manifest.num_positions) == (3, 6)


def test_rows_of_a_batch_come_one_after_the_other(tmp_path):
    written(tmp_path)
    store = TargetStore(tmp_path, **READER)
    ids, logprobs = store.batch([key(2), key(0)])
    assert ids[:, 0].tolist() == [20, 20, 20, 0]
    assert store.batch([key(0), key(2)]).ids_NK[:, 0].tolist() == [0, 20, 20, 20]
    assert logprobs.shape == (4, K)


def test_the_manifest_tells_bytes_by_part_and_the_error_of_what_was_written(tmp_path):
    manifest = written(tmp_path)
    assert sum(manifest.parts.values()) == pytest.approx(manifest.bytes_per_position)
    files = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert manifest.bytes_per_position == pytest.approx(files / 6)
    assert manifest.parts["tail"] == 2
    (at,) = manifest.at
    assert at.temperature == 2.0
    logprobs = TargetStore(tmp_path, **READER).lookup(key(0)).logprobs_NK
    given = np.array([0.4, 0.2, 0.1, 0.05, 0.05])
    kl = (given * (np.log(given) - logprobs[0])).sum()
    kl += 0.2 * np.log(0.2 / (1 - np.exp(logprobs[0]).sum()))
    assert at.error_nats == pytest.approx(kl, abs=1e-6)
    assert at.worst_error_nats == pytest.approx(kl, abs=1e-6)


def test_every_stored_temperature_can_be_trained_at(tmp_path):
    settings = SETTINGS.model_copy(update={"temperatures": (1.0, 2.0)})
    logits = np.log([[0.4, 0.2, 0.1, 0.05, 0.05]])
    writer = TargetWriter(tmp_path, settings)
    writer.write([key(0)], [Row(np.arange(K)[None], logits, np.log([[0.25, 1.0]]))])
    writer.finish()
    kept = {}
    for temperature in (1.0, 2.0):
        store = TargetStore(tmp_path, **{**READER, "temperature": temperature})
        kept[temperature] = np.exp(store.lookup(key(0)).logprobs_NK[0])
    assert kept[1.0].sum() == pytest.approx(0.8, abs=1e-3)
    assert kept[2.0].sum() == pytest.approx(0.5, abs=1e-3)
    ratios = kept[1.0][0] / kept[1.0][1], kept[2.0][0] / kept[2.0][1]
    assert ratios == (pytest.approx(2, rel=0.2), pytest.approx(2**0.5, rel=0.1))
    with pytest.raises(DataError, match=r"loss.temperature 1, 2 and cannot be softened to 3"):
        TargetStore(tmp_path, **{**READER, "temperature": 3.0})


def test_draws_come_back_as_weights_that_sum_to_one(tmp_path):
    settings = SETTINGS.model_copy(update={"kind": "sampled", "k": 4})
    writer = TargetWriter(tmp_path, settings)
    writer.write(
        [key(0)], [Row(np.array([[9, 3, -1], [5, -1, -1]]), np.array([[3, 1, 0], [4, 0, 0]]))]
    )
    writer.write([key(1)], [Row(np.array([[8]]), np.array([[4]]))])
    manifest = writer.finish()
    found = TargetStore(tmp_path, **READER).batch([key(0), key(1)])
    assert found.ids_NK.tolist() == [[3, 9], [5, -1], [8, -1]]
    assert found.weights_NK.tolist() == [[0.25, 0.75], [1, 0], [1, 0]]
    assert (manifest.at, manifest.tokens_per_position) == ((), pytest.approx(4 / 3))


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


def test_a_store_of_the_first_format_is_refused_with_the_way_out(tmp_path):
    written(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": "potstill-targets-1"}))
    with pytest.raises(DataError, match=r"'potstill-targets-1'.*score again: potstill score"):
        TargetStore(tmp_path, **READER)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "potstill-targets-2"}'])
def test_a_damaged_manifest_is_named(tmp_path, damage):
    written(tmp_path)
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(DataError, match="score again"):
        TargetStore(tmp_path, **READER)


def test_every_byte_of_a_shard_is_guarded(tmp_path):
    written(tmp_path)
    shard = tmp_path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 37):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match="damaged"):
            TargetStore(tmp_path, **READER)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
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
    other = TargetWriter(tmp_path, SETTINGS.model_copy(update={"temperatures": (1.0,)}))
    assert key(0) not in other
    other.write([key(1)], [row(1)])
    assert other.finish().num_rows == 1
