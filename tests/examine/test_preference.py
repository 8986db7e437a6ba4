"""Ballots become a win rate that a biased judge cannot bend, with its doubt and its warnings."""

import numpy as np
import pytest
from examine.fake_models import sample
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from potstill.errors import DataError
from potstill.examine.ballots import Ballot, Pair, outcome, outcomes, pairs_of
from potstill.examine.kappa import Kappa, agreements
from potstill.examine.length_control import INVERSE_PENALTY, _at_equal_length, length_controlled
from potstill.examine.preference import preference, with_people


def texts(n, seed=0, *, mean=(0, 0)):
    """Answers of two models, of lengths that scatter around 200 characters."""
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for i in range(n):
        one, other = (np.clip(rng.normal(200 + m, 50), 20, 400).astype(int) for m in mean)
        ours.append(sample(i, text="a" * one + f"{i:04}"))
        theirs.append(sample(i, text="b" * other + f"{i:04}"))
    return pairs_of(ours, theirs)


def judged(pairs, choose, voter="judge"):
    """Ballots in both orders of a judge who sees (first, second) and says 1, 2 or tie."""
    words = {1: "first", 2: "second", "tie": "tie", "bad": "both_bad", None: None}
    return [
        Ballot(record_id=p.a.record_id, turn=p.a.turn, voter=voter, first=first,
               choice=words[choose(*p.texts(first))])
        for p in pairs
        if p.settled() is None
        for first in ("a", "b")
    ]  # fmt: skip


def found(pairs, ballots, **more):
    more = {"by": "judge", "signature": "s", "seed": 0, **more}
    return preference("ours", "theirs", pairs, ballots, **more)


def longer(first, second):
    return 1 if len(first) > len(second) else 2 if len(first) < len(second) else "tie"


def test_a_judge_who_takes_the_first_place_has_no_preference():
    pairs = texts(200, mean=(30, 0))
    result = found(pairs, judged(pairs, lambda *_: 1))
    assert result.win_rate.value == 0.5
    assert result.win_rate.low < 0.46 and result.win_rate.high > 0.54
    assert result.comparison.verdict == "inconclusive"
    assert result.counts["inconsistent"] == 200
    assert result.first_place.value == 1.0
    assert any("depends on which answer stands first" in w for w in result.warnings)
    assert any("100 % of the choices fell on the answer that stood first" in w
               for w in result.warnings)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_judge_who_loves_length_shows_nothing_at_equal_lengths(seed):
    pairs = texts(300, seed, mean=(40, 0))
    result = found(pairs, judged(pairs, longer))
    assert result.win_rate.value > 0.65
    assert result.comparison.verdict == "better"
    assert abs(result.lc_win_rate.value - 0.5) < 0.1
    assert result.lc_win_rate.low < 0.5 < result.lc_win_rate.high
    assert any("length weighs in" in warning for warning in result.warnings)


def test_a_preference_for_the_answer_itself_survives_the_control_for_length():
    pairs = texts(300, mean=(40, 0))
    rng = np.random.default_rng(1)
    better = {p.key: rng.random() < 0.8 for p in pairs}
    ballots = [
        b.model_copy(update={"choice": "first" if (b.first == "a") == better[b.record_id, 0]
                             else "second"})
        for b in judged(pairs, lambda *_: 1)
    ]  # fmt: skip
    result = found(pairs, ballots)
    assert result.win_rate.value == pytest.approx(np.mean(list(better.values())))
    assert abs(result.lc_win_rate.value - 0.8) < 0.08
    assert result.comparison.verdict == "better" and result.comparison.p < 1e-6
    assert result.comparison.test == "mcnemar-exact"


def test_a_judge_who_throws_dice_is_inconclusive():
    pairs = texts(150)
    rng = np.random.default_rng(0)
    result = found(pairs, judged(pairs, lambda *_: rng.integers(1, 3)))
    assert result.comparison.verdict == "inconclusive"
    assert result.win_rate.low < 0.5 < result.win_rate.high
    assert 0.3 < result.counts["inconsistent"] / 150 < 0.7


def test_the_same_ballots_the_other_way_round_give_the_mirror_image():
    pairs = texts(60)
    result = found(pairs, judged(pairs, longer))
    turned = [Pair(p.b, p.a) for p in pairs]
    other = found(turned, judged(turned, longer))
    assert result.win_rate.value == pytest.approx(1 - other.win_rate.value)
    assert result.lc_win_rate.value == pytest.approx(1 - other.lc_win_rate.value)


