"""A whole run with a judge: the report shows what it preferred, and a second run asks nothing."""

import json

import pytest
import yaml
from fake_endpoint import served
from fake_judge import fake_judge, longer

from potstill.config import load_config
from potstill.errors import TeacherRefused
from potstill.pipeline import distill
from potstill.rundir import RunDir

pytestmark = pytest.mark.journey


def test_a_run_with_a_judge_reports_it_and_asks_nothing_twice(tmp_path):
    from tiny import tiny_llama

    rows = [{"question": f"the {i} cup", "answer": f"cup {i}"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake = fake_judge(longer)
    with served(fake):
        tree = {
            "name": "judged", "task": "qa", "train_data": "train.jsonl", "checks": [],
            "teacher": str(tiny_llama(tmp_path / "t", seed=1)),
            "student": str(tiny_llama(tmp_path / "s")),
            "data": {"validation": 0.1, "test": 0.3},
            "generation": {"max_new_tokens": 8, "pilot": 0, "min_success_ratio": 0},
            "train": {"max_steps": 2, "precision": "fp32"},
            "evaluate": {
                "num_latency_calls": 0, "num_trial": 0,
                "judge": {"url": fake.url, "model": "phi-judge", "how": ["pairwise", "rubric"]},
                "gates": ["judge_win_rate >= 0"],
            },
        }  # fmt: skip
        fake.answer = scored(fake.answer)
        (tmp_path / "distill.yaml").write_text(yaml.safe_dump(tree))
        run, events = RunDir(tmp_path / "run"), []
        report = distill(load_config(tmp_path / "distill.yaml"), run, on_event=events.append)
        num_asked = len(fake.bodies)
        kinds = {}
        again = distill(
            load_config(tmp_path / "distill.yaml"), run,
            on_event=lambda event: kinds.update({event.stage: event.kind}),
        )  # fmt: skip
        assert len(fake.bodies) == num_asked + 1  # whether it still answers
        fake.script = [(401, {"error": {"message": "Incorrect API key provided"}})]
        with pytest.raises(TeacherRefused):  # and a judge that does not is told before the work
            distill(load_config(tmp_path / "distill.yaml"), run)
    assert again == report and kinds["judge"] == kinds["compare"] == "skipped"
    assert [one["b"] for one in report.judge["preferences"]] == ["teacher", "untouched"]
    student = report.models["distilled"].metrics
    assert student["judge_win_rate"].note.startswith("against teacher")
    assert {role for role, e in report.models.items() if "judge_score" in e.metrics} == {
        "teacher", "untouched", "distilled",
    }  # fmt: skip
    assert report.gates[0]["passed"] and "The judge phi-judge" in report.verdict
    assert "What the judge prefers" in run.report_html.read_text()
    assert run.ballots("distilled-teacher").exists()


def scored(answer):
    """Answers questions about single answers too."""

    def both(body):
        text = body["messages"][-1]["content"]
        found = answer(body) if "<answer 1 " in text else None
        if found is None:
            from fake_endpoint import completion

            found = completion(f"Score: {1 + len(text) % 5}")
        return found

    return both
