"""New prompts: asked for in rounds, new indeed, marked, answered like the others, and counted."""

import contextlib
import itertools
import json
import re

import pytest
import yaml
from fake_endpoint import FakeEndpoint, completion, served
from pages import PAGES, blocks

from potstill.config import parse_config
from potstill.errors import TeacherError
from potstill.examine.report_markdown import quality_lines
from potstill.pipeline.context import Context
from potstill.pipeline.data import gold_records, split
from potstill.pipeline.expand import expand
from potstill.pipeline.report import _funnel
from potstill.pipeline.story import STORY
from potstill.pipeline.teach import check, teach
from potstill.rundir import RunDir, read_jsonl, write_jsonl
from potstill.types import Message, Record, Rejection, Report

SECRET = "In which year did the harbour of the old town freeze over for the last time?"
WORDS = "amber birch cedar delta ember fjord grove heron islet jetty knoll lagoon".split()
CITIES = [f"{a} {b} {c}" for a, b, c in itertools.permutations(WORDS, 3)]


def question(number, text=None):
    messages = (Message(role="user", content=text or f"Which river runs by {CITIES[number]}?"),)
    return Record(id=f"q{number}", messages=messages, reference="the Wye")


@contextlib.contextmanager
def endpoint(writes):
    """A teacher that answers questions; asked for prompts, it says the next of `writes`."""
    replies = iter(writes)

    def answer(body):
        text = body["messages"][-1]["content"]
        if text.startswith("Below are"):
            return completion(next(replies))
        return completion(f"The Wye, of {len(text)} letters")

    fake = FakeEndpoint(answer=answer)
    with served(fake):
        yield fake


def written(*numbers):
    """A reply with prompts."""
    return json.dumps({"prompts": [question(100 + n).messages[0].content for n in numbers]})


def forever(start=0):
    return (written(*range(n, n + 3)) for n in itertools.count(start, 3))


@pytest.fixture
def context(tmp_path):
    def make(fake, *, train=8, events=None, **config):
        run = RunDir(tmp_path / "run")
        write_jsonl(run.train, [question(n) for n in range(train)])
        write_jsonl(run.validation, [question(50)])
        write_jsonl(run.test, [question(51), question(52, SECRET)])
        tree = {
            "name": "x", "task": "qa", "teacher": {"url": fake.url, "model": "fake"},
            "student": "s", "train_data": "a.jsonl", "data_generation": {"num_each": 3},
            "checks": ["finished"],
        }  # fmt: skip
        on_event = None if events is None else events.append
        return Context(parse_config({**tree, **config}), run, on_event=on_event)

    return make


def num_asked(fake):
    return sum(b["messages"][-1]["content"].startswith("Below are") for b in fake.bodies)


def test_as_many_prompts_are_made_as_there_are_real_ones_and_they_join_these(context):
    with endpoint(forever()) as fake:
        ctx = context(fake)
        expand(ctx)
        before = num_asked(fake)
        expand(ctx)
        assert num_asked(fake) == before == 3
    new = read_jsonl(ctx.run.synthetic, Record)
    real = read_jsonl(ctx.run.train, Record)
    assert (len(new), len(real)) == (8, 8)
    assert read_jsonl(ctx.run.prompts, Record) == real + new
    assert all(r.metadata["synthetic"] and r.reference is None for r in new)
    ids = {record.id for record in real}
    assert all(set(record.metadata["seeds"]) <= ids for record in new)
    facts = ctx.run.facts("expand")
    assert (facts["num_real"], facts["num_new"], facts["share_real"]) == (8, 8, 0.5)
    assert [record.id for record in gold_records(ctx)] == [record.id for record in real]


def test_prompts_are_made_after_the_split_and_before_any_is_answered():
    assert [stage for stage in STORY if stage in (teach, expand, split)] == [split, expand, teach]


def test_a_run_that_wants_none_has_none(context):
    with endpoint(forever()) as fake:
        ctx = context(fake, data_generation=None)
        expand(ctx)
        assert not fake.bodies
    assert not ctx.run.mark("expand").exists()


def test_only_training_prompts_are_shown_and_never_an_answer(context):
    with endpoint(forever()) as fake:
        expand(context(fake))
        shown = "\n".join(body["messages"][-1]["content"] for body in fake.bodies)
    assert any(city in shown for city in CITIES[:8])
    assert not any(text in shown for text in (CITIES[50], CITIES[51], SECRET, "Wye"))