def test_unreadable_verdicts_are_ties_that_are_counted():
    pairs = texts(40)
    result = found(pairs, judged(pairs, lambda first, _: None if len(first) % 4 == 0 else 2))
    assert result.counts["unreadable"] > 5
    assert result.win_rate.n == 40
    assert result.win_rate.n_error == result.counts["unreadable"]
    assert any("no verdict could be read" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("choices", "kind", "score"),
    [
        (["first", "second"], "win", 1.0),
        (["second", "first"], "loss", 0.0),
        (["first", "first"], "inconsistent", 0.5),
        (["first", "tie"], "inconsistent", 0.5),
        (["tie", "tie"], "tie", 0.5),
        (["tie", "both_bad"], "tie", 0.5),
        (["both_bad", "both_bad"], "both_bad", 0.5),
        (["first", None], "unreadable", 0.5),
        (["first"], "win", 1.0),
    ],
)
def test_a_model_wins_only_where_all_ballots_are_for_it(choices, kind, score):
    ballots = [
        Ballot(record_id="r", first=first, choice=choice)
        for first, choice in zip("ab", choices, strict=False)
    ]
    assert outcome(ballots) == (score, kind)


def test_answers_of_one_group_are_drawn_together():
    def talk(letter):
        return [
            sample(f"{i}-{t}", text=letter * (20 + 7 * i + t), group=f"g{i}")
            for i in range(60)
            for t in range(5)
        ]

    pairs = pairs_of(talk("a"), talk("b"))

    def choice(ballot):
        is_won = int(ballot.record_id.partition("-")[0]) % 2 == 0
        return {"choice": "first" if (ballot.first == "a") == is_won else "second"}

    ballots = [b.model_copy(update=choice(b)) for b in judged(pairs, lambda *_: 1)]
    rate = found(pairs, ballots).win_rate
    assert "groups" in rate.method and rate.n == 300
    assert rate.high - rate.low > 0.22  # 60 independent conversations, not 300 answers


def test_lengths_that_always_differ_one_way_are_not_controlled_for():
    pairs = texts(100, mean=(150, 0))
    result = found(pairs, judged(pairs, longer))
    assert result.lc_win_rate.value is None
    assert "longer one in" in result.lc_win_rate.note
    assert any("not controlled for length" in warning for warning in result.warnings)


@pytest.mark.parametrize("scores", ["noise", "ties", "separated"])
def test_the_fit_is_that_of_scikit_learn(scores):
    rng = np.random.default_rng(2)
    x = np.tanh(rng.normal(0.2, 1, 120))
    s = {"noise": (rng.random(120) < 0.6) * 1.0, "ties": rng.integers(0, 3, 120) / 2,
         "separated": (x > 0) * 1.0}[scores]  # fmt: skip
    weights = rng.multinomial(120, np.full(120, 1 / 120), size=3).astype(float)
    for row, ours in zip(weights, _at_equal_length(x, s, weights), strict=True):
        shares = np.concatenate([row * s, row * (1 - s)])
        used = shares > 0
        wins = np.repeat([1, 0], 120)[used]
        model = LogisticRegression(C=INVERSE_PENALTY, solver="newton-cholesky", tol=1e-10)
        model.fit(np.concatenate([x, x])[used, None], wins, sample_weight=shares[used])
        assert ours == pytest.approx(1 / (1 + np.exp(-model.intercept_[0])), abs=1e-4)


def test_a_model_that_wins_all_is_not_given_a_certain_interval():
    lengths = np.arange(-20, 20) + 0.5
    rate = length_controlled(np.ones(40), lengths, np.arange(40), seed=0)
    assert rate.value == 1.0 and rate.low < 0.95


def test_kappa_is_that_of_scikit_learn_and_full_for_equal_opinions():
    rng = np.random.default_rng(0)
    one, other = rng.choice(["a", "tie", "b"], (2, 300))
    other = np.where(rng.random(300) < 0.5, one, other)
    both = [sample(i, prediction=str(p), target=str(t)) for i, (p, t) in
            enumerate(zip(one, other, strict=True))]  # fmt: skip
    result = agreements(both, seed=0)
    turned = {"a": "b", "b": "a", "tie": "tie"}
    twice = [np.append(said, [turned[word] for word in said]) for said in (one, other)]
    assert result["kappa"].value == pytest.approx(cohen_kappa_score(*twice))
    assert result["kappa"].low < result["kappa"].value < result["kappa"].high
    assert result["agreement"].value == pytest.approx(np.mean(one == other))
    same = [s.model_copy(update={"target": s.prediction}) for s in both]
    assert Kappa().value(Kappa().rows(same).sum(axis=0)) == pytest.approx(1.0)
    alike = [s.model_copy(update={"target": "a", "prediction": "a"}) for s in both]
    assert agreements(alike, seed=0)["kappa"].value == pytest.approx(1.0)
    alike = [s.model_copy(update={"target": "tie", "prediction": "tie"}) for s in both]
    assert "chance agrees as well" in agreements(alike, seed=0)["kappa"].note


