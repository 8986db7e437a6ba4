"""Which engine is started for weights: the first that is installed."""

import os

import pytest

from potstill.models.catalog import find_model
from potstill.serve.opening import engine_for


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def make(*names):
        for name in names:
            command = tmp_path / "bin" / name
            command.write_text("#!/bin/sh\n")
            os.chmod(command, 0o755)

    return make


@pytest.mark.parametrize(
    ("installed", "engine"),
    [
        ((), None),
        (("vllm",), None),
        (("ollama",), "ollama"),
        (("ollama", "llama-server"), "llama-server"),
    ],
)
def test_llama_server_is_preferred_to_ollama_for_a_gguf_file(tmp_path, install, installed, engine):
    install(*installed)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    assert engine_for(find_model(str(tmp_path / "small.gguf"))) == engine


def test_a_folder_is_for_vllm_and_an_adapter_for_nobody(tmp_path, install):
    install("ollama", "llama-server", "vllm")
    (tmp_path / "config.json").write_text("{}")
    assert engine_for(find_model(str(tmp_path))) == "vllm"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert engine_for(find_model(str(tmp_path))) is None
