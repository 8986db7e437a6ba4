import pytest

from potstill.data.split import drop_duplicates, drop_leaks, find_leaks, split_records
from potstill.errors import DataError
from potstill.types import Message, Record


def record(id_, prompt=None, **metadata):
    content = prompt if prompt is not None else f"prompt number {id_}"
    return Record(id=str(id_), messages=(Message(role="user", content=content),), metadata=metadata)


def ids(records):
    return {r.id for r in records}


def test_a_split_loses_and_shares_nothing():
    records = [record(i) for i in range(500)]
    train, validation, test, rejected = split_records(records, validation=0.1, test=0.2)
    assert ids(train) | ids(validation) | ids(test) == ids(records)
    assert len(train) + len(validation) + len(test) == 500
    assert 30 <= len(validation) <= 70 and 75 <= len(test) <= 125
    assert rejected == []


def test_more_records_move_nobody():
    some = split_records([record(i) for i in range(100)], validation=0.2, test=0.2)
    more = split_records([record(i) for i in range(300)], validation=0.2, test=0.2)
    assert ids(some.train) <= ids(more.train)
    assert ids(some.test) <= ids(more.test)
    other = split_records([record(i) for i in range(100)], validation=0.2, test=0.2, seed=1)
    assert ids(other.test) != ids(some.test)


def test_another_order_is_the_same_split():
    records = [record(i) for i in range(50)]
    forwards = split_records(records, validation=0.2)
    backwards = split_records(records[::-1], validation=0.2)
    assert ids(forwards.validation) == ids(backwards.validation)


def test_every_share_above_nothing_gets_a_record_or_an_error():
    train, validation, test, _ = split_records(
        [record(i) for i in range(3)], validation=0.01, test=0.01
    )
    assert len(train) == len(validation) == len(test) == 1
    with pytest.raises(DataError, match="cannot be divided into 3 parts"):
        split_records([record(0), record(1)], validation=0.1, test=0.1)
    with pytest.raises(DataError, match="below 1"):
        split_records([record(i) for i in range(9)], validation=0.5, test=0.5)


def test_no_share_takes_nobody():
    assert split_records([record(0)], validation=0.0).train == [record(0)]


def test_a_group_stays_on_one_side():
    records = [record(i, customer=f"c{i % 40}") for i in range(400)]
    splits = split_records(records, validation=0.2, test=0.2, split_by="group", group_by="customer")
    sides = [{r.metadata["customer"] for r in side} for side in splits[:3]]
    assert all(sides)
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_a_missing_group_names_the_record_and_its_fields():
    records = [record("a", customer=1, city="x"), record("b", city="x")]
    with pytest.raises(DataError, match=r"record b has no metadata field 'customer'.*city"):
        split_records(records, validation=0.5, split_by="group", group_by="customer")


def test_the_latest_records_are_the_test():
    records = [record(i, at=f"2026-01-{i + 1:02d}T00:00:00Z") for i in range(20)]
    splits = split_records(records[::-1], validation=0.1, test=0.1, split_by="time", group_by="at")
    assert [r.id for r in splits.test] == ["18", "19"]
    assert [r.id for r in splits.validation] == ["16", "17"]


def test_equal_times_stay_together_and_bad_times_are_named():
    records = [record(i, at=min(i, 8)) for i in range(10)]
    splits = split_records(records, validation=0, test=0.1, split_by="time", group_by="at")
    assert ids(splits.test) == {"8", "9"}
    with pytest.raises(DataError, match="neither a number nor an ISO 8601"):
        split_records([record(0, at="soon"), record(1, at=3)], validation=0.5,
                      split_by="time", group_by="at")  # fmt: skip


