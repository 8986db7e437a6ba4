"""The plain functions, in the order of the work, on the same code as the pipeline.

    records = load_dataset("train.jsonl")
    teacher = load_model("deepseek-v3")
    taught = generate_teacher_responses(teacher, records)
    student = fine_tune_student(load_model("phi-4-mini"), taught)
    evaluate(student, "test.jsonl")["accuracy"]

A model is what `load_model` gives, a name, a folder, a file, a URL, or anything with a
`respond`. Data is a file, or a list of records or rows. Where no task is said, rows with a
set of labels are a classification and all others a conversation.
"""

from potstill.data.load import load_dataset
from potstill.library.evaluating import (
    check_metrics,
    evaluate,
    evaluate_accuracy,
    evaluate_config,
    evaluate_task_performance,
    measure_inference_time,
    profile_memory_consumption,
)
from potstill.library.inputs import load_model
from potstill.library.learning import (
    fine_tune_student,
    generate_synthetic_data,
    generate_teacher_responses,
    train_student_model,
)
from potstill.library.measuring import bench

__all__ = [
    "bench",
    "check_metrics",
    "evaluate",
    "evaluate_accuracy",
    "evaluate_config",
    "evaluate_task_performance",
    "fine_tune_student",
    "generate_synthetic_data",
    "generate_teacher_responses",
    "load_dataset",
    "load_model",
    "measure_inference_time",
    "profile_memory_consumption",
    "train_student_model",
]
