"""Seeds are shown by their kind, and whole prompts are found in whatever the teacher replies."""

import json

import pytest

from potstill.config import DataGenerationConfig
from potstill.data.privacy import LOG_KEY
from potstill.tasks import get_task
from potstill.teach.expand import LONGEST_SEED, Seeds, new_records, read_prompts
from potstill.types import Message, Record, Response

FOUR = DataGenerationConfig(num_seeds=4, num_each=3)


def seed(number, text=None, *, system="", **metadata):
    turns = [Message(role="system", content=system)] if system else []
    turns.append(Message(role="user", content=text or f"Where is parcel {number}?"))
    return Record(id=f"s{number}", messages=tuple(turns), reference="x", metadata=metadata)


def reply(text, **changes):
    return Response(**{"record_id": "p", "text": text, "finish_reason": "stop", **changes})


@pytest.mark.parametrize(
    "text",
    [
        '{"prompts": ["one?", "two?"]}',
        '["one?", "two?"]',
        'Sure [here]!\n```json\n{"prompts": ["one?", "two?"]}\n```\nEnjoy.',
        '{"new": [{"id": 1, "prompt": "one?"}, {"id": 2, "prompt": "two?"}]}',
        '<think>["no"]</think>{"prompts": ["one?", "two?", "", 3]}',
        '{"prompts": ["one?", "two?", "thr',
        '{"prompts": ["one?", "two?",]}',
        '[{"prompt": "one?"}, {"prompt": "two?"}, {"prom',
        "Here you are:\n1. one?\n2) two?",
        "- one?\n* two?\n",
    ],
)
def test_whole_prompts_are_read_tolerantly(text):
    assert read_prompts(text) == ["one?", "two?"]


@pytest.mark.parametrize(
    "text", ["", "I'm sorry, I can't.", "{", "[[[[", "[1, 2]", '{"prompts": []}', "<think>", "\0["]
)
def test_a_reply_without_prompts_gives_none(text):
    assert read_prompts(text) == []


def test_the_last_line_of_a_cut_list_is_not_whole():
    assert read_prompts("1. one?\n2. tw", is_cut=True) == ["one?"]


def test_half_characters_can_be_written_down():
    (prompt,) = read_prompts('["a \\ud800 b"]')
    assert prompt == "a ? b"


def test_the_same_seeds_give_the_same_requests_and_each_shows_others():
    rows = [seed(n) for n in range(40)]
    one, two = Seeds(rows, seed=1), Seeds(reversed(rows), seed=1)
    requests = [one.request(n, FOUR) for n in range(10)]
    assert requests == [two.request(n, FOUR) for n in range(10)]
    assert len({r.id for r in requests}) == len({r.messages for r in requests}) == 10
    assert [len(one.examples(n, FOUR)) for n in range(3)] == [4, 4, 4]
    assert Seeds(rows, seed=2).request(0, FOUR) != requests[0]
    shown = one.examples(0, FOUR)
    assert all(record.messages[-1].content in requests[0].messages[0].content for record in shown)


def test_seeds_of_one_request_are_put_alike_and_no_answer_is_shown():
    rows = [seed(n, system="Be brief.") for n in range(5)]
    rows += [seed(n, fields=["question"]) for n in range(5, 10)]
    seeds = Seeds([r.model_copy(update={"reference": "SECRET"}) for r in rows], seed=0)
    for number in range(20):
        examples = seeds.examples(number, FOUR)
        assert len({r.messages[0].role for r in examples}) == 1
        text = seeds.request(number, FOUR).messages[0].content
        assert ("Be brief." in text) == (examples[0].messages[0].role == "system")
        assert "SECRET" not in text


def test_long_prompts_are_no_examples():
    seeds = Seeds([seed(0, "x" * (LONGEST_SEED + 1)), seed(1)], seed=0)
    assert (len(seeds), seeds.num_records) == (1, 2)


def test_the_users_wish_reaches_the_teacher():
    config = DataGenerationConfig(instruction="Some in Malayalam.")
    assert "Some in Malayalam." in Seeds([seed(0)], seed=0).request(0, config).messages[0].content


def test_new_prompts_are_put_as_their_seeds_and_marked():
    seeds = [seed(n, system="Be brief.", fields=["question"], label="x", order=n) for n in (1, 2)]
    found = new_records(reply('["Why?", "How?"]'), seeds)
    assert [r.messages[-1].content for r in found.records] == ["Why?", "How?"]
    for record in found.records:
        assert record.messages[0] == seeds[0].messages[0]
        assert record.reference is None
        assert record.metadata == {
            "fields": ["question"], "synthetic": True, "seeds": ["s1", "s2"],
        }  # fmt: skip
        assert "short phrase" in get_task("qa").turns(record)[0].messages[-1].content
    assert len({record.id for record in found.records}) == 2


def test_prompts_from_logs_stay_prompts_from_logs_so_that_names_are_hidden():
    seeds = [seed(1, **{LOG_KEY: {"model": "m"}})]
    assert LOG_KEY in Seeds(seeds, seed=0).request(0, FOUR).metadata
    (record,) = new_records(reply('["Why?"]'), seeds).records
    assert LOG_KEY in record.metadata


def test_a_prompt_without_the_options_that_all_seeds_have_is_rejected():
    seeds = [seed(n, f"Colour {n}?\n(A) red\n(B) blue", fields=["question", "choices"])
             for n in (1, 2)]  # fmt: skip
    texts = ["Size?\n(A) big\n(B) small", "Size?"]
    found = new_records(reply(json.dumps(texts)), seeds)
    assert [r.messages[-1].content for r in found.records] == texts[:1]
    assert [r.reason for r in found.rejected] == ["form"]


def test_replies_that_give_nothing_are_rejected_with_the_reason():
    failed = new_records(reply("", finish_reason="error", error="no luck"), [seed(1)])
    unread = new_records(reply("I would rather not."), [seed(1)])
    assert [(r.reason, r.detail) for r in (*failed.rejected, *unread.rejected)] == [
        ("error", "no luck"),
        ("unparsable", "I would rather not."),
    ]
