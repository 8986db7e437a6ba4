"""Run by test_real_object.py in the SDK's environment: prints what both objects become."""

import json
import logging
import os
import sys
from pathlib import Path

import stand_in
import yaml

logging.disable(logging.CRITICAL)
folder = Path(sys.argv[1])
os.chdir(folder)

from potstill.dialects import from_azure, read_azure_file  # noqa: E402
from potstill.dialects.azure import _plain  # noqa: E402

azure_imports = [name for name in sys.modules if name.partition(".")[0] == "azure"]

from azure.ai.ml import Input, load_job  # noqa: E402
from azure.ai.ml.entities import ResourceConfiguration, ServerlessConnection  # noqa: E402
from azure.ai.ml.model_customization import (  # noqa: E402
    EndpointRequestSettings,
    PromptSettings,
    TeacherModelSettings,
    distillation,
)

from potstill.errors import ConfigError  # noqa: E402


def real_job(**changes):
    given = {**stand_in.azure_arguments(folder), **changes}
    settings = given["teacher_model_settings"]
    requests = EndpointRequestSettings(**settings["endpoint_request_settings"])
    return distillation(
        **{
            **given,
            "teacher_model_endpoint_connection": ServerlessConnection(
                **given["teacher_model_endpoint_connection"]
            ),
            "validation_data": Input(type="uri_file", path=given["validation_data"]),
            "teacher_model_settings": TeacherModelSettings(
                inference_parameters=settings["inference_parameters"],
                endpoint_request_settings=requests,
            ),
            "prompt_settings": PromptSettings(**given["prompt_settings"]),
            "resources": ResourceConfiguration(**given["resources"]),
        }
    )


def config_of(dialect):
    return dialect.config.model_dump(mode="json", by_alias=True)


real, ours = real_job(), stand_in.azure_job(folder)
tree = {"type": "distillation", **stand_in.azure_arguments(folder)}
tree["teacher_model_endpoint_connection"]["type"] = "serverless"
path = folder / "job.yaml"
path.write_text(yaml.safe_dump(tree))
for name in ("train.jsonl", "validation.jsonl"):
    (folder / name).touch()
try:
    from_azure(
        real_job(
            data_generation_task_type="poetry",
            hyperparameters={"batch_size": -3},
            teacher_model_settings={
                "inference_parameters": {"temprature": 1},
                "endpoint_request_settings": {"min_endpoint_success_ratio": 9},
            },
        )
    )
    problems = ""
except ConfigError as error:
    problems = str(error)
sys.stdout.write(
    json.dumps(
        {
            "real_tree": {k: v for k, v in _plain(real).items() if k != "resources"},
            "stand_in_tree": {k: v for k, v in _plain(ours).items() if k != "resources"},
            "real_config": config_of(from_azure(real)),
            "stand_in_config": config_of(from_azure(ours)),
            "loaded_config": config_of(from_azure(load_job(str(path)))),
            "yaml_config": config_of(read_azure_file(path)),
            "problems": problems,
            "azure_imports": azure_imports,
        },
        default=str,
    )
    + "\n"
)
