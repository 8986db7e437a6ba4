"""The judge of a run: asked once, kept, in the report, and refused where it cannot judge."""

import pytest
from fake_endpoint import served
from fake_judge import always_first, answers_in, fake_judge, longer

from potstill.config import JudgeConfig, parse_config
from potstill.errors import ConfigError, TeacherError
from potstill.examine.ballots import Ballot, Preference
from potstill.examine.report_html import render_html
from potstill.examine.report_judge import judge_lines, judge_metrics, judge_sentences, lines
from potstill.examine.report_markdown import render_markdown
from potstill.examine.resample import wilson
from potstill.pipeline.context import Context, wait
from potstill.pipeline.judge import Bench, judge
from potstill.pipeline.report import _judge
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.types import Estimate, Evaluation, Message, Report, Sample

NUM = 12


def answers(letter, n=NUM, **facts):
    return [
        Sample(record_id=f"r{i}", prompt=(Message(role="user", content=f"Question {i}?"),),
               text=letter * (5 + (7 * i + ord(letter)) % 23), prediction="", **facts)
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def context(tmp_path):
    def make(fake=None, *, n=NUM, on_event=None, url=None, **settings):
        run = RunDir(tmp_path / "run")
        for role, letter in (("distilled", "d"), ("teacher", "t"), ("untouched", "u")):
            if not run.samples(role).exists():
                write_jsonl(run.samples(role), answers(letter, n))
        place = {"url": url or fake.url, "model": "fake-judge"}
        tree = {
            "name": "x", "task": "qa", "teacher": "phi-4", "student": "smollm2-135m",
            "train_data": "a.jsonl", "evaluate": {"judge": {**place, **settings}},
        }  # fmt: skip
        return Context(parse_config(tree), run, on_event=on_event)

    return make


ROLES = ["teacher", "untouched", "distilled"]


def test_every_pair_is_judged_in_both_orders_and_no_judgment_is_paid_for_twice(context):
    fake = fake_judge(longer)
    with served(fake):
        ctx = context(fake)
        judge(ctx, ROLES)
        assert len(fake.bodies) == 2 * NUM * 2
        shown = {tuple(answers_in(body)) for body in fake.bodies}
        assert {tuple(reversed(both)) for both in shown} == shown
        ctx.run.mark("judge").unlink()
        judge(ctx, ROLES)
        assert len(fake.bodies) == 2 * NUM * 2
        changed = answers("d")
        changed[3] = changed[3].model_copy(update={"text": "quite another answer"})
        write_jsonl(ctx.run.samples("distilled"), changed)
        judge(ctx, ROLES)
        assert len(fake.bodies) == 2 * NUM * 2 + 2 * 2
    found = _judge(ctx)
    assert [one["b"] for one in found["preferences"]] == ["teacher", "untouched"]
    assert found["preferences"][0]["win_rate"]["n"] == NUM
    assert len(read_jsonl(ctx.run.ballots("distilled-teacher"), Ballot)) == 2 * NUM
    assert all(body["temperature"] == 0 for body in fake.bodies)


def test_a_stopped_judge_goes_on_where_it_was(context):
    fake = fake_judge(longer)
    fake.script = [(200, fake.answer({"messages": [{"content": _shown()}]}))] * 20 + [
        (401, {"error": {"message": "no credit"}})
    ]
    with served(fake):
        ctx = context(fake, n=90, against=["teacher"])
        with pytest.raises(TeacherError):
            judge(ctx, ROLES)
        num_before = len(fake.bodies)
        judge(ctx, ROLES)
    assert len(fake.bodies) - num_before < 180 - 20  # what came before the refusal is kept
    assert _judge(ctx)["preferences"][0]["counts"]["unreadable"] == 0


def _shown():
    return "<answer 1 00000000>\nlonger\n</answer 1 00000000>\n<answer 2 00000000>\nx\n</answer"


def test_a_judge_without_a_readable_word_is_stopped_after_its_first_replies(context):
    fake = fake_judge(lambda *_: "I would rather not say which of the two I like.")
    with served(fake), pytest.raises(TeacherError) as caught:
        judge(context(fake), ROLES)
    assert len(fake.bodies) == 16
    assert "the first 16 replies of the judge fake-judge" in str(caught.value)
    assert "the other 8 questions were not asked" in str(caught.value)
    assert "rather not say" in str(caught.value)


def test_a_sample_of_rows_is_judged_where_that_is_wanted(context):
    fake = fake_judge(longer)
    with served(fake):
        judge(context(fake, num_rows=5, against=["untouched"]), ROLES)
    assert len(fake.bodies) == 10


def test_scores_are_asked_for_one_answer_at_a_time_and_compared_in_pairs(context):
    fake = fake_judge(lambda answer: f"Fine.\nScore: {3 + len(answer) % 3 - (answer[0] == 'u')}")
    with served(fake):
        ctx = context(fake, how=["rubric"])
        judge(ctx, ROLES)
    assert len(fake.bodies) == 3 * NUM
    found = _judge(ctx)
    assert set(found["scores"]) == {"distilled", "teacher", "untouched"}
    scores = judge_metrics(found, "distilled")
    assert scores["untouched"]["judge_score"].value < scores["teacher"]["judge_score"].value
    against = {c["b"]: c["verdict"] for c in found["comparisons"]}
    assert against["untouched"] == "better"


@pytest.mark.parametrize(("right", "share"), [("good", 1.0), ("poor", 0.0)])
def test_scores_are_held_against_the_known_answers(context, right, share):
    fake = fake_judge(lambda answer: f"Score: {5 if 'good' in answer else 2}")
    with served(fake):
        ctx = context(fake, how=["rubric"], against=["untouched"])
        for place, role in enumerate(("distilled", "untouched")):
            said = [("good", "poor")[(i + place) % 2] for i in range(NUM)]
            rows = [
                sample.model_copy(update={"text": text, "correct": float(text == right)})
                for sample, text in zip(answers("x"), said, strict=True)
            ]
            write_jsonl(ctx.run.samples(role), rows)
        judge(ctx, ("distilled", "untouched"))
    found = _judge(ctx)
    agreed = Estimate.model_validate(found["score_agreement"]["untouched"]["agreement"])
    assert (agreed.value, agreed.n) == (share, NUM)
    assert (agreed.low, agreed.high) == pytest.approx(wilson(share * NUM, NUM))
    told = " ".join(judge_lines(found))
    assert f"of {NUM} pairs in which exactly one is right" in told


def test_scores_that_say_nothing_of_right_and_wrong_are_warned_of(context):
    fake = fake_judge(lambda answer: "Score: 3")
    with served(fake):
        ctx = context(fake, how=["rubric"], against=["untouched"])
        for place, role in enumerate(("distilled", "untouched")):
            rows = [
                sample.model_copy(update={"correct": float((i + place) % 2)})
                for i, sample in enumerate(answers(role[0]))
            ]
            write_jsonl(ctx.run.samples(role), rows)
        judge(ctx, ("distilled", "untouched"))
    (told,) = [line for line in judge_lines(_judge(ctx)) if line.startswith("warning: scores")]
    assert told.endswith("are not shown to tell right from wrong better than chance")


def report_of(found) -> Report:
    metrics = judge_metrics(found, "distilled")
    models = {
        role: Evaluation(role=role, id=role, metrics={"accuracy": one, **metrics.get(role, {})})
        for role in ("teacher", "distilled")
        for one in [next(iter(metrics["distilled"].values()))]
    }
    sentence = " ".join(judge_sentences(found))
    return Report(run="r", task={"name": "qa"}, models=models, judge=found, verdict=sentence)


def test_the_report_shows_the_judge_in_all_its_forms(context, capsys):
    from potstill.console import print_report

    fake = fake_judge(always_first)
    with served(fake):
        ctx = context(fake)
        judge(ctx, ROLES)
    report = report_of(_judge(ctx))
    assert Report.model_validate_json(report.model_dump_json()) == report
    rate = report.models["distilled"].metrics["judge_win_rate"]
    assert rate.value == 0.5 and rate.note.startswith("against teacher")
    assert "both orders" in rate.signature and "prompt " in rate.signature
    assert "The judge fake-judge shows no sure preference." in report.verdict
    print_report(report)
    for text in (capsys.readouterr().out, render_html(report), render_markdown(report)):
        assert "distilled against teacher" in text
        assert "depends on which answer stands first" in text
        assert "family of the judge fake-judge is not known" in text


def test_a_judge_of_the_teachers_family_is_warned_of(context):
    fake = fake_judge(longer)
    with served(fake):
        ctx = context(fake, model="phi-4-judge")
        judge(ctx, ROLES)
    assert "is of the family phi, like the teacher" in _judge(ctx)["warnings"][0]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"judge": {"url": "http://h/v1", "batch": True}}, "batch is for teachers"),
        ({"judge": {"source": "x", "against": ["gold_few"]}},
         "evaluate.judge.against names gold_few, and the rows are: teacher, untouched"),
        ({"judge": "x", "teacher": False, "baselines": []}, "set evaluate.judge.against"),
        ({"judge": {"source": "x", "max_cost": 1}}, "max_cost needs price"),
        ({"judge": {"source": "x", "how": "pairwize"}}, "evaluate.judge.how"),
        ({"judge": {"source": "x", "key": "sk-secret"}}, "env:NAME or file:PATH"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_be_meant_is_refused(evaluate, message):
    tree = {"name": "x", "task": "qa", "teacher": "t", "student": "s", "train_data": "a.jsonl"}
    with pytest.raises(ConfigError) as caught:
        parse_config({**tree, "evaluate": evaluate})
    assert message in str(caught.value) and "sk-secret" not in str(caught.value)


def test_the_short_form_names_a_judge_and_overrides_reach_into_it(tmp_path):
    from potstill.config import load_config

    (tmp_path / "judge.gguf").touch()
    (tmp_path / "c.yaml").write_text(
        "name: x\ntask: qa\nteacher: t\nstudent: s\ntrain_data: a.jsonl\n"
        "evaluate: {judge: judge.gguf}\n"
    )
    found = load_config(tmp_path / "c.yaml", ["evaluate.judge.num_rows=7"]).evaluate.judge
    assert (found.source, found.num_rows) == (str(tmp_path / "judge.gguf"), 7)


@pytest.mark.slow
def test_a_small_real_model_judges_and_its_weakness_is_told(tmp_path, smollm2):
    """135 M weights keep no form and mostly choose by place; the win rate comes with that said."""
    facts = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
             "Egypt": "Cairo", "Peru": "Lima", "Norway": "Oslo", "Greece": "Athens",
             "Cuba": "Havana", "Kenya": "Nairobi"}  # fmt: skip

    def answered(say, correct):
        return [
            Sample(record_id=land, text=say(city), prediction="", correct=correct,
                   prompt=(Message(role="user", content=f"What is the capital of {land}?"),))
            for land, city in facts.items()
        ]  # fmt: skip

    samples = {
        "right": answered(lambda city: f"The capital is {city}.", 1.0),
        "wrong": answered(lambda city: "Bananas are yellow, and so is the sun at noon.", 0.0),
    }
    config = JudgeConfig(source=smollm2.name, max_new_tokens=64)
    bench = Bench(config, folder=tmp_path / "judgments", families={"the student": "smollm"})
    found = wait(bench.judge(samples))["preferences"][0]
    assert sum(found["counts"].values()) == len(facts) == found["win_rate"]["n"]
    assert len(bench.ballots["right", "wrong"]) == 2 * len(facts)
    assert found["agreement"]["known answers"]["agreement"]["n"] == len(facts)
    told = " ".join(found["warnings"])
    assert "no verdict could be read" in told or "depends on which answer stands first" in told
    assert "family smollm, like the student" in found["warnings"][0]
    assert any("kappa" in line or "%" in line for line in lines(Preference.model_validate(found)))
    again = Bench(config, folder=tmp_path / "judgments", families={"the student": "smollm"})
    assert wait(again.judge(samples))["preferences"][0] == found
