"""Personal data is found in any script, checked where it has a checksum, and given as spans."""

import pytest

from potstill.data.personal import build_finder
from potstill.errors import ConfigError

find = build_finder(regions=("US", "GB", "DE", "IN"))


def found(text, finder=find):
    return [(text[span.start : span.end], span.kind) for span in finder(text)]


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("Write to jane.doe+x@mail.example.org.", "jane.doe+x@mail.example.org", "email"),
        ("jane＠example．com に送って", "jane＠example．com", "email"),
        ("メールはjane@example.comです", "jane@example.com", "email"),
        ("पता राम@उदाहरण.भारत है", "राम@उदाहरण.भारत", "email"),
        ("an müller@firma.de bitte", "müller@firma.de", "email"),
        ("“jane@example.org”", "jane@example.org", "email"),
        ("Call +49 30 901820 now", "+49 30 901820", "phone"),
        ("call (202) 456-1111.", "(202) 456-1111", "phone"),
        ("Tel. 030 901820", "030 901820", "phone"),
        ("मेरा नंबर ९८७६५ ४३२१० है", "९८७६५ ४३२१०", "phone"),
        ("電話 ＋４９ ３０ ９０１８２０", "＋４９ ３０ ９０１８２０", "phone"),
        ("IBAN DE89 3704 0044 0532 0130 00 and more", "DE89 3704 0044 0532 0130 00", "iban"),
        ("gb82west12345698765432", "gb82west12345698765432", "iban"),
        ("card 4111 1111 1111 1111,", "4111 1111 1111 1111", "card"),
        ("5500‑0000‑0000‑0004", "5500‑0000‑0000‑0004", "card"),
        ("from 8.8.8.8 today", "8.8.8.8", "ip"),
        ("at 2001:4860:4860::8888 too", "2001:4860:4860::8888", "ip"),
        ("git clone https://u:p4ss@host.example/r.git", "https://u:p4ss@host.example/r.git", "url"),
        ("https://x.example/a?b=1&token=s3cret&c=2", "https://x.example/a?b=1&token=s3cret&c=2",
         "url"),
        ("I was born on 3 May 1984 in Bonn", "3 May 1984", "birth_date"),
        ("DOB: 03/05/1984", "03/05/1984", "birth_date"),
        ("geboren am 3.5.1984", "3.5.1984", "birth_date"),
        ("जन्म तिथि: ०३-०५-१९८४", "०३-०५-१९८४", "birth_date"),
        ("生年月日：1984年5月3日", "1984年5月3日", "birth_date"),
        ("Send it to 221B Baker Street, London NW1 6XE", "221B Baker Street, London NW1 6XE",
         "address"),
        ("Lindenstraße 12a, 10115 Berlin bitte", "Lindenstraße 12a, 10115 Berlin", "address"),
        ("12 Anna Salai Road, Chennai 600002", "12 Anna Salai Road, Chennai 600002", "address"),
        ("SSN 536-90-4399", "536-90-4399", "us_ssn"),
        ("social security number 536904399", "536904399", "us_ssn"),
        ("Steuer-ID 36 574 261 809", "36 574 261 809", "de_tax_id"),
        ("आधार २३४१ २३४१ २३४६", "२३४१ २३४१ २३४६", "in_aadhaar"),
        ("NINO ab 12 34 56 c", "ab 12 34 56 c", "uk_nino"),
    ],
)  # fmt: skip
def test_a_value_is_found_whole_in_the_text_as_it_is(text, value, kind):
    assert (value, kind) in found(text)


@pytest.mark.parametrize(
    "text",
    [
        "DE88 3704 0044 0532 0130 00",  # the checksum of an IBAN is wrong
        "4111 1111 1111 1112",  # and of a card
        "000-12-3456",  # never given out
        "version 1.2.3.400",
        "it took 12:30:45 on 2026-11-22",
        "std::vector at 127.0.0.1",
        "The meeting is on 3 May 1984",  # nobody was born
        "3 minutes down the road, on page 12",
        "https://example.com/a?b=1",
        "BG 12 34 56 A",  # a prefix that is not used
        "me @ home, 5 > 3",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert found(text) == []


def test_invisible_characters_hide_nothing():
    assert found("ja\u200bne@exam\u00adple.com") == [("ja\u200bne@exam\u00adple.com", "email")]
    assert found("4111\u200b11111111\u206011 11.") == [("4111\u200b11111111\u206011 11", "card")]


def test_names_are_found_by_the_list_in_any_case_and_script():
    finder = build_finder([], names=["Anna Schmidt", "Zoë", "अनिता", "അനിത", "王小明"])
    assert found("ANNA SCHMIDT's and Zoe\u0308s", finder) == [
        ("ANNA SCHMIDT", "name"), ("Zoe\u0308", "name")]  # fmt: skip
    assert found("अनिता ने അനിതയുടെ 私は王小明です", finder) == [
        ("अनिता", "name"), ("അനിത", "name"), ("王小明", "name")]  # fmt: skip


def test_a_name_is_hidden_with_the_marks_on_its_last_letter():
    finder = build_finder([], names=["Jose", "അനിത"])
    assert found("Jose\u0301, അനിതെ", finder) == [("Jose\u0301", "name"), ("അനിതെ", "name")]


def test_a_name_inside_another_word_is_none():
    finder = build_finder([], names=["Ann"])
    assert found("Annual plan of Joann for ann", finder) == [("ann", "name")]


def test_a_name_of_one_letter_is_refused():
    with pytest.raises(ConfigError, match=r"data\.privacy\.names: 'X' is one letter"):
        build_finder([], names=["X"])


def test_the_longer_one_names_what_overlaps_and_nothing_stays_visible():
    finder = build_finder(
        ["email"], extra=lambda text: [(0, 8, "user"), (4, len(text), "rest"), (0, 3, "nick")]
    )
    assert found("jane@example.com here", finder) == [("jane@example.com here", "rest")]


def test_of_equally_long_ones_the_first_counts():
    finder = build_finder(["email"], extra=lambda text: [(0, 16, "login")])
    assert found("jane@example.com", finder) == [("jane@example.com", "email")]


def test_only_the_kinds_that_are_wanted_are_looked_for():
    assert found("jane@example.com 8.8.8.8", build_finder(["ip"])) == [("8.8.8.8", "ip")]


@pytest.mark.parametrize("span", [(5, 2, "x"), (0, 99, "x"), (0, 2, 7), "ab"])
def test_a_finder_that_gives_no_spans_is_told_so(span):
    with pytest.raises(ConfigError, match=r"data\.privacy\.finder gave .* inside the text"):
        build_finder([], extra=lambda text: [span])("some text")
