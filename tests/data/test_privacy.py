"""Pseudonyms are consistent, look like what they stand for, and lead back to the real values."""

import random

import pytest

from potstill.config import PrivacyConfig
from potstill.data.privacy import Privacy, describe
from potstill.errors import ConfigError
from potstill.types import Message, Record

TEXT = (
    "I am Anna Schmidt, jane@example.org, call +49 30 901820, from 8.8.8.8. Was born 3 May 1984. "
    "IBAN DE89 3704 0044 0532 0130 00, card 4111 1111 1111 1111, SSN 536-90-4399, "
    "https://u:p4ss@host.example/r"
)


def talk(*contents, reference=None, **metadata):
    roles = ["user", "assistant"] * len(contents)
    messages = [Message(role=r, content=c) for r, c in zip(roles, contents, strict=False)]
    return Record(id="r", messages=tuple(messages), reference=reference, metadata=metadata)


def privacy(mode="pseudonymise", leaves=True, **settings):
    return Privacy(PrivacyConfig(mode=mode, **settings), leaves=leaves)


def hidden(*contents, names=("Anna Schmidt",), **settings):
    return privacy(names=names, **settings).hide(talk(*contents))


def test_a_pseudonym_looks_like_its_kind_and_belongs_to_nobody():
    text = hidden(TEXT).record.messages[0].content
    assert text == (
        "I am Robin Carter, person1@example.com, call +1 201 555 0100, from 192.0.2.1. "
        "Was born 1 January 1970. IBAN DE00 0000 0000 00000001, card 4000 0000 0001 0002, "
        "SSN 000-00-0001, https://user1:password@example.com/"
    )


def test_what_was_hidden_is_counted_by_kind():
    counts = hidden(TEXT).counts
    assert (counts["email"], counts["name"], counts.total()) == (1, 1, 9)
    assert describe(hidden("a@example.org, b@example.org, 8.8.8.8").counts) == (
        "2 e-mail addresses, 1 IP address"
    )


def test_one_value_has_one_pseudonym_over_all_turns_and_no_two_share_one():
    first, second, third = (
        m.content for m in hidden("a@x.org or b@x.org", "Is it b@x.org?", "b@x.org").record.messages
    )
    assert first == "person1@example.com or person2@example.com"
    assert (second, third) == ("Is it person2@example.com?", "person2@example.com")


def test_a_longer_conversation_keeps_the_pseudonyms_of_its_beginning():
    short, long = hidden("a@x.org"), hidden("a@x.org", "Yes?", "No, z@x.org")
    assert long.record.messages[0] == short.record.messages[0]


def test_a_value_found_by_its_surroundings_is_hidden_where_it_stands_bare():
    texts = hidden("I was born 3 May 1984.", "Noted.", "So 3 May 1984 it is").record.messages
    assert "1984" not in "".join(m.content for m in texts)


def test_a_pseudonym_that_stands_in_the_record_is_not_used():
    result = hidden("person1@example.com wrote to a@x.org, so did Robin")
    text = result.record.messages[0].content
    assert text == "person2@example.com wrote to person3@example.com, so did Robin"
    assert result.restore(text) == "person1@example.com wrote to a@x.org, so did Robin"
    assert "Robin" not in hidden("Robin met Anna Schmidt").restore("Robin").replace("Robin", "", 1)


def test_the_answer_gets_the_real_values_back():
    result = hidden(TEXT)
    assert result.restore(result.record.messages[0].content) == TEXT


@pytest.mark.parametrize(
    ("answer", "restored"),
    [
        ("Dear Robin, hello CARTER", "Dear Anna, hello Schmidt"),
        ("Person1@Example.com.", "jane@example.org."),
        ("I call 201-555-0100 or +12015550100", "I call +49 30 901820 or +49 30 901820"),
        ("DE000000000000000001", "DE89 3704 0044 0532 0130 00"),
        ("person12@example.com stays", "person12@example.com stays"),
        ("192.0.2.11 stays", "192.0.2.11 stays"),
    ],
)
def test_an_answer_may_write_a_pseudonym_its_own_way(answer, restored):
    assert hidden(TEXT).restore(answer) == restored


