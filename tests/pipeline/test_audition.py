"""Teachers are asked rows with known answers once, and a run says what its own one is worth."""

import json

import pytest
from fake_endpoint import FakeEndpoint, completion, served

from potstill.cli import main
from potstill.config import dump_config, parse_config
from potstill.errors import DataError, TeacherError
from potstill.pipeline import distill
from potstill.pipeline.audition import audition
from potstill.pipeline.context import Context
from potstill.rundir import RunDir, iter_jsonl
from potstill.types import Record

NUM_ROWS = 40


def right(body):
    """The answer to `What is w7?`, which is w7."""
    return completion(body["messages"][-1]["content"].split()[-1].rstrip("?"))


def wrong(body):
    return completion("nonsense")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    from tiny import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("student"))


@pytest.fixture
def made(tmp_path, student):
    """A context for a config with 40 questions, and what is told in it."""

    def make(teacher, rows=None, **changes):
        if rows is None:
            rows = [{"question": f"What is w{i}?", "answer": f"w{i}"} for i in range(NUM_ROWS)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree = {
            "name": "faq",
            "task": "qa",
            "teacher": teacher,
            "student": str(student),
            "train_data": str(tmp_path / "train.jsonl"),
            "data": {"validation": 0.0},
            "generation": {"max_new_tokens": 4},
            "evaluate": {"num_latency_calls": 0},
            **changes,
        }
        events = []
        ctx = Context(parse_config(tree), RunDir(tmp_path / "run"), on_event=events.append)
        ctx.told = lambda: [e.text for e in events if e.kind == "note"]
        return ctx

    return make


def priced(fake):
    return {"url": fake.url, "model": "good", "price": {"input": 1.0, "output": 2.0}}


def test_the_better_of_two_teachers_is_found_and_nothing_is_asked_twice(made):
    good, bad = FakeEndpoint(answer=right), FakeEndpoint(answer=wrong)
    with served(good, bad):
        ctx = made(priced(good))
        ctx.workspace = {"bad": {"url": bad.url, "model": "bad"}}
        asked = {"teachers": ["good", "bad"], "num_rows": 30}
        found = audition(ctx, **asked)
        assert len(good.bodies) == len(bad.bodies) == 30
        again = audition(ctx, **asked)
        assert len(good.bodies) == len(bad.bodies) == 30
    assert again == found
    assert [(c.name, c.num_answers) for c in found.candidates[:2]] == [("good", 30), ("bad", 30)]
    assert found.candidates[2].role == "untouched"
    assert found.verdict[0].startswith("good is the best teacher: accuracy 1.000")
    assert any(w.startswith("bad does not surely beat untouched") for w in found.warnings)
    best, _, _ = found.candidates
    # 7 prompt tokens and 3 of the answer: 13 millionths each; one letter answers are no refusal
    assert best.cost == pytest.approx(30 * 13e-6)
    assert best.cost_per_accepted == pytest.approx(best.cost / best.num_accepted)
    assert best.metrics["latency"].note.startswith("includes_network")
    assert best.metrics["answers_per_second"].value > 0
    folder = ctx.run.audition()
    assert json.loads(folder.report_json.read_text())["num_rows"] == 30
    assert "good is the best teacher" in folder.report_markdown.read_text()


def test_more_rows_ask_only_the_new_ones_and_the_run_asks_only_the_rest(made):
    fake = FakeEndpoint(answer=right)
    with served(fake):
        ctx = made({"url": fake.url, "model": "good"})
        audition(ctx, num_rows=10)
        audition(ctx, num_rows=25)
        assert len(fake.bodies) == 25
        distill(ctx.config, ctx.run, stop_after="teach")
        dry_calls = 1
        assert len(fake.bodies) == NUM_ROWS + dry_calls
    assert ctx.run.facts("teach")["reused"] == 25


def test_a_teacher_that_cannot_be_asked_is_a_row_with_the_reason(made):
    good, gone = FakeEndpoint(answer=right), FakeEndpoint(*[(401, "no such key")] * 99)
    with served(good, gone):
        ctx = made({"url": good.url, "model": "good"})
        ctx.workspace = {"gone": {"url": gone.url, "model": "gone"}}
        found = audition(ctx, teachers=["gone", "good", "unheard-of"], num_rows=12)
        with pytest.raises(TeacherError, match="no teacher could be asked: gone: "):
            audition(ctx, teachers=["gone"], num_rows=12)
    by_name = {c.name: c for c in found.candidates}
    assert "401" in by_name["gone"].error
    assert "no model is called 'unheard-of'" in by_name["unheard-of"].error
    assert by_name["good"].error == ""


def test_rows_without_known_answers_are_no_audition(made):
    ctx = made({"url": "http://127.0.0.1:9/v1"}, rows=[{"question": "Why?"}])
    with pytest.raises(DataError, match="no training record has a known answer"):
        audition(ctx)


def test_an_endpoint_sees_no_personal_data_even_where_the_runs_own_teacher_may(made, student):
    rows = [
        {"question": f"Who has anna{i}@mail.test?", "answer": f"w{i}", "log": "a log"}
        for i in range(12)
    ]
    privacy = {"mode": "auto", "learn": "pseudonyms"}
    fake = FakeEndpoint(answer=wrong)
    with served(fake):
        ctx = made(str(student), rows, data={"validation": 0.0, "privacy": privacy})
        ctx.workspace = {"far": {"url": fake.url, "model": "far"}}
        audition(ctx, teachers=["far"], num_rows=8)
    asked = [body["messages"][-1]["content"] for body in fake.bodies]
    assert len(asked) == 8
    assert all("@example.com" in text and "mail.test" not in text for text in asked)


def test_a_run_warns_of_a_teacher_that_is_no_better_than_the_student_and_goes_on(made):
    fake = FakeEndpoint(answer=wrong)
    with served(fake):
        ctx = made({"url": fake.url, "model": "bad"})
        events = []
        distill(ctx.config, ctx.run, on_event=events.append, stop_after="teach")
        assert len(fake.bodies) == NUM_ROWS + 1, "one dry call, and each prompt once"
    (told,) = [e.text for e in events if e.kind == "note"]
    assert told.startswith("warning: the teacher does not surely beat the untouched student")
    assert "on 32 rows with known answers" in told
    facts = ctx.run.facts("teach")
    assert (facts["requested"], facts["answered"], facts["reused"]) == (NUM_ROWS, NUM_ROWS, 0)
    assert facts["trial"]["is_better"] is False
    assert told in ctx.run.events.read_text()


def test_a_run_says_how_far_its_teacher_is_ahead_and_counts_all_of_the_cost(made):
    fake = FakeEndpoint(answer=right)
    with served(fake):
        ctx = made(priced(fake))
        events = []
        distill(ctx.config, ctx.run, on_event=events.append, stop_after="teach")
        ctx.run.mark("teach").unlink()
        distill(ctx.config, ctx.run, on_event=events.append, stop_after="teach")
        assert len(fake.bodies) == NUM_ROWS + 2, "two dry calls, and each prompt once"
    told, again = [e.text for e in events if e.kind == "note"]
    assert told == again
    assert told.startswith("the teacher beats the untouched student: accuracy 1.000 and 0.000")
    cost = next(e.text for e in events if e.stage == "teach" and e.kind == "done")
    assert f"cost {NUM_ROWS * 13e-6:.4f}" in cost


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": {"num_trial": 0}},
        {"student": {"prune": {"from": "nowhere", "layers": 1}}},
        {"data": {"validation": 0.0, "where": {"field": "question", "equals": "What is w3?"}}},
    ],
    ids=["not wanted", "a student yet to be cut", "too few rows"],
)
def test_a_run_compares_nothing_where_there_is_nothing_to_compare(made, changes):
    from potstill.pipeline.data import load, split
    from potstill.pipeline.trial import begin_trial

    ctx = made({"url": "http://127.0.0.1:9/v1"}, **changes)
    load(ctx)
    split(ctx)
    assert begin_trial(ctx) is None
    assert ctx.told() == []


