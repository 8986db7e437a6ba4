"""What asking will take is reckoned from a sample, bounded from above, and says what it is not."""

import json
import random

import pytest

from potstill.config import parse_config
from potstill.pipeline.context import Context
from potstill.pipeline.estimate import MOST_ROWS, estimate
from potstill.rundir import LedgerDir, RunDir, write_jsonl
from potstill.types import Response

PRICE = {"input": 1.0, "output": 10.0}


@pytest.fixture
def forecast(tmp_path):
    """Estimates what rows of one length take; more config by keyword."""

    def make(num_rows=40, answer=None, lengths=(), **changes):
        rows = []
        for number in range(num_rows):
            letters = random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=60)
            rows.append({"question": "".join(letters), **({"answer": answer} if answer else {})})
        file = tmp_path / "train.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = RunDir(tmp_path / "run")
        answers = [
            Response(record_id=str(n), text="x", finish_reason="stop", num_new_tokens=length)
            for n, length in enumerate(lengths)
        ]
        run.responses.mkdir(parents=True, exist_ok=True)
        write_jsonl(LedgerDir(run.responses).segment(1), answers)
        tree = {
            "name": "x", "task": "conversation", "student": "s", "train_data": str(file),
            "teacher": {"url": "http://teacher.example/v1", "price": PRICE},
            "generation": {"max_new_tokens": 100}, "data": {"validation": 0}, **changes,
        }  # fmt: skip
        return estimate(Context(parse_config(tree), run))

    return make


def test_bytes_bound_the_prompt_and_max_new_tokens_the_answer(forecast):
    found = forecast(answer="four" * 4, generation={"max_new_tokens": 100, "num_responses": 2})
    assert (found.num_records, found.num_looked_at, found.num_requests) == (40, 40, 80)
    assert found.prompt_tokens.most == 80 * (60 + 16)
    assert found.prompt_tokens.low < found.prompt_tokens.likely < found.prompt_tokens.most
    assert found.answer_tokens.most == 80 * 100
    assert found.answer_tokens.likely == 80 * (4 + 4)
    most = (found.prompt_tokens.most * 1 + found.answer_tokens.most * 10) / 1e6
    assert found.cost.most == pytest.approx(most)
    assert found.cost.low < found.cost.likely < found.cost.most


def test_answers_that_came_say_how_long_the_others_will_be(forecast):
    found = forecast(answer="a long known answer that is not looked at", lengths=[8, 12] * 10)
    assert found.answer_tokens.likely == 40 * 10
    assert 40 * 8 < found.answer_tokens.low < 40 * 10


def test_without_any_answer_nothing_is_called_likely(forecast):
    found = forecast(lengths=[5] * 9)
    assert found.answer_tokens.likely is None and found.cost.likely is None
    assert any("not known" in note for note in found.notes)


def test_a_sample_stands_for_all_rows(forecast):
    found = forecast(num_rows=2 * MOST_ROWS + 1)
    assert found.num_looked_at <= MOST_ROWS < found.num_records == found.num_requests
    assert found.prompt_tokens.most == pytest.approx(found.num_records * (60 + 16))


def test_rate_limits_say_the_time_and_a_price_that_is_not_known_is_said(forecast):
    teacher = {"url": "http://teacher.example/v1", "requests_per_minute": 20}
    found = forecast(teacher=teacher)
    assert (found.seconds.low, found.cost) == (120.0, None)
    assert any("set teacher.price" in note for note in found.notes)


def test_reused_logs_ask_nobody(forecast):
    found = forecast(answer="known", data={"logged_answers": "reuse", "validation": 0})
    assert (found.num_requests, found.answer_tokens.most) == (0, 0)


@pytest.fixture
def judged(forecast, tmp_path):
    """Estimates what a judge takes for 30 test rows; its config by keyword."""

    def make(lengths=(), **judge):
        test = tmp_path / "test.jsonl"
        rows = [{"question": f"{n} " * 20, "answer": "known " * 10} for n in range(30)]
        test.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = RunDir(tmp_path / "run").judgments
        folder.mkdir(parents=True, exist_ok=True)
        replies = [
            Response(record_id=str(n), text="x", finish_reason="stop", num_new_tokens=length)
            for n, length in enumerate(lengths)
        ]
        write_jsonl(LedgerDir(folder).segment(1), replies)
        judge = {"url": "http://judge.example/v1", "price": PRICE, "max_new_tokens": 200, **judge}
        data = {"validation": 0, "test": str(test)}
        return forecast(data=data, evaluate={"judge": judge}).judge

    return make


def test_a_judge_is_asked_about_every_pair_in_both_orders_at_most(judged):
    found = judged()
    assert (found.num_records, found.num_requests) == (30, 30 * 2 * 2)
    assert found.answer_tokens.most == 120 * 200
    most = (found.prompt_tokens.most * 1 + found.answer_tokens.most * 10) / 1e6
    assert found.cost.most == pytest.approx(most)
    assert found.cost.low == 0 < found.cost.likely < found.cost.most
    assert judged(against=["teacher"]).num_requests == 30 * 2
    assert judged(num_rows=10).num_requests == 10 * 2 * 2


def test_a_rubric_is_asked_once_about_each_answer_of_each_model(judged):
    found = judged(how=["rubric"])
    assert found.num_requests == 30 * 3
    assert 0 < found.cost.low < found.cost.likely < found.cost.most
    assert judged(how=["rubric", "pairwise"]).num_requests == 30 * (3 + 4)


def test_replies_that_came_say_how_long_a_judges_others_will_be(judged):
    assert judged().answer_tokens.likely == 120 * 64
    assert judged(lengths=[20, 40] * 5).answer_tokens.likely == 120 * 30


def test_a_judge_without_a_price_or_a_run_without_one_says_so(judged, forecast):
    found = judged(price=None)
    assert found.cost is None
    assert any("set evaluate.judge.price" in note for note in found.notes)
    assert forecast().judge is None


def test_the_command_prints_a_table_or_one_object(tmp_path, capsys, monkeypatch):
    from potstill.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "How?", "answer": "So."}\n' * 1)
    config = "name: x\ntask: conversation\nstudent: s\ntrain_data: train.jsonl\n"
    config += "teacher: {url: 'http://teacher.example/v1', price: {input: 1, output: 2}}\n"
    (tmp_path / "distill.yaml").write_text(config)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["estimate", "distill.yaml", "data.validation=0", *more])
        assert stop.value.code == 0
        out = capsys.readouterr().out
    assert json.loads(out)["num_requests"] == 1
    assert not (tmp_path / "runs").exists()
