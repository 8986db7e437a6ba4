"""The stage check: every answer ends on one side, with figures of the set beside it."""

import json

import pytest

from potstill.config import parse_config
from potstill.errors import ConfigError, DataError
from potstill.pipeline.check import sort_answers
from potstill.pipeline.context import Context
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.types import Message, Record, Rejection, Response

QUESTION = "In which year did the harbour of the old town freeze over for the last time?"


def row(id, prompt, **metadata):
    messages = (Message(role="user", content=prompt),)
    return Record(id=id, messages=messages, metadata=metadata)


def answer(id, text, **changes):
    return Response(**{"record_id": id, "text": text, "finish_reason": "stop", **changes})


@pytest.fixture
def stage(tmp_path):
    """A run whose prompts and answers are given; returns its facts and its folder."""

    def run(train, responses, *, validation=(), test=(), task="qa", **config):
        folder = RunDir(tmp_path / "run")
        for path, rows in (
            (folder.train, train), (folder.validation, validation), (folder.test, test),
        ):  # fmt: skip
            write_jsonl(path, rows)
        tree = {"name": "x", "task": task, "teacher": "t", "student": "s", "train_data": "a.jsonl"}
        ctx = Context(parse_config({**tree, **config}), folder)

        def with_answers(split, records):
            for record in records:
                yield record, [r for r in responses if r.record_id == record.id]

        return sort_answers(ctx, with_answers), folder

    return run


def test_accepted_and_rejected_add_up_and_reasons_are_written(stage):
    train = [row("a", "One?"), row("b", "Two?"), row("c", "Three?"), row("d", "TWO?")]
    given = [
        answer("a", "yes"),
        answer("b", "Paris"),
        answer("c", "I'm sorry, but I can't help."),
        answer("d", "paris"),
    ]
    facts, folder = stage(train, given, validation=[row("v", "Four?")])
    assert [record.id for record in read_jsonl(folder.accepted, Record)] == ["a", "b"]
    rejected = read_jsonl(folder.rejected, Rejection)
    assert [(r.record_id, r.reason) for r in rejected] == [("c", "refusal"), ("d", "duplicate")]
    assert (facts["num_train"], facts["num_validation"], facts["num_rejected"]) == (2, 0, 2)
    assert facts["reasons"] == {"refusal": 1, "duplicate": 1}
    found = json.loads(folder.quality.read_text())
    assert found["num_accepted"] == 2
    assert found["rejected"] == {"refusal": 1, "duplicate": 1}


def test_answers_from_the_test_set_are_rejected_by_default(stage, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": QUESTION.replace("year", "month"), "answer": "May"}))
    facts, folder = stage(
        [row("a", "Riddle?"), row("b", "Another?"), row("c", "And?")],
        [
            answer("a", f"Well: {QUESTION}"),
            answer("b", "no"),
            answer("c", QUESTION.replace("year", "month").lower()),
        ],
        test=[row("t", QUESTION)],
        data={"keep_out": str(other)},
    )
    assert facts["reasons"] == {"contaminated": 2}
    assert facts["quality"]["contamination"] == {"n": 13, "num_test_rows": 2, "num_indexed_rows": 2}
    details = [r.detail for r in read_jsonl(folder.rejected, Rejection)]
    assert details[0].endswith("of test row t")
    assert not details[1].endswith("of test row t")


def test_quotas_hold_for_training_rows_only(stage):
    train = [row(f"r{n}", f"Number {n}?") for n in range(6)]
    validation = [row(f"v{n}", f"Number 9{n}?") for n in range(4)]
    given = [answer(r.id, "neutral" if n else "entailment") for n, r in enumerate(train)]
    given += [answer(r.id, "neutral") for r in validation]
    facts, _ = stage(
        train, given, validation=validation, task="nli",
        data={"label_quota": 2},
    )  # fmt: skip
    assert (facts["num_train"], facts["num_validation"]) == (3, 4)
    assert facts["reasons"] == {"over_quota": 3}
    assert facts["quality"]["labels"] == {"neutral": 2, "entailment": 1}


def test_a_users_check_runs_apart_and_its_poison_row_costs_itself(stage):
    facts, folder = stage(
        [row("a", "One?"), row("b", "Two?"), row("c", "Three?")],
        [answer("a", "fine"), answer("b", "crash"), answer("c", "good")],
        checks=["finished", "teach.poison:misbehaves"],
    )
    assert facts["num_train"] == 2
    (rejected,) = read_jsonl(folder.rejected, Rejection)
    assert (rejected.record_id, rejected.reason) == ("b", "check_failed")


def test_with_nothing_left_to_train_on_the_reasons_are_told_and_kept(stage):
    with pytest.raises(DataError, match=r"every answer of the teacher \(1 empty\)"):
        stage([row("a", "One?")], [answer("a", " ")])


@pytest.mark.parametrize(
    ("task", "generation", "message"),
    [
        ("translation", {"choose": "vote"}, "vote is not for task: translation"),
        ("qa", {"choose": "best"}, "best and generation.best_by need each other"),
        ("qa", {"best_by": "own:length"}, "best and generation.best_by need each other"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_at_once(task, generation, message):
    tree = {"name": "x", "task": task, "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    with pytest.raises(ConfigError, match=message):
        parse_config({**tree, "generation": generation})


def test_test_sets_to_keep_out_are_looked_for_beside_the_config(tmp_path):
    tree = {"name": "x", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    config = parse_config({**tree, "data": {"keep_out": ["b.jsonl"]}}, base=tmp_path)
    assert config.data.keep_out == (tmp_path / "b.jsonl",)
