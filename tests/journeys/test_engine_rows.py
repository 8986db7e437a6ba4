"""A run's folders for other engines are proven and answer the test set like any model."""

import json

import pytest
import yaml

from potstill.config import load_config
from potstill.export.manifest import read_manifest
from potstill.pipeline import distill
from potstill.rundir import RunDir

pytestmark = pytest.mark.journey


def test_a_student_in_ctranslate2_is_a_row_of_the_report(tmp_path):
    from installed import needs_engine
    from tiny import tiny_llama

    needs_engine("ctranslate2")
    rows = [{"question": f"What is {i} and {i}?", "answer": f"{2 * i}"} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "engines",
        "task": "qa",
        "teacher": str(tiny_llama(tmp_path / "teacher", seed=1)),
        "student": str(tiny_llama(tmp_path / "student")),
        "train_data": "train.jsonl",
        "data": {"validation": 0.2, "test": 0.1},
        "generation": {
            "temperature": 0,
            "max_new_tokens": 6,
            "pilot": 0,
            "min_success_ratio": 0,
        },
        "checks": [],
        "train": {"max_steps": 2, "precision": "fp32", "early_stopping": False},
        "evaluate": {"teacher": False, "baselines": [], "num_latency_calls": 2, "num_trial": 0},
        "export": ["ctranslate2:float32"],
    }
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
    run = RunDir(tmp_path / "run")
    report = distill(load_config(tmp_path / "distill.yaml"), run)
    row, student = report.models["ctranslate2:float32"], report.models["distilled"]
    assert row["f1"] == student["f1"]
    assert row.metrics["latency"].value > 0 and row.disk_bytes > 0
    assert 0 < row.metrics["memory"].value < 500e6
    assert read_manifest(run.export("ctranslate2:float32")).parity.passed
