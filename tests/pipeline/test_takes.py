"""What a run's models cost is reckoned from the run's own accounting."""

import functools

import pytest
from examine.fake_report import answers, fake_report

from potstill.config import parse_config
from potstill.errors import ConfigError
from potstill.examine.metrics import accuracy
from potstill.pipeline.context import Context
from potstill.pipeline.takes import what_it_takes
from potstill.rundir import RunDir

PRICE = {"input": 2.0, "output": 10.0, "as_of": "2026-11"}
REMOTE = {"url": "http://teacher.example/v1", "model": "big"}
SHARES = {"teacher": 0.86, "distilled": 0.83, "gguf:q8_0": 0.828, "untouched": 0.21}
FATES = {"accepted": {"num": 9, "cost": 3.0}, "unused": {"num": 1, "cost": 1.0}, "cost": 4.5}


@functools.cache
def made_report():
    return fake_report(60, shares=SHARES)


def taken(tmp_path, teacher=REMOTE, *, facts=None, **evaluate):
    """The report's fields of a run whose stages left these facts."""
    tree = {
        "name": "faq", "task": "classification", "teacher": teacher, "student": "phi-4-mini",
        "train_data": "a.jsonl", "evaluate": evaluate, "export": ["gguf:q8_0"],
    }  # fmt: skip
    run = RunDir(tmp_path / "run")
    marks = {"train": 3600.0, "score": 1800.0, "export-gguf:q8_0": 1800.0, "teach": 7200.0}
    for stage, seconds in marks.items():
        run.mark_done(stage, "x", seconds=seconds)
    spending = FATES if facts is None else facts
    run.mark_done("check", "x", spending=spending)
    seconds = {"teacher": [1.0] * 30, "distilled": [0.5] * 30, "gguf:q8_0": [0.25] * 30}
    run.mark_done("measure", "x", times=seconds, seconds=9.0)
    samples = {
        role: [s.model_copy(update={"num_prompt_tokens": 1000, "num_new_tokens": 100})
               for s in answers(role, 60, shares=SHARES)]
        for role in SHARES
    }  # fmt: skip
    ctx = Context(parse_config(tree), run)
    return what_it_takes(ctx, made_report(), samples, accuracy)


def test_a_paid_teacher_costs_its_tokens_and_the_student_its_machine(tmp_path):
    found = taken(tmp_path, {**REMOTE, "price": PRICE}, cost={"machine_price": 3.6})["cost"]
    prices = {role: one["value"] for role, one in found["per_thousand"].items()}
    assert prices["teacher"] == pytest.approx(1000 * (1000 * 2 + 100 * 10) / 1e6)  # 3.0
    assert prices["gguf:q8_0"] == pytest.approx(1000 * 3.6 / 3600 * 0.25)
    assert "untouched" not in prices
    assert found["row"] == "gguf:q8_0"


def test_what_was_paid_once_is_all_that_was_paid(tmp_path):
    found = taken(
        tmp_path, {**REMOTE, "price": PRICE}, cost={"machine_price": 3.6, "preparation": 10.0}
    )["cost"]
    parts = found["one_off"]["parts"]
    # Also what was not used; the machine's two hours are not those of waiting for the teacher.
    assert parts == {"teacher": 4.5, "machine": pytest.approx(7.2), "preparation": 10.0}
    saved = 3.0 - 0.25
    assert found["break_even"]["value"] == pytest.approx(21.7 * 1000 / saved)


def test_a_teacher_on_this_machine_costs_its_time(tmp_path):
    found = taken(tmp_path, "phi-4", cost={"machine_price": 3.6}, facts={})["cost"]
    assert found["one_off"]["machine_seconds"] == 7200.0 + 7200.0
    assert found["per_thousand"]["teacher"]["value"] == pytest.approx(1.0)


def test_without_prices_nothing_is_made_up(tmp_path):
    found = taken(tmp_path, facts={})
    assert all(one["value"] is None for one in found["cost"]["per_thousand"].values())
    assert found["cost"]["break_even"]["value"] is None
    assert "teacher.price" in found["cost"]["one_off"]["note"]
    [claim] = [c for c in found["claims"] if c["name"] == "cost"]
    assert claim["basis"] == "not measured" and "teacher.price" in claim["why"]


def test_answers_without_a_price_are_no_free_ones(tmp_path):
    unpriced = {"accepted": {"num": 9}, "unused": {}, "cost": 0.0}
    found = taken(tmp_path, facts=unpriced, cost={"machine_price": 1.0})["cost"]
    assert found["one_off"]["parts"]["teacher"] is None


def test_a_teacher_of_the_catalogue_has_the_price_that_its_user_gives_with_its_date(tmp_path):
    given = {"source": "gpt-4o-mini", "price": PRICE}
    found = taken(tmp_path, given, cost={"machine_price": 1.0})["cost"]
    assert "prices read 2026-11" in found["per_thousand"]["teacher"]["note"]
    found = taken(tmp_path, "gpt-4o-mini", cost={"machine_price": 1.0})
    unknown = found["cost"]["per_thousand"]["teacher"]
    assert unknown["value"] is None and "teacher.price" in unknown["note"]
    [claim] = [claim for claim in found["claims"] if claim["name"] == "cost"]
    assert claim["basis"] == "not measured" and "teacher.price" in claim["why"]


def test_a_row_that_the_report_will_not_have_is_refused_with_the_config(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate\.load\.rows: no row is called 'gguf:q4'"):
        taken(tmp_path, load={"rows": ["gguf:q4"]})
