"""The configs of the page on several teachers run, each answer is its teacher's, once."""

import json
import re

import pytest
import yaml
from fake_endpoint import FakeEndpoint, completion, served
from pages import PAGES, blocks

from potstill.cli import main
from potstill.rundir import RunDir, read_jsonl
from potstill.types import Record, Rejection

pytestmark = pytest.mark.journey
NAMES = ("deepseek-v3", "qwen3-32b", "qwen3-8b")
SMALL = (
    *("train.max_steps=2", "train.precision=fp32", "evaluate.num_latency_calls=0"),
    *("evaluate.baselines=[]", "evaluate.max_new_tokens=8"),
)
SORRY = "I'm sorry, but I can't help with that."


class Teacher(FakeEndpoint):
    """Answers `What is w7?` with w7, or with what it is told to say to it; to others its name."""

    def __init__(self, name, said=None):
        super().__init__(answer=self.say)
        self.name, self.said = name, said or {}

    def say(self, body):
        found = re.search(r"What is (w\d+)\?", body["messages"][-1]["content"])
        word = found[1] if found else f"{self.name}: {body['messages'][-1]['content']}"
        return completion(self.said.get(word, word))

    @property
    def asked(self):
        """What it was asked, the call before the run left out."""
        texts = [body["messages"][-1]["content"] for body in self.bodies]
        return [text for text in texts if text != "Say yes."]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with 24 questions that have known answers, and a tiny student."""
    from tiny import tiny_llama

    tiny_llama(tmp_path / "student")
    rows = [{"id": f"r{n}", "question": f"What is w{n}?", "answer": f"w{n}"} for n in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place, block, teachers, *more, code=0):
    """Runs a config of the page, the teachers' names standing for these endpoints."""
    named = zip(NAMES, teachers, strict=True)
    models = {name: {"url": teacher.url, "model": name} for name, teacher in named}
    models["phi-4-mini"] = str(place / "student")
    (place / "potstill.yaml").write_text(yaml.safe_dump({"models": models}))
    (place / "distill.yaml").write_text(blocks(PAGES / "teachers.md")[f"yaml {block}"])
    with pytest.raises(SystemExit) as ended:
        main(["run", "distill.yaml", *SMALL, *more])
    assert ended.value.code == code
    return RunDir(place / "runs" / "desk-student")


def by_teacher(folder):
    rows = [*read_jsonl(folder.accepted, Record), *read_jsonl(folder.accepted_validation, Record)]
    found = {}
    for row in rows:
        found.setdefault(row.metadata["teacher"], set()).add(row.id)
    return found


def asked_again(place, block, teachers, *more):
    """How many requests the same command sends, with and without what it knows to be done."""
    before = sum(len(teacher.asked) for teacher in teachers)
    folder = run(place, block, teachers, *more)
    folder.mark("teach").unlink()
    run(place, block, teachers, *more)
    return sum(len(teacher.asked) for teacher in teachers) - before


def test_each_topic_is_asked_of_its_own_teacher(place):
    (place / "train.jsonl").write_text(blocks(PAGES / "teachers.md")["jsonl"])
    teachers = [Teacher(name) for name in NAMES]
    with served(*teachers):
        folder = run(place, "route", teachers)
        topics = {"deepseek-v3": {"q1", "q2", "q3"}, "qwen3-32b": {"q4"},
                  "qwen3-8b": {"q5", "q6", "q7", "q8"}}  # fmt: skip
        assert by_teacher(folder) == topics
        assert [len(teacher.asked) for teacher in teachers] == [3, 1, 4]
        terms = json.loads(folder.environment.read_text())["teachers"]
        assert {label: one["teacher"] for label, one in terms.items()} == {n: n for n in NAMES}
        assert folder.facts("teach")["teachers"]["deepseek-v3"]["answers"] == 3
        assert asked_again(place, "route", teachers) == 0


def test_a_record_without_a_teacher_ends_the_run_before_one_is_asked(place, capsys):
    teachers = [Teacher(name) for name in NAMES]
    with served(*teachers):
        rule = "teacher.2.when={field: topic, equals: house}"
        run(place, "route", teachers, rule, code=2)
    assert "no teacher's rule (teacher.when) holds for record r" in capsys.readouterr().err
    assert not any(teacher.asked for teacher in teachers)


def test_the_strong_teacher_answers_what_the_cheap_one_does_not(place):
    cheap = Teacher("cheap", {f"w{n}": SORRY for n in range(6)})
    teachers = [Teacher("strong"), Teacher("other"), cheap]
    more = ("data.test=0.25", "data.validation=0")
    with served(*teachers):
        folder = run(place, "fallback", teachers, *more)
        found = by_teacher(folder)
        handed_on = {f"r{n}" for n in range(6)} & set.union(*found.values())
        assert found["deepseek-v3"] == handed_on
        assert handed_on
        report = json.loads(folder.report_json.read_text())
        counts = report["data"]["teachers"]
        assert counts["qwen3-8b"]["answers"] == len(handed_on) + len(found["qwen3-8b"])
        assert counts["deepseek-v3"]["accepted"] == len(handed_on)
        assert report["models"]["teacher"]["metrics"]["accuracy"]["value"] == 1.0
        assert "qwen3-8b: " in folder.report_markdown.read_text()
        assert asked_again(place, "fallback", teachers, *more) == 0


def test_the_student_learns_what_two_of_three_teachers_say(place):
    teachers = [
        Teacher("a", {f"w{n}": f"v{n}" for n in range(12)}),
        Teacher("b", {f"w{n}": f"u{n}" for n in range(8)}),
        Teacher("c", {f"w{n}": f"u{n}" for n in range(4)}),
    ]
    more = ("data.test=0.25", "data.validation=0")
    with served(*teachers):
        folder = run(place, "vote", teachers, *more)
        learned = {row.metadata["gold"]: row for row in read_jsonl(folder.accepted, Record)}
        asked = {row.id for row in read_jsonl(folder.train, Record)}
        for n in (int(name[1:]) for name in asked):
            if n < 4:  # b and c agree, on something wrong
                assert learned[f"w{n}"].reference == f"u{n}"
            elif n < 8:
                assert f"w{n}" not in learned
            else:
                label = "qwen3-32b" if n < 12 else "deepseek-v3"
                assert learned[f"w{n}"].metadata["teacher"] == label
        reasons = {}
        for row in read_jsonl(folder.rejected, Rejection):
            reasons.setdefault(row.reason, set()).add(row.record_id)
        assert {f"r{n}" for n in range(4, 8)} & asked <= reasons["disagrees"]
        report = json.loads(folder.report_json.read_text())
        assert report["data"]["requested"] == 3 * len(asked)
        assert asked_again(place, "vote", teachers, *more) == 0


def test_terms_of_the_second_teacher_are_accepted_or_the_run_is_refused(place, capsys):
    teachers = [Teacher(name) for name in NAMES]
    second = "teacher.1={url: '%s', model: llama-3-8b-instruct}"
    with served(*teachers):
        more = (second % teachers[0].url, "data.validation=0")
        run(place, "fallback", teachers, *more, code=2)
        said = capsys.readouterr().err
        assert "teacher.1.accept_terms=true" in said and "teacher.0" not in said
        assert not any(teacher.bodies for teacher in teachers)
        folder = run(place, "fallback", teachers, *more, "--accept-terms")
        terms = json.loads(folder.environment.read_text())["teachers"]
        second_ones = terms["llama-3-8b-instruct"]
        assert (second_ones["train_on_outputs"], second_ones["accepted"]) == ("no", True)
        run(place, "fallback", teachers, *more, "teacher.1.accept_terms=true")