def marked(pairs, seed=0):
    """The same pairs, in half of which exactly one answer is right."""
    rng = np.random.default_rng(seed)
    return [
        Pair(p.a.model_copy(update={"correct": float(rng.integers(0, 2))}),
             p.b.model_copy(update={"correct": float(rng.integers(0, 2))}))
        for p in pairs
    ]  # fmt: skip


def test_a_judge_is_compared_with_the_known_answers():
    pairs = marked(texts(200))
    right = {p.a.text: p.a.correct for p in pairs} | {p.b.text: p.b.correct for p in pairs}
    knows = found(pairs, judged(pairs, lambda first, second: 1 if right[first] > right[second]
                                else 2 if right[second] > right[first] else "tie"))  # fmt: skip
    known = knows.agreement["known answers"]
    num_decided = sum(p.a.correct != p.b.correct for p in pairs)
    assert known["agreement"].n == num_decided
    assert known["agreement"].value == known["kappa"].value == 1.0
    assert not any("known answers" in warning for warning in knows.warnings)
    dice = np.random.default_rng(3)
    guesses = found(pairs, judged(pairs, lambda *_: dice.integers(1, 3)))
    assert any("not shown to agree with the known answers" in w for w in guesses.warnings)


def test_votes_of_people_are_counted_by_the_same_rules_as_a_judges():
    pairs = texts(120, mean=(20, 0))
    ballots = judged(pairs, longer)
    votes = [b for i, b in enumerate(ballots) if i % 2 == 0]
    judge = found(pairs, ballots)
    people = found(pairs, votes, by="people")
    same = (judge.win_rate.value, judge.win_rate.low, judge.lc_win_rate, judge.comparison.p)
    assert same == (
        people.win_rate.value, people.win_rate.low, people.lc_win_rate, people.comparison.p
    )  # fmt: skip
    both = with_people(judge, pairs, ballots, votes, seed=0)
    assert both.agreement["people"]["agreement"].value == 1.0


def test_several_voters_count_with_their_mean_and_are_compared_with_each_other():
    pairs = texts(50)
    one = [b for b in judged(pairs, longer, "ann") if b.first == "a"]
    other = [b for b in judged(pairs, lambda *_: "bad", "ben") if b.first == "a"]
    result = found(pairs, [*one, *other], by="people")
    alone = found(pairs, one, by="people")
    assert result.voters == ("ann", "ben")
    assert result.win_rate.value == pytest.approx((alone.win_rate.value + 0.5) / 2)
    assert result.counts["both_bad"] == 50
    assert result.agreement["ann and ben"]["agreement"].value < 0.1


def test_who_stopped_half_way_is_not_given_the_equal_answers_of_the_other_half():
    ours = [sample(i, text="same" if i % 2 else f"a{i}") for i in range(40)]
    theirs = [sample(i, text="same" if i % 2 else f"b{i}") for i in range(40)]
    pairs = pairs_of(ours, theirs)
    ballots = [b for b in judged(pairs, lambda *_: 1, "ann") if b.first == "a"]
    whole = outcomes(pairs, ballots)["ann"]
    assert len(whole) == 40
    half = outcomes(pairs, ballots[:10])["ann"]
    last = max(i for i, p in enumerate(pairs) if p.key in half)
    assert sum(one.kind == "win" for one in half.values()) == 10
    assert len(half) == last + 1 < 40


def test_no_votes_at_all_are_refused():
    with pytest.raises(DataError, match="nobody voted on any of the 5 pairs of ours and theirs"):
        found(texts(5), [])


def test_answers_that_did_not_come_are_lost_but_are_no_effect_of_length():
    rng = np.random.default_rng(0)
    ours = [sample(i, text="" if i < 60 else "a" * int(rng.integers(90, 210))) for i in range(120)]
    theirs = [sample(i, text="b" * int(rng.integers(90, 210))) for i in range(120)]
    pairs = pairs_of(ours, theirs)
    result = found(pairs, judged(pairs, lambda *_: "tie"))
    assert result.counts["no_answer"] == 60
    assert result.win_rate.value == 0.25
    assert abs(result.lc_win_rate.value - 0.25) < 0.02