def test_what_is_not_new_is_not_used_and_the_reason_is_kept(context):
    known = [question(n).messages[0].content for n in (3, 50, 51)]
    near = known[0].replace("Which", "which").replace("?", " ?")
    longer = f"Tell me, for a quiz in my local pub: {SECRET.lower()} Take your time, please."
    first = json.dumps([*known, near, longer, question(100).messages[0].content])
    with endpoint(itertools.chain([first, written(0, 1)], forever(2))) as fake:
        ctx = context(fake, data_generation={"num_each": 3, "num_prompts": 4},
                      generation={"max_in_flight": 1})  # fmt: skip
        expand(ctx)
    new = [record.messages[0].content for record in read_jsonl(ctx.run.synthetic, Record)]
    assert new == [question(100 + n).messages[0].content for n in range(4)]
    rejected = read_jsonl(ctx.run.unused_prompts, Rejection)
    reasons = [rejection.reason for rejection in rejected]
    assert reasons[:5] == ["duplicate", "leak", "leak", "duplicate", "contaminated"]
    assert reasons[5:] == ["duplicate"], "one of another reply"


def test_it_ends_when_the_teacher_has_no_more_ideas(context):
    events = []
    with endpoint(itertools.repeat(written(0, 1))) as fake:
        settings = {"num_prompts": 90, "num_each": 3, "max_requests": 200}
        ctx = context(fake, events=events, data_generation=settings)
        expand(ctx)
        assert num_asked(fake) == 4 + 3 * 30
    assert ctx.run.facts("expand")["num_new"] == 2
    (note,) = [event.text for event in events if event.kind == "note"]
    assert note == "2 of 90 wanted prompts: the last replies held no new one"


def test_it_ends_at_the_bound(context):
    with endpoint(forever()) as fake:
        settings = {"num_prompts": 90, "num_each": 3, "max_requests": 5}
        ctx = context(fake, data_generation=settings)
        expand(ctx)
        assert num_asked(fake) == 5
    assert ctx.run.facts("expand")["num_new"] == 15


def test_a_teacher_that_writes_none_stops_the_run_at_once(context):
    with endpoint(itertools.repeat("I would rather not.")) as fake:
        ctx = context(fake, data_generation={"num_prompts": 90})
        with pytest.raises(TeacherError, match=r"none of the first 4 replies.*rather not"):
            expand(ctx)
        assert num_asked(fake) == 4


def test_going_on_asks_only_for_what_is_missing(context):
    with endpoint(forever()) as fake:
        ctx = context(fake, data_generation={"num_prompts": 20, "num_each": 3})
        expand(ctx)
        before, new = num_asked(fake), ctx.run.synthetic.read_bytes()
        ctx.run.mark("expand").unlink()
        expand(ctx)
        assert num_asked(fake) == before
    assert ctx.run.synthetic.read_bytes() == new


def test_the_example_of_the_page_is_asked_checked_and_reported(context):
    tree = yaml.safe_load(blocks(PAGES / "concepts.md")["yaml"])
    settings = {name: tree[name] for name in ("task", "data_generation", "generation")}
    with endpoint(forever()) as fake:
        ctx = context(fake, **settings)
        for stage in (expand, teach, check):
            stage(ctx)
        shown = [b["messages"][-1]["content"] for b in fake.bodies]
    assert any("Some of them in German." in text for text in shown)
    rows = read_jsonl(ctx.run.accepted, Record)
    assert len(rows) == tree["generation"]["num_accepted"] == 15
    assert [bool(row.metadata.get("synthetic")) for row in rows] == [False] * 8 + [True] * 7
    found = json.loads(ctx.run.quality.read_text())
    assert (found["num_synthetic"], found["share_real"]) == (7, round(8 / 15, 4))
    report = Report(run="x", task={}, models={}, data=_funnel(ctx))
    lines = " | ".join(quality_lines(report))
    assert "training rows: 15 of 15 wanted, after 15 answers; rounds of asking: 1" in lines
    assert re.search(r"8 real ones and 12 that the teacher wrote; .* 53% answer a real one", lines)
