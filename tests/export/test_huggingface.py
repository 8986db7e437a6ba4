"""The exported folder is the student, in the number format that was asked for."""

import pytest
import torch
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.errors import ExportError
from potstill.export.huggingface import export_huggingface
from potstill.export.manifest import read_manifest


def test_a_copy_is_equal_to_the_last_bit(tmp_path):
    source = tiny_llama(tmp_path / "m")
    folder = export_huggingface(source, tmp_path / "out")
    for file in source.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert read_manifest(folder).quant == "as trained"


@pytest.mark.parametrize(("quant", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_another_number_format_loads_as_that(tmp_path, quant, dtype):
    source = tiny_llama(tmp_path / "m")
    folder = export_huggingface(source, tmp_path / "out", quant=quant)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == dtype
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_an_unknown_format_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ExportError, match="bf16, f16, f32 or adapter, got 'q8_0'"):
        export_huggingface(tiny_llama(tmp_path / "m"), tmp_path / "out", quant="q8_0")
    assert not (tmp_path / "out").exists()
