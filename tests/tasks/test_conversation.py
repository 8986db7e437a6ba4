import pytest

from potstill.tasks.conversation import conversation, with_answers
from potstill.tasks.facts import conveys, hard_facts
from potstill.types import Message, Record


def record(*contents, reference=None, system=None, **metadata):
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)]
    if system:
        turns.insert(0, Message(role="system", content=system))
    return Record(id="r", messages=tuple(turns), reference=reference, metadata=metadata)


def right(answer, reference, **metadata):
    row = record("?", reference=reference, **metadata)
    return conversation.correct(conversation.parse(answer, row), row)


def test_every_assistant_turn_is_asked_on_the_gold_history():
    row = record("Hi", "Hello", "Bye", "See you", "?", reference="!", system="Be kind")
    turns = conversation.turns(row)
    assert [t.reference for t in turns] == ["Hello", "See you", "!"]
    assert [len(t.messages) for t in turns] == [2, 4, 6]
    assert all(t.messages[-1].role == "user" and t.messages[0].role == "system" for t in turns)
    assert {t.id for t in turns} == {"r"}
    assert turns[-1] is row


def test_a_row_of_user_turns_only_is_one_prompt_for_each():
    row = Record(id="r", messages=[Message(role="user", content=c) for c in ("a", "b", "c")])
    turns = conversation.turns(row)
    assert [t.messages[-1].content for t in turns] == ["a", "b", "c"]
    assert all(t.reference is None for t in turns)


def test_a_greeting_before_any_user_turn_is_not_asked_for():
    greeting = Message(role="assistant", content="Hello, I am a bot")
    row = Record(id="r", messages=(greeting, Message(role="user", content="Hi")), reference="Yes?")
    assert [t.reference for t in conversation.turns(row)] == ["Yes?"]


def test_a_greeting_does_not_shift_the_facts_of_the_turns():
    greeting = Message(role="assistant", content="Hello, I am a bot")
    row = record("a", "It is 7.", "b", reference="It is 9.", facts=["7", "9"])
    system = Message(role="system", content="Be kind")
    row = row.model_copy(update={"messages": (system, greeting, *row.messages)})
    first, last = conversation.turns(row)
    assert conversation.correct("It is 7", first) == conversation.correct("It is 9", last) == 1.0


def test_own_answers_take_the_place_of_the_known_ones():
    row = record("a", "A", "b", "B", "c", reference="C", system="Be kind")
    turns = conversation.turns(row)
    said = with_answers(turns, 2, ["one", "two"])
    assert [m.content for m in said.messages] == ["Be kind", "a", "one", "b", "two", "c"]
    assert said.reference == "C"


def test_own_answers_stand_between_user_turns_without_known_ones():
    row = Record(id="r", messages=[Message(role="user", content=c) for c in ("a", "b", "c")])
    said = with_answers(conversation.turns(row), 2, ["one", "two"])
    assert [m.content for m in said.messages] == ["a", "one", "b", "two", "c"]


def test_facts_of_a_whole_conversation_go_to_the_turns_that_say_them():
    row = record("a", "Sure, it is 7.", "b", reference="It is 9.", facts=["7", "9"])
    first, last = conversation.turns(row)
    assert conversation.correct("7 it is", first) == conversation.correct("Nine: 9", last) == 1.0
    assert conversation.correct("9", first) == conversation.correct("7", last) == 0.0


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Your order AB-123 arrives at 7:30 on Monday.", ("AB-123", "7:30", "Monday")),
        ("There are 3 songs by Hayley Kiyoko.", ("3", "Hayley Kiyoko")),
        ("We went to the 3D Toronto sign.", ("3D", "Toronto")),
        ("Sure, I can do that.", ()),
        ("आपका ऑर्डर ४२ सोमवार को आएगा।", ("42",)),
        ("ഓർഡർ 17 തിങ്കളാഴ്ച എത്തും.", ("17",)),
    ],
)
def test_hard_facts_are_numbers_codes_and_names(text, facts):
    assert hard_facts(text) == facts


@pytest.mark.parametrize(
    ("text", "fact", "expected"),
    [
        ("It costs 1,200 rupees", "1200", True),
        ("It costs ₹1,200.00", "1200", True),
        ("There are three songs", "3", True),
        ("There are 13 songs", "3", False),
        ("by hayley  KIYOKO!", "Hayley Kiyoko", True),
        ("by Hayley", "Hayley Kiyoko", False),
        ("यह ४२ है", "42", True),
        ("दिल्ली में", "दिल्ली", True),
        ("दिल में", "दिल्ली", False),
        ("at 17:30", "7:30", False),
        ("on March 16", "16th", True),
        ("at 7 pm", "7pm", True),
        ("order AB 123", "AB-123", True),
        ("order AB-1234", "AB-123", False),
    ],
)
def test_a_fact_is_conveyed_by_the_same_number_or_the_same_words(text, fact, expected):
    assert conveys(text, fact) is expected


def test_facts_of_the_reference_decide_whatever_the_wording():
    reference = "Your table for 4 at Mario is booked."
    assert right("Done! Mario expects the four of you.", reference) == 1.0
    assert right("Your table for 5 at Mario is booked.", reference) == 0.0


def test_without_facts_the_wording_decides():
    assert right("sure, I can do that for you", "Sure, I can do that.") == 1.0
    assert right("No way.", "Sure, I can do that.") == 0.0
    assert right("हाँ, मैं कर सकता हूँ", "हाँ, मैं यह कर सकता हूँ") == 1.0
    assert right("", "Sure.") == 0.0
    assert right("👍", "👍") == 1.0


def test_facts_and_slots_of_the_metadata_come_first():
    assert right("It is 30 days.", "Within a month.", facts=["30 days"]) == 1.0
    assert right("Within a month.", "Within a month.", facts=["30 days"]) == 0.0
    assert right("At Mario in Rome", "At Mario", slots={"name": ["Mario", "Da Mario"]}) == 1.0
    assert right("At Luigi", "At Mario", slots={"name": ["Mario", "Da Mario"]}) == 0.0


def test_facts_of_a_conversation_count_where_the_turn_says_them():
    row = record("a", "It is 7.", "b", reference="It is 9.", facts=[["7"], ["9"]])
    first, last = conversation.turns(row)
    assert (conversation.correct("7!", first), conversation.correct("9!", last)) == (1.0, 1.0)
    assert (conversation.correct("9!", first), conversation.correct("7!", last)) == (0.0, 0.0)


def test_thoughts_are_no_part_of_the_answer():
    assert conversation.parse("<think>hm</think>\nHello", record("Hi")) == "Hello"
    assert conversation.parse("  ", record("Hi")) is None


def test_without_a_reference_nothing_is_right_or_wrong():
    assert conversation.correct("x", record("Hi")) is None
