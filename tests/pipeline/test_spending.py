"""A run's stages say what was paid for, accepted and not, in their facts, events and report."""

import json

import pytest
from fake_endpoint import completion
from journeys.test_logs import endpoint
from tiny import tiny_llama

from potstill.config import parse_config
from potstill.pipeline.context import Context
from potstill.pipeline.report import _funnel
from potstill.pipeline.story import distill
from potstill.rundir import RunDir

NUM_ROWS = 12
PRICE = {"input": 1.0, "output": 2.0}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A run up to its checks in which one answer is cut, one is off label and one came late."""
    folder = tmp_path_factory.mktemp("spending")
    labels = {"label": "yes", "labels": ["yes", "no"]}
    rows = [{"text": f"Is {word} good?", **labels} for word in "abcdefghijkl"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "spending", "task": "classification", "train_data": str(folder / "rows.jsonl"),
        "student": str(tiny_llama(folder / "student")),
        "generation": {"pilot": 0, "max_in_flight": 1},
        "data": {"test": 0, "validation": 0}, "checks": ["finished", "task"],
        "evaluate": {"num_trial": 0},
    }  # fmt: skip
    with endpoint() as fake:
        fake.answer = lambda body: completion("yes")
        fake.script = [
            (200, completion("yes")),  # the dry call
            (200, completion("ye", finish_reason="length")),
            b'{"choices": [',
            (200, completion("perhaps, who knows")),
        ]
        config = parse_config(
            {**tree, "teacher": {"url": fake.url, "model": "fake", "price": PRICE}}
        )
        distill(config, RunDir(folder / "run"), stop_after="check")
    return Context(config=config, run=RunDir(folder / "run"))


EACH = (7 * 1.0 + 3 * 2.0) / 1e6


def test_the_stage_that_asks_counts_what_is_of_no_use(case):
    facts = case.run.facts("teach")
    assert facts["cost"] == pytest.approx(NUM_ROWS * EACH)
    assert facts["unused_cost"] == pytest.approx(EACH)
    names = ("num_unused", "num_unused_tokens", "num_unread")
    assert [facts[name] for name in names] == [1, 10, 1]


def test_the_checks_say_what_the_accepted_rows_cost_and_what_the_others(case):
    spending = case.run.facts("check")["spending"]
    assert spending["accepted"]["num"] == NUM_ROWS - 2
    assert spending["accepted"]["cost"] == pytest.approx((NUM_ROWS - 2) * EACH)
    assert {name: each["num"] for name, each in spending["by_reason"].items()} == {
        "length": 1,
        "off_label": 1,
    }
    assert spending["unused"]["cost"] == pytest.approx(2 * EACH)
    assert spending["cost"] == pytest.approx(NUM_ROWS * EACH)
    assert spending["elsewhere"] == 0.0
    assert "100 for 10 accepted answers (cost 0.00013)" in spending["lines"][0]
    assert "20 for 2 that are not used" in spending["lines"][0]
    assert spending["lines"][1].startswith("1 attempt brought nothing that could be read")


def test_other_viewers_and_the_report_are_told_too(case):
    events = [json.loads(line) for line in case.run.events.read_text().splitlines()]
    (figures,) = [e for e in events if e["stage"] == "check" and e["kind"] == "figures"]
    assert figures["spending"]["unused"]["num_prompt_tokens"] == 14
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert figures["spending"]["lines"][0] in notes
    assert _funnel(case)["spending"] == figures["spending"]
