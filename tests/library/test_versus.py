"""`potstill compare A B`: runs, rows and models on the same records; judged and voted on."""

import json

import pytest
from examine.test_blind import saved, voted
from fake_endpoint import FakeEndpoint, completion, served
from fake_judge import fake_judge, longer

from potstill.cli import main
from potstill.config import dump_config, parse_config
from potstill.examine.answering import Question, make_sample
from potstill.rundir import RunDir, write_jsonl, write_text
from potstill.tasks import get_task
from potstill.types import Evaluation, Message, Record, Report, Response

NUM = 24


def records(n=NUM, word="river"):
    return [
        Record(id=f"r{i}", messages=(Message(role="user", content=f"Which {word} runs by {i}?"),),
               reference=f"the Wye {i}")
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """A run folder in which rows have answered: role -> whether it knows record i."""
    monkeypatch.chdir(tmp_path)

    def make(name, task="qa", asked=None, **knows):
        run = RunDir(tmp_path / "runs" / name)
        tree = {"name": name, "task": task, "teacher": "phi-4", "student": "smollm2-135m",
                "train_data": "a.jsonl"}  # fmt: skip
        write_text(run.config, dump_config(parse_config(tree)))
        asked = asked or records()
        write_jsonl(run.test, asked)
        for role, is_known in knows.items():
            write_jsonl(run.samples(role), [_answer(r, i, is_known) for i, r in enumerate(asked)])
            about = Evaluation(
                role=role,
                id=f"{name}-{role}",
                format="huggingface",
                num_parameters=1_700_000_000,
                decoding={"temperature": 0},
                by_slice={"length": {}},
            )
            write_text(run.evaluation(role), about.model_dump_json())
        return run

    return make


def _answer(record, i, is_known):
    text = record.reference if is_known(i) else f"I do not know about {i} at all"
    task = get_task("qa")
    question = Question(task.turns(record)[0], 0, "", "f")
    return make_sample(
        question, Response(record_id=record.id, text=text, finish_reason="stop"), task
    )


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def compared(capsys, *arguments):
    assert run("compare", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_two_runs_are_compared_on_the_answers_that_they_kept(make_run, capsys):
    make_run("old", distilled=lambda i: i % 3 == 0)
    make_run("new", distilled=lambda i: i % 3 != 0, teacher=lambda i: True)
    found = compared(capsys, "new", "old")
    first = found["comparisons"][0]
    assert (found["a"], found["b"], found["n"]) == ("new", "old", NUM)
    assert found["metrics"]["new"][first["metric"]]["value"] == pytest.approx(2 / 3)
    assert first["difference"] == pytest.approx(1 / 3)
    assert first["test"] and first["low"] < first["difference"] < first["high"]
    assert (found["num_only_a"], found["num_only_b"]) == (16, 8)
    assert run("compare", "new:teacher", "old") == 0
    printed = capsys.readouterr().out
    assert "new:teacher is better than old" in printed and "below 50" in printed


def test_a_comparison_is_a_page_with_the_answers_side_by_side(make_run, tmp_path, capsys):
    make_run("old", distilled=lambda i: i % 3 == 0)
    make_run("new", distilled=lambda i: i % 3 != 0)
    assert run("compare", "new", "old") == 0
    reports = next((tmp_path / "runs" / "comparisons").iterdir()) / "reports"
    assert "reports/report.html" in capsys.readouterr().err
    page, text = (reports / "report.html").read_text(), (reports / "report.md").read_text()
    assert "new against old" in page and "Which of new and old is better" in page
    assert "Where new is wrong and another is right" in page and "Where only new is right" in page
    assert page.count("I do not know about 3 at all") == 1
    assert "Where new is wrong and another is right (8)" in text
    report = Report.model_validate_json((reports / "report.json").read_text())
    assert list(report.models) == ["new", "old"]
    assert (report.num_regressions, report.num_wins) == (8, 16)
    assert any("24" in limit for limit in report.limits)


def test_a_comparison_says_what_each_model_is_and_its_label_once(make_run, tmp_path, capsys):
    make_run("mine", distilled=lambda i: i % 2 == 0)
    fake = FakeEndpoint(answer=lambda body: completion("the Wye 3"))
    with served(fake):
        assert run("compare", "mine", fake.url) == 0
    reports = next((tmp_path / "runs" / "comparisons").iterdir()) / "reports"
    text = (reports / "report.md").read_text()
    assert "| mine | mine-distilled, huggingface, 1.7 B |" in text
    assert f"| {fake.url} | endpoint |" in text
    page = (reports / "report.html").read_text()
    assert f'{fake.url}<span class="about">endpoint</span>' in page
    assert "1.7\N{NO-BREAK SPACE}B</span>" in page and "<h2>Quality</h2>" in page
    assert ">1 answer." in page
    report = Report.model_validate_json((reports / "report.json").read_text())
    assert [m.by_slice for m in report.models.values()] == [{}, {}]
    assert report.models["mine"].decoding == {"temperature": 0}


def test_two_runs_that_were_asked_different_things_are_refused(make_run, capsys):
    make_run("old", distilled=lambda i: True)
    make_run("new", asked=records(word="hill"), distilled=lambda i: True)
    make_run("other", task="conversation", distilled=lambda i: True)
    assert run("compare", "old", "new") == 2
    assert "is another prompt in new than in old" in capsys.readouterr().err
    assert run("compare", "old", "other") == 2
    assert "different tasks (conversation, qa)" in capsys.readouterr().err
    assert run("compare", "old", "old:teacher") == 2
    assert "no answers of a row 'teacher'; there are: distilled" in capsys.readouterr().err


def model(knows):
    def answer(body):
        number = body["messages"][-1]["content"].rstrip("?").split()[-1].rstrip("?")
        return completion(f"the Wye {number}" if knows(int(number)) else "no idea")

    return FakeEndpoint(answer=answer)


def test_a_model_is_asked_the_test_set_of_the_run_beside_it_and_only_once(make_run, capsys):
    make_run("mine", distilled=lambda i: i % 2 == 0)
    fake = FakeEndpoint(answer=lambda body: completion("the Wye 3"))
    with served(fake):
        found = compared(capsys, "mine", fake.url)
        assert len(fake.bodies) == NUM
        assert compared(capsys, "mine", fake.url) == found
        assert len(fake.bodies) == NUM
    assert found["n"] == NUM
    assert any("different sampling settings" in note for note in found["notes"])


def test_two_models_need_a_test_set_and_a_task(tmp_path, make_run, capsys):
    one, other = (FakeEndpoint(answer=lambda b: completion("the Wye 3")) for _ in range(2))
    test = tmp_path / "test.jsonl"
    rows = [{"question": f"Which river is number {i}?", "answer": f"the Wye {i}"} for i in range(9)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(one, other):
        assert run("compare", one.url, other.url) == 2
        assert "--task" in capsys.readouterr().err
        assert run("compare", one.url, other.url, "--task", "qa") == 2
        assert "give a test set, --test FILE" in capsys.readouterr().err
        found = compared(capsys, one.url, other.url, "--task", "qa", "--test", test)
    assert found["n"] == 9 and len(one.bodies) == len(other.bodies) == 9


def test_a_judge_and_people_are_asked_about_the_same_pairs(make_run, tmp_path, capsys):
    make_run("old", distilled=lambda i: i % 3 == 0)
    make_run("new", distilled=lambda i: i % 3 != 0)
    fake = fake_judge(longer)
    assert run("compare", "new", "old", "--blind") == 0
    page = tmp_path / "runs" / "comparisons" / "new--old" / "blind.html"
    assert f"{NUM} pairs" in capsys.readouterr().out
    votes = voted(page.read_text(), lambda a, b: "left" if len(a) > len(b) else "right")
    ann = saved(tmp_path, votes, "ann.json")
    ben = saved(tmp_path, {**votes, "voter": "ben"}, "ben.json")
    with served(fake):
        found = compared(capsys, "new", "old", "--judge", fake.url, "--votes", ann, "--votes", ben)
        assert len(fake.bodies) == 2 * NUM
        again = compared(capsys, "old", "new", "--judge", fake.url)
        assert len(fake.bodies) == 2 * NUM
    judge, people = (found[by]["preferences"][0] for by in ("judge", "people"))
    assert judge["win_rate"]["value"] == people["win_rate"]["value"] == pytest.approx(8 / NUM)
    assert judge["comparison"]["p"] == people["comparison"]["p"]
    assert judge["agreement"]["people"]["kappa"]["value"] == 1.0
    assert people["voters"] == ["ann", "ben"]
    assert people["agreement"]["ann and ben"]["agreement"]["value"] == 1.0
    turned = again["judge"]["preferences"][0]
    assert turned["win_rate"]["value"] == pytest.approx(16 / NUM)
    assert judge["agreement"]["known answers"]["agreement"]["value"] == 0.0


def test_one_place_is_still_the_stage_of_a_run(make_run, capsys):
    assert run("compare", "distill.yaml", "--blind") == 2
    assert "--blind is for two places" in capsys.readouterr().err
    assert run("compare", "a", "b", "c") == 2
    assert "or two places (potstill compare A B)" in capsys.readouterr().err
    assert run("compare", "distill.yaml", "train.num_epochs=1") == 2
    assert "no such file" in capsys.readouterr().err
