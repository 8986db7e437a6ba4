"""Weights are read from safe files only, and a GGUF file is converted once."""

import json
import os

import pytest
import torch
from tiny import tiny_llama

from potstill.errors import ConfigError, DataError
from potstill.models.catalog import find_model
from potstill.models.weights import cached_folder, load_tokenizer, load_weights, resolve_dtype


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(DataError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_weights(folder)


def test_code_in_the_models_folder_is_refused(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    config = folder / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "m.X"}})
    )
    with pytest.raises(DataError, match="auto_map"):
        load_weights(folder)


def test_cut_weights_are_an_error_of_ours(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    file = next(folder.glob("*.safetensors"))
    os.truncate(file, 1000)
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(folder)


def test_nothing_is_printed_while_loading(tmp_path, capfd):
    folder = tiny_llama(tmp_path / "m")
    capfd.readouterr()
    model, tokenizer = load_weights(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    assert capfd.readouterr() == ("", "")


def test_an_unknown_number_format_is_named():
    with pytest.raises(ConfigError, match="'int7'"):
        resolve_dtype("int7")


def test_an_endpoint_has_no_weights():
    with pytest.raises(ConfigError, match="is an endpoint"):
        cached_folder(find_model("https://h/v1"))


@pytest.mark.slow
def test_a_gguf_file_is_read_and_converted_once(smollm2, monkeypatch, tmp_path):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path))
    reader, reads = gguf.GGUFReader, []
    read = reader.__init__
    monkeypatch.setattr(
        reader, "__init__", lambda self, *given: reads.append(given) or read(self, *given)
    )
    model, tokenizer = load_weights(smollm2)
    assert len(reads) == 1, "the header takes seconds to parse"
    assert gguf.GGUFReader is reader
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    folder = cached_folder(smollm2)
    before = (folder / "config.json").stat().st_mtime_ns
    again, _ = load_weights(smollm2)
    assert (folder / "config.json").stat().st_mtime_ns == before
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_an_adapter_answers_as_its_base_with_the_adapter_in_it(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny_llama(tmp_path / "base")
    model, _ = load_weights(base)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        merged, tokenizer = load_weights(str(tmp_path / "adapter"))
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
        plain = load_weights(base)[0](input_ids=ids).logits
    assert not torch.allclose(plain, wanted, atol=1e-3)
    assert len(tokenizer) == len(load_tokenizer(base))
    assert cached_folder(find_model(str(tmp_path / "adapter"))) == cached_folder(
        find_model(str(tmp_path / "adapter"))
    )


def test_an_adapter_of_no_base_says_so(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="names no base model"):
        load_weights(tmp_path)


def test_another_chat_template_is_another_model(tmp_path):
    from potstill.models.fingerprint import weights_identity

    folder = tiny_llama(tmp_path / "m")
    before = weights_identity(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert weights_identity(folder) != before
