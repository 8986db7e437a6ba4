"""What each token adds to the cache is read from the files of a model."""

import json

import pytest

from potstill.errors import DataError
from potstill.examine.footprint import cache_bytes_per_token, longest_context


def folder(path, **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


PLAIN = {"num_hidden_layers": 5, "num_attention_heads": 4, "hidden_size": 32}


def test_a_token_adds_keys_and_values_of_every_layer(tmp_path):
    found = cache_bytes_per_token(folder(tmp_path / "a", **PLAIN), dtype="float32")
    assert found.value == 2 * 5 * 4 * 8 * 4
    assert (found.unit, found.note) == ("bytes", "cache in float32")


def test_shared_heads_and_a_size_of_their_own_count(tmp_path):
    path = folder(tmp_path / "a", **PLAIN, num_key_value_heads=2, head_dim=16)
    assert cache_bytes_per_token(path).value == 2 * 5 * 2 * 16 * 2


def test_a_window_is_said(tmp_path):
    path = folder(tmp_path / "a", **PLAIN, sliding_window=4096)
    assert "4,096" in cache_bytes_per_token(path).note
    off = folder(tmp_path / "b", **PLAIN, sliding_window=4096, use_sliding_window=False)
    assert "4,096" not in cache_bytes_per_token(off).note


def test_the_text_model_inside_another_is_meant(tmp_path):
    path = folder(tmp_path / "a", text_config=PLAIN)
    assert cache_bytes_per_token(path).value == 2 * 5 * 4 * 8 * 2


def test_latent_attention_is_counted_as_it_is_kept(tmp_path):
    path = folder(tmp_path / "a", **PLAIN, kv_lora_rank=512, qk_nope_head_dim=6,
                  qk_rope_head_dim=2, v_head_dim=7)  # fmt: skip
    assert cache_bytes_per_token(path).value == 5 * 4 * (8 + 7) * 2


def test_a_config_that_does_not_say_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="num_hidden_layers"):
        cache_bytes_per_token(folder(tmp_path / "a", hidden_size=8))
    with pytest.raises(DataError, match=r"config\.json"):
        cache_bytes_per_token(tmp_path)


def test_a_gguf_file_says_the_same_as_the_folder_it_was_made_of(tmp_path):
    pytest.importorskip("gguf")
    from tiny import tiny_llama

    from potstill.examine.footprint import tensor_bytes
    from potstill.export.gguf import export_gguf

    model = tiny_llama(tmp_path / "model", layers=3)
    file = export_gguf(model, tmp_path / "out", quant="f16")
    assert cache_bytes_per_token(file).value == cache_bytes_per_token(model).value
    assert 0 < tensor_bytes(file) < file.stat().st_size


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({"config.json": {"max_position_embeddings": 512}}, 512),
        ({"config.json": {"text_config": {"max_position_embeddings": 300}}}, 300),
        ({"config.json": {}, "generation_config.json": {"max_length": 20}}, None),
        ({"config.json": {}, "generation_config.json": {"max_length": 640}, "model.bin": 0}, 640),
        ({"genai_config.json": {"model": {"context_length": 700}}}, 700),
        ({}, None),
    ],
)
def test_the_longest_context_is_where_the_folders_engine_reads_it(files, tokens, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert longest_context(tmp_path) == tokens


def test_a_gguf_file_tells_its_longest_context(tmp_path):
    from tiny import tiny_llama

    from potstill.export.gguf import export_gguf

    assert longest_context(export_gguf(tiny_llama(tmp_path / "m"), tmp_path / "out")) == 512
