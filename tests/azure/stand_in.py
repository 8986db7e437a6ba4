"""Objects with the attributes of azure-ai-ml 1.35's; test_real_object.py proves them equal."""

from types import SimpleNamespace

INSTANCE = "Standard_D2_v2"


def azure_job(folder, **changes):
    """Azure's distillation job, as its SDK makes it out of `azure_arguments`."""
    given = {**azure_arguments(folder), **changes}
    settings = given["teacher_model_settings"]
    return SimpleNamespace(
        type="distillation",
        name=given.get("name"),
        display_name=None,
        experiment_name=given["experiment_name"],
        description=None,
        tags={},
        properties={},
        outputs=given.get("outputs"),
        base_path=str(folder),
        data_generation_type=given["data_generation_type"],
        data_generation_task_type=given["data_generation_task_type"],
        teacher_model_endpoint_connection=SimpleNamespace(
            type="serverless", **given["teacher_model_endpoint_connection"]
        ),
        student_model=SimpleNamespace(type="uri_file", path=given["student_model"]),
        training_data=SimpleNamespace(type="uri_file", path=given["training_data"]),
        validation_data=SimpleNamespace(type="uri_file", path=given["validation_data"]),
        teacher_model_settings=SimpleNamespace(
            inference_parameters=settings["inference_parameters"],
            endpoint_request_settings=SimpleNamespace(**settings["endpoint_request_settings"]),
        ),
        prompt_settings=SimpleNamespace(
            **{
                "enable_chain_of_thought": False,
                "enable_chain_of_density": False,
                "max_len_summary": None,
                **given["prompt_settings"],
            }
        ),
        hyperparameters=given["hyperparameters"],
        resources=SimpleNamespace(instance_type=given["resources"]["instance_type"]),
    )


def azure_arguments(folder):
    """What both are made of."""
    return {
        "experiment_name": "Faq Bot",
        "data_generation_type": "label_generation",
        "data_generation_task_type": "NLU_QA",
        "teacher_model_endpoint_connection": {
            "name": "llama-405b",
            "endpoint": "https://llama-405b.example",
            "api_key": "env:AZURE_TEACHER_KEY",
        },
        "student_model": (
            "azureml://registries/azureml-meta/models/Meta-Llama-3.1-8B-Instruct/versions/2"
        ),
        "training_data": "train.jsonl",
        "validation_data": "validation.jsonl",
        "teacher_model_settings": {
            "inference_parameters": {
                "temperature": 0.1,
                "max_tokens": 100,
                "top_p": 0.95,
                "frequency_penalty": 0.5,
                "presence_penalty": -0.5,
                "stop": "END",
            },
            "endpoint_request_settings": {
                "request_batch_size": 5,
                "min_endpoint_success_ratio": 0.8,
            },
        },
        "prompt_settings": {"enable_chain_of_thought": True},
        "hyperparameters": {"learning_rate": "0.00002", "num_train_epochs": "2"},
        "resources": {"instance_type": INSTANCE},
    }
