"""The plain functions with a model that needs no weights."""

import asyncio
import logging

import pytest

from potstill.config import GenerationConfig
from potstill.errors import ConfigError, DataError
from potstill.library import (
    evaluate,
    evaluate_accuracy,
    generate_synthetic_data,
    generate_teacher_responses,
    load_dataset,
    load_model,
    measure_inference_time,
    train_student_model,
)
from potstill.types import Response


class Clerk:
    """Answers every question alike; cut short where it is told to."""

    name = "clerk"
    max_in_flight = 4

    def __init__(self, answer="It arrives on Monday.", cuts=""):
        self.answer = answer
        self.cuts = cuts
        self.num_asked = 0

    async def respond(self, record, sampling, *, turn=0, sample=0):
        self.num_asked += 1
        cut = self.cuts and self.cuts in record.messages[-1].content
        return Response(
            record_id=record.id,
            turn=turn,
            sample=sample,
            text=self.answer,
            finish_reason="length" if cut else "stop",
            num_new_tokens=5,
        )

    async def close(self):
        raise AssertionError("whoever opened a model closes it")


ROWS = [
    {"prompt": f"Where is order {i}?", "completion": f"It arrives on {day}."}
    for i, day in enumerate(["Monday", "Monday", "Tuesday", "Monday"])
]
RECORDS = load_dataset(ROWS)
NO_PILOT = GenerationConfig(pilot=0, min_success_ratio=0)


def test_the_teachers_answers_become_references():
    taught = generate_teacher_responses(Clerk(), RECORDS)
    assert {record.reference for record in taught} == {"It arrives on Monday."}
    assert [record.messages for record in taught] == [record.messages for record in RECORDS]


def test_rows_and_files_are_as_good_as_records(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion\nWhere is it?,Here.\n")
    assert len(generate_teacher_responses(Clerk(), ROWS)) == 4
    assert len(generate_teacher_responses(Clerk(), tmp_path / "rows.csv")) == 1


def test_a_cut_answer_is_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        taught = generate_teacher_responses(Clerk(cuts="order 2"), RECORDS, generation=NO_PILOT)
    assert len(taught) == 3
    assert "1 of 4 answers were rejected" in caplog.text


@pytest.mark.parametrize("changes", [{"num_accepted": 3}, {"reasoning": "both"}])
def test_what_only_a_run_or_another_task_can_do_is_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        config = GenerationConfig(**changes)
        generate_teacher_responses(Clerk(), RECORDS, task="conversation", generation=config)


def test_with_every_answer_rejected_there_is_nothing_to_learn():
    with pytest.raises(DataError, match="the checks rejected all 4 answers"):
        generate_teacher_responses(Clerk(cuts="order"), RECORDS, generation=NO_PILOT)


def test_answers_kept_in_a_folder_are_not_asked_again(tmp_path):
    generate_teacher_responses(Clerk(), RECORDS, out=tmp_path)
    clerk = Clerk()
    assert len(generate_teacher_responses(clerk, RECORDS, out=tmp_path)) == 4
    assert clerk.num_asked == 0


def test_synthetic_data_has_the_tutorials_columns():
    row = generate_synthetic_data(Clerk(), RECORDS)[0]
    assert (row["input"], row["teacher_output"]) == ("Where is order 0?", "It arrives on Monday.")


def test_an_evaluation_is_indexed_by_our_names_and_others():
    found = evaluate(Clerk(), RECORDS, ["accuracy", "bleu_score"])
    assert found["accuracy"] == evaluate_accuracy(Clerk(), RECORDS)
    assert found["bleu_score"] == found["bleu"] > 0
    assert found.metrics["accuracy"].n == 4


def test_without_metrics_the_tasks_own_are_taken():
    assert {"accuracy", "bleu", "rouge_l"} <= set(evaluate(Clerk(), RECORDS).metrics)


def test_inference_time_is_latency_measured_on_single_calls():
    found = evaluate(Clerk(), RECORDS, ["inference_time"], num_latency_calls=4)
    assert found["inference_time"] == found["latency"] > 0
    assert found.metrics["latency"].n == 4
    assert measure_inference_time(Clerk(), num_calls=3) > 0


def test_times_come_with_what_they_are_only_true_for():
    found = evaluate(Clerk(), RECORDS, ["accuracy", "ttft", "tpot"], num_latency_calls=4)
    assert found.metrics["ttft"].value is None and "does not stream" in found.metrics["ttft"].note
    speed = found.setting["speed"]
    assert (speed["timed_calls"], speed["different_prompts"]) == (4, 4)
    assert speed["answer_tokens"]["median"] == 5 and speed["processor"]["cores"] >= 1
    assert speed["energy"] and not speed["includes_network"]


def test_an_unknown_metric_is_refused_before_anything_is_asked():
    clerk = Clerk()
    with pytest.raises(ConfigError, match=r"acuracy.*accuracy"):
        evaluate(clerk, RECORDS, ["acuracy"])
    assert clerk.num_asked == 0


def test_memory_needs_weights():
    with pytest.raises(ConfigError, match="memory is measured for weights on this machine"):
        evaluate(Clerk(), RECORDS, ["memory_usage"])


def test_the_functions_work_inside_a_running_loop():
    async def notebook():
        return evaluate_accuracy(Clerk(), RECORDS)

    assert asyncio.run(notebook()) == evaluate_accuracy(Clerk(), RECORDS)


def test_a_name_is_looked_up_in_the_nearest_workspace_file(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "potstill.yaml").write_text("models: {phi-4-mini: ./weights}")
    monkeypatch.chdir(tmp_path)
    assert load_model("phi-4-mini").source == str(tmp_path / "weights")


def test_a_row_without_the_teachers_output_is_refused():
    with pytest.raises(DataError, match="row 0 has no teacher_output"):
        train_student_model("phi-4-mini", [{"input": "x"}])
