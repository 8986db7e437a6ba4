"""The demo's data: the same again from a seed, and no test message that could be known."""

from collections import Counter

import pytest

from potstill.demo.tickets import (
    FIELDS,
    INTENTS,
    SYSTEM_PROMPT,
    URGENCIES,
    durations,
    field_accuracy,
    format_ticket,
    parse_ticket,
    read_skeletons,
    tickets,
)
from potstill.errors import DataError

SPLITS = ("gold", "pool", "validation", "test")


@pytest.fixture(scope="module")
def rows():
    return tickets(0)


def values(members, key):
    return {row["metadata"][key] for row in members} - {None}


def test_a_seed_gives_the_same_rows_again(rows):
    assert tickets(0) == rows


def test_another_seed_gives_other_rows(rows):
    other = tickets(1)
    assert [row["messages"] for row in other["test"]] != [row["messages"] for row in rows["test"]]


def test_the_sizes_are_those_asked_for(rows):
    assert {split: len(members) for split, members in rows.items()} == {
        "gold": 480,
        "few": 48,
        "pool": 800,
        "validation": 64,
        "test": 320,
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("key", ["skeleton", "context", "item"])
def test_no_two_splits_share_wording_or_an_item(seed, key):
    rows = tickets(seed)
    owners = Counter(value for split in SPLITS for value in values(rows[split], key))
    assert max(owners.values()) == 1


def test_no_message_occurs_twice(rows):
    messages = [row["messages"][-1]["content"] for split in SPLITS for row in rows[split]]
    assert len(messages) == len(set(messages))


def test_ids_are_unique(rows):
    ids = [row["id"] for split in SPLITS for row in rows[split]]
    assert len(ids) == len(set(ids))


def test_the_few_rows_begin_the_gold_rows_and_hold_every_intent(rows):
    assert rows["few"] == rows["gold"][:48]
    assert values(rows["few"], "intent") == set(INTENTS)


def test_every_reference_parses_to_its_fields(rows):
    for split in SPLITS:
        for row in rows[split]:
            assert parse_ticket(row["reference"]) == {
                name: row["metadata"][name] for name in FIELDS
            }


def test_no_prompt_holds_its_reference(rows):
    for split in SPLITS:
        for row in rows[split]:
            assert row["reference"] not in " ".join(m["content"] for m in row["messages"])


def test_every_message_holds_its_item_and_no_open_slot(rows):
    for split in SPLITS:
        for row in rows[split]:
            message = row["messages"][-1]["content"]
            assert row["metadata"]["item"] in message.lower()
            assert "{" not in message


def test_rows_begin_with_our_system_prompt(rows):
    assert {row["messages"][0]["content"] for split in SPLITS for row in rows[split]} == {
        SYSTEM_PROMPT
    }


def test_a_fifth_of_the_test_items_hold_a_word_that_was_never_trained_on(rows):
    trained = {
        word
        for split in ("gold", "pool")
        for item in values(rows[split], "item")
        for word in item.split()
    }
    new = [row for row in rows["test"] if set(row["metadata"]["item"].split()) - trained]
    assert 0.1 < len(new) / len(rows["test"]) < 0.3


def test_the_wording_is_varied(rows):
    written = read_skeletons()
    assert sum(len(written[intent]) for intent in INTENTS) >= 250
    assert len(values(rows["test"], "skeleton")) >= 60
    assert len(values(rows["pool"], "item")) >= 400
    assert all(len(set(texts)) == len(texts) for texts in written.values())


@pytest.mark.parametrize("split", SPLITS)
def test_intents_and_urgencies_are_balanced(rows, split):
    intents = Counter(row["metadata"]["intent"] for row in rows[split])
    assert max(intents.values()) - min(intents.values()) <= 1
    share = sum(row["metadata"]["urgency"] == URGENCIES[1] for row in rows[split]) / len(
        rows[split]
    )
    assert 0.3 < share < 0.7


@pytest.mark.parametrize(
    ("text", "time"), [("a fortnight", "2 weeks"), ("one month", "1 month"), ("9 days", "9 days")]
)
def test_a_duration_in_words_is_a_number_and_a_unit(text, time):
    assert durations()[text] == time


@pytest.mark.parametrize(
    "text",
    [
        "",
        "refund",
        "refund | kettle | 14 | urgent",
        "refund | kettle | 2 weeks",
        "praise | kettle | 2 weeks | urgent",
        "refund | kettle | 2 weeks | soon",
        "refund | kettle | two days | urgent",
        "refund |  | 2 weeks | urgent",
        "refund | kettle | 2 weeks | urgent\nrefund | kettle | 2 weeks | urgent",
    ],
)
def test_what_is_not_a_ticket_is_none(text):
    assert parse_ticket(text) is None


def test_outer_space_does_not_matter():
    fields = {"intent": "track", "item": "jade desk fan", "time": "2 weeks", "urgency": "urgent"}
    assert parse_ticket(f"  {format_ticket(fields)}\n") == fields


def test_field_accuracy_counts_each_field_and_the_whole():
    right = "track | jade desk fan | 2 weeks | urgent"
    texts = [right, "track | jade fan | 2 weeks | normal", "I am sorry"]
    assert field_accuracy(texts, [right] * 3) == pytest.approx(
        {"intent": 2 / 3, "item": 1 / 3, "time": 2 / 3, "urgency": 1 / 3, "all": 1 / 3}
    )


@pytest.mark.parametrize(
    ("texts", "references"), [([], []), (["a"], []), (["a"], ["not a ticket"])]
)
def test_accuracy_of_nothing_or_of_broken_references_is_refused(texts, references):
    with pytest.raises(DataError):
        field_accuracy(texts, references)


def test_more_few_rows_than_gold_rows_are_refused():
    with pytest.raises(DataError, match="num_few must be <= num_gold"):
        tickets(0, num_gold=10, num_few=11)
