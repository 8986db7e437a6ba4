"""Every task page's example runs from the first stage to the report, on tiny models."""

import json

import pytest
from pages import PAGES, blocks

from potstill.config import TASKS, load_config
from potstill.pipeline import distill
from potstill.rundir import RunDir


@pytest.mark.journey
@pytest.mark.parametrize("task", TASKS)
def test_the_example_of_the_page_distils(task, tmp_path, teach_tiny):
    from tiny import tiny_llama

    page = blocks(PAGES / "tasks" / f"{task}.md")
    data = tmp_path / "train.jsonl"
    data.write_text(page["jsonl"], encoding="utf-8")
    (tmp_path / "distill.yaml").write_text(page["yaml"], encoding="utf-8")
    workspace = {
        "deepseek-v3": {"source": str(teach_tiny(data, task))},
        "phi-4-mini": {"source": str(tiny_llama(tmp_path / "student"))},
    }
    small = [
        "train.max_steps=4",
        "train.learning_rate=0.01",
        "evaluate.num_latency_calls=0",
        "generation.pilot=0",
        "evaluate.max_new_tokens=32",
    ]
    run = RunDir(tmp_path / "run")
    report = distill(load_config(tmp_path / "distill.yaml", small), run, workspace=workspace)

    assert report.task["name"] == task
    assert {"teacher", "untouched", "distilled"} <= set(report.models)
    assert report.models["distilled"]["accuracy"] >= 0.0
    assert report.verdict
    assert run.model.is_dir()
    assert run.report_html.read_text().startswith("<!doctype html>")
    assert json.loads(run.report_json.read_text())["schema_version"] == 1
