"""Distil a large language model into a small one that you own.

    >>> import potstill
    >>> records = potstill.load_dataset("train.jsonl")        # doctest: +SKIP

`import potstill` costs a few milliseconds and loads nothing else: a name's module is
imported when the name is first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    # public name                   module it lives in
    "DistillConfig": "potstill.config",
    "distill": "potstill.pipeline",
    "load_config": "potstill.config",
    "PotstillError": "potstill.errors",
    "Message": "potstill.types",
    "Record": "potstill.types",
    "Response": "potstill.types",
    "Estimate": "potstill.types",
    "Evaluation": "potstill.types",
    "Report": "potstill.types",
    "DistillationJob": "potstill.entities",
    "MLClient": "potstill.jobs.client",
    "load_dataset": "potstill.data.load",
    "load_model": "potstill.library",
    "generate_teacher_responses": "potstill.library",
    "fine_tune_student": "potstill.library",
    "evaluate": "potstill.library",
    "bench": "potstill.library",
    "evaluate_accuracy": "potstill.library",
    "measure_inference_time": "potstill.library",
    "profile_memory_consumption": "potstill.library",
    "evaluate_task_performance": "potstill.library",
    "generate_synthetic_data": "potstill.library",
    "train_student_model": "potstill.library",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return __all__
