"""The demo goes its whole way with few rows and steps, on the real weights."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.demo.grading import FieldAccuracy, is_ticket
from potstill.demo.recipe import FAST, FULL, config_tree, teacher_training
from potstill.types import Message, Record, Response, Sample

ROOT = Path(__file__).parent.parent.parent
MESSAGE = "the jade desk fan I ordered a fortnight ago is still not here"


def answered(text):
    record = Record(id="a", messages=(Message(role="user", content=MESSAGE),))
    return record, Response(record_id="a", text=text, finish_reason="stop")


def test_a_ticket_about_something_else_is_rejected():
    assert is_ticket(*answered("track | jade desk fan | 2 weeks | normal")) is None
    assert is_ticket(*answered("track | ruby desk fan | 2 weeks | normal")).reason == "invented"
    assert is_ticket(*answered("I am sorry to hear that.")).reason == "unparsable"


def test_field_accuracy_counts_fields():
    reference = "track | jade desk fan | 2 weeks | urgent"
    samples = [
        Sample(record_id="a", references=(reference,), text=reference),
        Sample(record_id="b", references=(reference,), text="track | desk fan | 2 weeks | normal"),
        Sample(record_id="c", references=(reference,), text="sorry"),
    ]
    metric = FieldAccuracy()
    assert metric.value(metric.rows(samples).sum(axis=0)) == pytest.approx(1.5 / 3)


def test_the_distilled_student_is_fixed_in_the_config_and_no_teacher_row_is_in_the_pool():
    from potstill.config import parse_config

    tree = config_tree(FULL, seed=0, teacher={"source": "t"}, student=None, gold_all=True)
    config = parse_config(tree)
    assert config.loss.kind == "forward_kl"
    assert config.train_data[0].name == "pool.jsonl"
    assert config.evaluate.gold_data.name == "gold.jsonl"
    assert {"untouched", "gold_few", "gold_all", "text"} <= set(config.evaluate.baselines)
    assert FULL.sizes["num_test"] >= 300
    assert teacher_training(FAST, 1).seed == 1


def test_no_step_is_chosen_by_the_loss_on_a_handful_of_rows():
    tree = config_tree(FULL, seed=0, teacher={"source": "t"}, student=None, gold_all=False)
    assert tree["train"]["eval_steps"] == tree["train"]["max_steps"]


def test_an_endpoint_as_teacher_is_learnt_from_by_text():
    tree = config_tree(FULL, seed=0, teacher={"url": "http://x/v1"}, student=None, gold_all=False)
    assert tree["loss"]["kind"] == "sft"
    assert "text" not in tree["evaluate"]["baselines"]


@pytest.mark.journey
def test_the_fast_demo_ends_with_a_report_and_again_does_nothing(
    tmp_path, record_property, smollm2
):
    command = [sys.executable, "-m", "potstill.cli", "demo", "--fast", "--json", "--offline"]
    command += ["--runs", str(tmp_path)]
    # The weights are converted once, beside the checkout and not in the user's home.
    env = {**os.environ, "POTSTILL_HOME": str(ROOT / ".cache"), "OMP_NUM_THREADS": "2"}
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    record_property("demo_fast_seconds", round(time.monotonic() - started, 1))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {"teacher", "untouched", "distilled", "text", "gold_few", "gguf:q8_0", "tfidf_teacher"}
    assert rows <= set(report["models"])
    assert report["models"]["teacher"]["metrics"]["field_accuracy"]["value"] > 0.3
    assert report["verdict"]
    folder = tmp_path / "demo-fast"
    assert (folder / "reports" / "report.html").stat().st_size < 2_000_000

    again = subprocess.run(
        [argument for argument in command if argument != "--json"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert again.returncode == 0, again.stderr
    lines = [line for line in again.stderr.splitlines() if line.startswith("train")]
    assert lines
    assert all("done before" in again.stderr for _ in lines)
    assert "distilled" in again.stdout
