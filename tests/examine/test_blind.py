"""The blind page shows two answers and no model; its votes find their way back."""

import json
import re

import pytest
from examine.fake_models import sample

from potstill.errors import DataError
from potstill.examine.ballots import Pair, pairs_of
from potstill.examine.blind import blind_page, read_votes

NASTY = '</script><script>alert("x")</script> & <b>bold</b>'


def both(n=12, *, a="an answer", b="another answer"):
    ours = [sample(f"r{i}", text=f"{a} {i}") for i in range(n)]
    theirs = [sample(f"r{i}", text=f"{b} {i}") for i in range(n)]
    return pairs_of(ours, theirs)


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def voted(page, choose, voter="ann"):
    """The file that a person saves who chooses by the two texts."""
    shown = data_of(page)
    votes = [
        {"record_id": p["record_id"], "turn": p["turn"], "left": p["left"], "right": p["right"],
         "choice": choose(*p["texts"]), "seconds": 1.5}
        for p in shown["pairs"]
    ]  # fmt: skip
    return {"potstill_votes": 1, "page": shown["page"], "voter": voter, "votes": votes}


def saved(tmp_path, tree, name="votes.json"):
    file = tmp_path / name
    file.write_text(json.dumps(tree))
    return file


def test_the_page_shows_both_answers_in_an_order_that_tells_nothing():
    pairs = both(60)
    shown = data_of(blind_page(pairs))["pairs"]
    assert len(shown) == 60
    num_left = sum(p["texts"][0].startswith("an answer") for p in shown)
    assert 15 < num_left < 45
    turned = [Pair(p.b, p.a) for p in pairs]
    assert blind_page(turned) == blind_page(pairs)


def test_votes_count_for_the_model_whose_answer_was_chosen(tmp_path):
    pairs = both()
    tree = voted(blind_page(pairs), lambda left, _: "left" if left.startswith("an ") else "right")
    ballots, num_stale = read_votes([saved(tmp_path, tree)], pairs)
    assert num_stale == 0 and len(ballots) == 12
    assert all((b.choice == "first") == (b.first == "a") for b in ballots)
    turned = [Pair(p.b, p.a) for p in pairs]
    ballots, _ = read_votes([saved(tmp_path, tree)], turned)
    assert all((b.choice == "first") == (b.first == "b") for b in ballots)


def test_nothing_that_a_model_wrote_becomes_part_of_the_page():
    page = blind_page(both(3, a=NASTY))
    assert "alert" in page and "<script>alert" not in page and "<b>" not in page
    assert {text.startswith(NASTY) for p in data_of(page)["pairs"] for text in p["texts"]} == {
        True, False,
    }  # fmt: skip
    assert not re.search(r"(src|href)=", page) and "://" not in page.split("<script")[0]


def test_equal_answers_are_not_shown_and_nothing_to_vote_on_is_refused():
    pairs = both(4)
    same = Pair(sample("s", text="same"), sample("s", text="same"))
    assert len(data_of(blind_page([*pairs, same]))["pairs"]) == 4
    with pytest.raises(DataError, match="no two answers differ"):
        blind_page([same])


def test_voters_of_one_name_are_told_apart(tmp_path):
    pairs = both()
    page = blind_page(pairs)
    files = [
        saved(tmp_path, voted(page, lambda *_: "tie", name), f"{i}.json")
        for i, name in enumerate(["ann", "ann", " "])
    ]
    ballots, _ = read_votes(files, pairs)
    assert list(dict.fromkeys(b.voter for b in ballots)) == ["ann", "ann 2", "voter 3"]


def test_votes_on_answers_that_have_changed_are_counted_and_left_out(tmp_path):
    pairs = both()
    tree = voted(blind_page(pairs), lambda *_: "both_bad")
    pairs[0] = Pair(pairs[0].a.model_copy(update={"text": "new"}), pairs[0].b)
    ballots, num_stale = read_votes([saved(tmp_path, tree)], pairs)
    assert (len(ballots), num_stale) == (11, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a file of votes"),
        ("not json", "is not a file of votes"),
        ('{"potstill_votes": 2, "votes": []}', "potstill_votes"),
        ('{"potstill_votes": 1, "votes": []}', "none of its 0 votes"),
        (None, "no such file"),
    ],
)
def test_a_file_that_holds_no_votes_on_these_models_is_refused(tmp_path, text, message):
    file = tmp_path / "votes.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_votes([file], both())
    other = saved(tmp_path, voted(blind_page(both(b="of a third model")), lambda *_: "tie"))
    with pytest.raises(DataError, match="was the page made of other models"):
        read_votes([other], both())