def test_a_student_that_cannot_answer_stops_no_run(made, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    fake = FakeEndpoint(answer=right)
    with served(fake):
        ctx = made({"url": fake.url, "model": "good"}, student=str(empty))
        events = []
        distill(ctx.config, ctx.run, on_event=events.append, stop_after="teach")
    (told,) = [e.text for e in events if e.kind == "note"]
    assert told.startswith("open whether the teacher beats the untouched student")
    assert ctx.run.facts("teach")["answered"] == NUM_ROWS


def test_a_smaller_number_of_rows_is_part_of_a_larger_one(made):
    from potstill.pipeline.data import load, split
    from potstill.pipeline.labelled import labelled

    ctx = made({"url": "http://127.0.0.1:9/v1"})
    load(ctx)
    split(ctx)
    few, many = labelled(ctx, 5), labelled(ctx, 20)
    assert many[:5] == few
    in_file = [record.id for record in iter_jsonl(ctx.run.train, Record)]
    assert [record.id for record in many] != in_file[:20]


def test_the_command_prints_a_table_the_verdict_and_warnings(made, tmp_path, capsys):
    fake = FakeEndpoint(answer=right)
    with served(fake):
        ctx = made(priced(fake))
        (tmp_path / "distill.yaml").write_text(dump_config(ctx.config))
        command = ["audition", str(tmp_path / "distill.yaml"), "--rows", "20"]
        command += ["--runs", str(tmp_path / "runs")]
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        with pytest.raises(SystemExit):
            main([*command, "--json"])
    assert "cost / accepted" in out
    assert "good has accuracy 1.000 [" in out
    assert "warning: only 20 rows have a known answer" in out
    assert json.loads(capsys.readouterr().out)["candidates"][0]["name"] == "good"
    assert len(fake.bodies) == 20
