"""Azure's job, as object and as YAML, becomes our config or a list of reasons why not."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from potstill.dialects import from_azure, read_azure_file, read_job
from potstill.errors import ConfigError

_spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "stand_in.py")
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)
azure_job = stand_in.azure_job

CANARY = "sk-canary-5f1d7c"


def written(folder, **changes):
    tree = {"type": "distillation", **stand_in.azure_arguments(folder), **changes}
    tree["teacher_model_endpoint_connection"]["type"] = "serverless"
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def problems_of(folder, **changes):
    with pytest.raises(ConfigError) as caught:
        from_azure(azure_job(folder, **changes))
    return str(caught.value)


def test_every_field_has_its_place(tmp_path):
    config = from_azure(azure_job(tmp_path)).config
    assert (config.name, config.task) == ("faq-bot", "qa")
    assert config.teacher.url == "https://llama-405b.example/v1"
    assert config.teacher.key == "env:AZURE_TEACHER_KEY"
    assert config.student.source == "Meta-Llama-3.1-8B-Instruct"
    assert config.train_data == (tmp_path / "train.jsonl",)
    assert config.data.validation == tmp_path / "validation.jsonl"
    generation = config.generation
    assert (generation.temperature, generation.max_new_tokens, generation.top_p) == (0.1, 100, 0.95)
    assert (generation.frequency_penalty, generation.presence_penalty) == (0.5, -0.5)
    assert (generation.stop, generation.prompting) == (("END",), "chain_of_thought")
    assert (generation.max_in_flight, generation.min_success_ratio) == (5, 0.8)
    assert (config.train.learning_rate, config.train.num_epochs) == (2e-5, 2)


def test_object_and_yaml_mean_the_same(tmp_path):
    path = written(tmp_path)
    from_object = from_azure(azure_job(tmp_path))
    assert read_azure_file(path).config == from_object.config
    assert read_job(path).config == from_object.config


def test_a_job_without_request_settings_has_azures_defaults(tmp_path):
    tree = {"type": "distillation", **stand_in.azure_arguments(tmp_path)}
    del tree["teacher_model_settings"], tree["prompt_settings"]
    generation = from_azure(tree).config.generation
    assert (generation.max_in_flight, generation.min_success_ratio) == (10, 0.7)
    assert generation.max_summary_words == 80


def test_what_has_no_effect_is_said(tmp_path):
    notes = " ".join(from_azure(azure_job(tmp_path)).notes)
    assert f"resources.instance_type {stand_in.INSTANCE!r} has no effect here" in notes


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"learning_rate": "0.00004", "per_device_train_batch_size": "4", "num_train_epochs": "2"},
        {"learning_rate_multiplier": "2", "batch_size": "4", "n_epochs": "2"},
        {"learning_rate": 4e-5, "batch_size": 4, "num_epochs": 2, "warmup": None},
    ],
)
def test_all_three_sets_of_hyperparameters_are_understood(tmp_path, hyperparameters):
    train = from_azure(azure_job(tmp_path, hyperparameters=hyperparameters)).config.train
    assert (train.learning_rate, train.batch_size, train.num_epochs) == (4e-5, 4, 2)


def test_chain_of_density_is_for_summaries(tmp_path):
    settings = {"enable_chain_of_density": True, "max_len_summary": 40}
    changes = {"prompt_settings": settings, "data_generation_task_type": "summarization"}
    generation = from_azure(azure_job(tmp_path, **changes)).config.generation
    assert (generation.prompting, generation.max_summary_words) == ("chain_of_density", 40)


def test_data_generation_makes_as_many_prompts_as_there_are(tmp_path):
    job = azure_job(tmp_path, data_generation_type="data_generation")
    found = from_azure(job).config.data_generation
    assert found is not None
    assert found.num_prompts is None
    assert from_azure(azure_job(tmp_path)).config.data_generation is None


REFUSED = {
    "a success ratio of 9": (
        {
            "teacher_model_settings": {
                "inference_parameters": {},
                "endpoint_request_settings": {
                    "min_endpoint_success_ratio": 9,
                    "request_batch_size": None,
                },
            }
        },
        "min_endpoint_success_ratio: must be a share from 0 to 1, got 9",
    ),
    "a request batch of 0": (
        {
            "teacher_model_settings": {
                "inference_parameters": {},
                "endpoint_request_settings": {
                    "request_batch_size": 0,
                    "min_endpoint_success_ratio": None,
                },
            }
        },
        "request_batch_size: must be a whole number from 1 to 100, got 0",
    ),
    "a batch of minus three": (
        {"hyperparameters": {"batch_size": -3}},
        "hyperparameters.batch_size: Input should be greater than or equal to 1, got -3",
    ),
    "a task called poetry": (
        {"data_generation_task_type": "poetry"},
        "data_generation_task_type: 'poetry' is not known; there are: conversation",
    ),
    "an unknown inference parameter": (
        {
            "teacher_model_settings": {
                "inference_parameters": {"temprature": 1},
                "endpoint_request_settings": {},
            }
        },
        "temprature: no such inference parameter; did you mean temperature?",
    ),
    "chain of thought for summaries": (
        {"data_generation_task_type": "SUMMARIZATION"},
        "chain of thought is not for SUMMARIZATION",
    ),
    "chain of density for questions": (
        {"prompt_settings": {"enable_chain_of_density": True}},
        "chain of density is only for SUMMARIZATION",
    ),
    "both chains": (
        {"prompt_settings": {"enable_chain_of_density": True, "enable_chain_of_thought": True}},
        "cannot both be enabled",
    ),
    "two names for one hyperparameter": (
        {"hyperparameters": {"n_epochs": 1, "num_epochs": 2}},
        "hyperparameters.num_epochs: hyperparameters.n_epochs says the same thing",
    ),
    "an unknown hyperparameter": (
        {"hyperparameters": {"learning_rte": 1}},
        "hyperparameters.learning_rte: no such hyperparameter; did you mean learning_rate",
    ),
    "data in Azure's store": (
        {"training_data": "azureml:faq:3"},
        "training_data: 'azureml:faq:3' is not a file on this machine; download it first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_azure_lets_through_is_refused_with_the_reason(tmp_path, case):
    changes, reason = REFUSED[case]
    assert reason in problems_of(tmp_path, **changes)


def test_all_problems_are_named_at_once(tmp_path):
    text = problems_of(
        tmp_path, data_generation_task_type="poetry", hyperparameters={"batch_size": -3, "x": 1}
    )
    assert len(text.splitlines()) == 4, text


def test_a_refused_value_is_not_called_missing_as_well(tmp_path):
    assert "required" not in problems_of(tmp_path, data_generation_task_type="poetry")


def test_a_key_in_clear_is_kept_out_of_the_config_and_out_of_sight(tmp_path):
    connection = {"name": "t", "endpoint": "https://t.example/v1", "api_key": CANARY}
    dialect = from_azure(azure_job(tmp_path, teacher_model_endpoint_connection=connection))
    assert dialect.secrets["teacher"].get_secret_value() == CANARY
    assert dialect.config.teacher.key == "env:POTSTILL_TEACHER_KEY"
    assert CANARY not in repr(dialect)
    assert "env:NAME" in " ".join(dialect.notes)


def test_a_key_in_a_broken_file_is_not_quoted(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(f"type: distillation\napi_key: '{CANARY}\n")
    with pytest.raises(ConfigError) as caught:
        read_azure_file(path)
    assert CANARY not in str(caught.value)


def test_the_registered_model_names_the_model(tmp_path):
    outputs = {"registered_model": {"type": "mlflow_model", "name": "Llama-Faq"}}
    assert from_azure(azure_job(tmp_path, outputs=outputs)).model_name == "llama-faq"


def test_an_unknown_key_of_the_yaml_has_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"prompt_setings: no such key; did you mean prompt_s"):
        read_azure_file(written(tmp_path, prompt_setings={}))