def test_redacting_leaves_marks():
    result = hidden("a@x.org and b@x.org and a@x.org, [EMAIL_1]", mode="redact")
    assert result.record.messages[0].content == "[EMAIL_2] and [EMAIL_3] and [EMAIL_2], [EMAIL_1]"


def test_reference_and_metadata_follow_the_messages():
    record = talk("Mail a@x.org", reference="a@x.org", answers=["a@x.org"], customer="a@x.org")
    result = privacy().hide(record, keep=["customer"]).record
    assert result.reference == "person1@example.com"
    assert result.metadata == {"answers": ["person1@example.com"], "customer": "a@x.org"}


def test_a_record_without_personal_data_is_itself():
    record = talk("How are you?")
    result = privacy().hide(record)
    assert result.record is record
    assert (result.digest, result.counts.total()) == ("", 0)


def test_auto_hides_logged_records_from_endpoints_only():
    logged, plain = talk("x", log={"model": "m"}), talk("x")
    auto = privacy("auto")
    assert (auto.covers(logged), auto.covers(plain)) == (True, False)
    assert not privacy("auto", leaves=False).covers(logged)
    assert not privacy("off").covers(logged)
    assert privacy("pseudonymise", leaves=False).covers(plain)


def test_the_student_may_learn_the_pseudonyms():
    records, counts = privacy(learn="pseudonyms").conceal([talk("a@x.org"), talk("b@x.org")])
    assert [r.messages[0].content for r in records] == ["person1@example.com"] * 2
    assert counts == {"email": 2}
    assert privacy().conceal([talk("a@x.org")])[0] == [talk("a@x.org")]


def test_names_come_from_a_file_and_more_from_a_function(tmp_path):
    (tmp_path / "names.txt").write_text("Müller\n\nअनिता\n", encoding="utf-8")
    result = privacy(names=tmp_path / "names.txt", finder="data.test_privacy:tickets").hide(
        talk("Frau MÜLLER, अनिता: T-77 and T-78")
    )
    assert result.record.messages[0].content == "Frau Robin, Alex: TICKET-1 and TICKET-2"
    with pytest.raises(ConfigError, match=r"data\.privacy\.names: .*none\.txt cannot be read"):
        privacy(names=tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"data\.privacy\.finder cannot be imported"):
        privacy(finder="no_such_module:find")


def tickets(text):
    import re

    return [(m.start(), m.end(), "ticket") for m in re.finditer(r"T-\d+", text)]


def test_more_names_than_the_pool_are_still_all_different():
    names = [f"Name{n:03d} Other{n:03d}" for n in range(500)]
    result = hidden(". ".join(names), names=names)
    text = result.record.messages[0].content
    assert len(set(text.split(". "))) == 500
    assert result.restore(text) == ". ".join(names)


PARTS = ["a@x.org", "b@x.org", "person1@example.com", "8.8.8.8", "192.0.2.1", "+49 30 901820",
         "Anna Schmidt", "Robin Carter", "Robin", "नमस्ते", "ａ＠ｘ．org", "4111 1111 1111 1111",
         "१२", "—", "\u200b", "born 3.5.1984", "[EMAIL_1]", "e\u0301", "\n",
         "+1 201 555 0100"]  # fmt: skip


@pytest.mark.parametrize("joint", [" | ", " ", ""])
def test_whatever_is_hidden_comes_back(joint):
    chance = random.Random(f"privacy {joint}")
    for _ in range(60):
        text = joint.join(chance.choices(PARTS, k=chance.randint(1, 9))) + "."
        result = hidden(text)
        sent = result.record.messages[0].content
        assert result.restore(sent) == text
        if joint == " | ":
            assert not [v for v in ("a@x.org", "8.8.8.8", "Anna Schmidt", "901820") if v in sent]