def test_the_first_of_equal_prompts_is_kept_and_the_others_are_reported():
    records = [record(1, "same"), record(2, "same"), record(3, "other")]
    kept, rejected = drop_duplicates(records)
    assert ids(kept) == {"1", "3"}
    assert [(r.record_id, r.check, r.reason) for r in rejected] == [("2", "split", "duplicate")]
    assert split_records(records, validation=0).rejected == rejected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the CAPITAL of France?", "what is the capital of  france?"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("ഓർഡർ എവിടെ", "ഓര്\u200dഡര്\u200d എവിടെ"),
        ("क़लम कहाँ है", "क\u093cलम कहाँ है"),
    ],
)
def test_a_training_prompt_that_stands_in_the_test_is_a_leak(one, other):
    (leak,) = find_leaks([record("a", one)], [record("b", other)])
    assert (leak.record_id, leak.reason) == ("a", "leak")
    assert "b" in leak.detail


NEAR = {
    "English": "My parcel should have arrived on Monday but the tracking page says it is still in "
    "the depot of the neighbouring town and nobody answers the telephone there",
    "Hindi": "मेरा पार्सल सोमवार को आना चाहिए था लेकिन ट्रैकिंग पेज कहता है कि वह "
    "अभी भी पड़ोसी शहर के डिपो में है और वहाँ कोई फ़ोन नहीं उठाता है",
    "Malayalam": "എന്റെ പാഴ്സൽ തിങ്കളാഴ്ച എത്തേണ്ടതായിരുന്നു പക്ഷേ അത് ഇപ്പോഴും അടുത്ത പട്ടണത്തിലെ ഡിപ്പോയിലാണെന്ന് "
    "ട്രാക്കിംഗ് പേജ് പറയുന്നു അവിടെ ആരും ഫോൺ എടുക്കുന്നില്ല",
    "Chinese": "我的包裹本应在星期一到达但是跟踪页面显示它仍然在邻近城市的"
    "仓库里而且那里没有人接听电话我应该怎么办才好呢请告诉我",
}


@pytest.mark.parametrize("language", NEAR)
def test_near_duplicates_are_found_in_any_script(language):
    text = NEAR[language]
    half = len(text) // 2
    others = [record(name, NEAR[name]) for name in NEAR if name != language]
    test = [*others, record("twin", text[:half] + text[half + 1 :] + "?!")]
    (leak,) = find_leaks([record("a", text)], test)
    assert leak.reason == "near_duplicate"
    assert "twin" in leak.detail
    assert find_leaks([record("a", text)], others) == []


@pytest.mark.parametrize("num", [8, 200])
def test_a_common_instruction_makes_no_near_duplicates(num):
    instruction = (
        "Which intent does the bank customer's message have? Answer with one of: card_arrival, "
        "card_linking, exchange_rate, cancel_transfer, lost_card. Message: "
    )
    words = ["river", "candle", "orchard", "marble", "thunder", "violin", "harbour", "saddle"]
    rows = [
        record(
            i, f"{instruction}{words[i % 8]} {words[i // 8 % 8]} {words[i // 64 % 8]} {i * 7919}"
        )
        for i in range(num)
    ]
    assert find_leaks(rows[: num // 2], rows[num // 2 :]) == []


def test_a_near_duplicate_under_a_common_instruction_is_found():
    rows = [
        record(i, f"Please classify this text: {i * 104729} {chr(97 + i % 26) * 9} {i}")
        for i in range(60)
    ]
    unlike = NEAR["English"]
    train = [*rows[:30], record("t", f"Please classify this text: {unlike}")]
    test = [*rows[30:], record("s", f"Please classify this text: {unlike}, or does it")]
    assert [(r.record_id, r.reason) for r in find_leaks(train, test)] == [("t", "near_duplicate")]


def test_a_group_on_both_sides_is_a_leak():
    train, test = [record("a", customer=1), record("b", customer=2)], [record("c", customer=1)]
    leaks = find_leaks(train, test, group_by="customer")
    assert [(r.record_id, r.reason) for r in leaks] == [("a", "leak")]
    assert ids(drop_leaks(train, leaks)) == {"b"}
