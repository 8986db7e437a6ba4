"""What was said about two answers to one prompt: by a model that judges, or by people.

A ballot is one opinion on one pair in one order. Models see every pair in both orders and people
in one; from there on they are treated alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from potstill.types import Comparison, Estimate, Noun, Sample

Choice = Literal["first", "second", "tie", "both_bad"]
Kind = Literal[
    "win", "loss", "tie", "both_bad", "inconsistent", "unreadable", "same_text", "no_answer"
]
KINDS: tuple[Kind, ...] = (
    "win", "loss", "tie", "both_bad", "inconsistent", "unreadable", "same_text", "no_answer",
)  # fmt: skip
"""How a pair can end, for the first of the two models; the last two without being asked."""

SETTLED = ("same_text", "no_answer")


WIN_RATE = "judge_win_rate"
LC_WIN_RATE = "judge_lc_win_rate"
SCORE = "judge_score"


class Ballot(Noun):
    """One opinion on one pair of answers."""

    record_id: str
    turn: int = 0
    voter: str = ""
    first: Literal["a", "b"]
    """Whose answer stood first (or left)."""

    choice: Choice | None
    """None where the opinion could not be read, or did not come."""

    error: str = ""
    """Why there is none."""


class Pair(NamedTuple):
    """Two models' answers to one turn of one record."""

    a: Sample
    b: Sample

    @property
    def key(self) -> tuple[str, int]:
        """Record and turn."""
        return self.a.record_id, self.a.turn

    def settled(self) -> tuple[float, Kind] | None:
        """What the pair comes to without being asked: equal answers, or one that did not come.

        Returns:
            (a's share of the win, why), or None where somebody has to look.
        """
        texts = self.a.text.strip(), self.b.text.strip()
        if texts[0] == texts[1]:
            return 0.5, "same_text"
        if not all(texts):
            return float(bool(texts[0])), "no_answer"
        return None

    def texts(self, first: Literal["a", "b"]) -> tuple[str, str]:
        """Both answers, the first one first."""
        return (self.a.text, self.b.text) if first == "a" else (self.b.text, self.a.text)

    def digests(self) -> dict[str, Literal["a", "b"]]:
        """Short name of an answer's text -> whose it is; the same in every order of the two."""
        return {digest(self, self.a.text): "a", digest(self, self.b.text): "b"}


class Preference(Noun):
    """How often a's answers are preferred to b's."""

    a: str
    b: str
    by: Literal["judge", "people"]
    voters: tuple[str, ...]
    """Name of the judge, or names of the people."""

    family: str = ""
    """The judge's family of models; empty where it is not known or people voted."""

    win_rate: Estimate
    """Share of the pairs that a wins, ties counted half."""

    lc_win_rate: Estimate
    """The same at equal lengths."""

    comparison: Comparison
    """a's share minus b's, paired, with its test."""

    counts: dict[str, int]
    """How the pairs ended (`KINDS`), counted for each voter."""

    first_place: Estimate
    """Share of all choices that fell on the answer shown first; 0.5 is no liking for a place."""

    characters: dict[str, float]
    """Mean length of an answer: a, b."""

    agreement: dict[str, dict[str, Estimate]] = {}
    """With whom -> agreement and kappa: `known answers` (pairs in which exactly one is right),
    `people`, or two voters."""

    warnings: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What one voter's ballots on one pair come to."""

    score: float
    """a's share of the win, in [0, 1]; 0.5 is a tie."""

    kind: Kind


def pairs_of(
    samples_a: Sequence[Sample], samples_b: Sequence[Sample], num_rows: int | None = None
) -> list[Pair]:
    """The pairs that both models answered, in an order that is as good as random.

    The order depends on record and turn alone, so a smaller number of rows is the beginning of a
    larger one, for every two models.
    """
    others = {(s.record_id, s.turn): s for s in samples_b}
    pairs = [
        Pair(s, others[s.record_id, s.turn]) for s in samples_a if (s.record_id, s.turn) in others
    ]
    pairs.sort(key=lambda pair: _hash("order", *map(str, pair.key)))
    return pairs[:num_rows]


def digest(pair: Pair, text: str) -> str:
    """Short name of an answer, which tells nothing of who gave it."""
    return _hash("answer", *map(str, pair.key), text)[:16]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


def outcome(ballots: Sequence[Ballot]) -> Outcome:
    """What the ballots of one voter on one pair come to.

    A model wins only if every ballot is for it. Ballots that do not agree (mostly: the judge
    prefers a place, not an answer) are a tie, `inconsistent`; one that cannot be read makes a tie
    of the pair too, `unreadable`.
    """
    if not ballots or any(ballot.choice is None for ballot in ballots):
        return Outcome(0.5, "unreadable")
    found = {_of_a(ballot) for ballot in ballots}
    if len(found) > 1:
        both = found <= {"tie", "both_bad"}
        return Outcome(0.5, "tie" if both else "inconsistent")
    kind = found.pop()
    return Outcome({"win": 1.0, "loss": 0.0}.get(kind, 0.5), kind)


def _of_a(ballot: Ballot) -> Kind:
    if ballot.choice in ("tie", "both_bad"):
        return ballot.choice
    return "win" if (ballot.choice == "first") == (ballot.first == "a") else "loss"


def outcomes(
    pairs: Sequence[Pair], ballots: Iterable[Ballot]
) -> dict[str, dict[tuple[str, int], Outcome]]:
    """Voter -> pair -> what it came to.

    Pairs that are settled count for every voter who saw what lies around them: a person who
    stopped half-way is not given all equal answers of the other half.

    Args:
        pairs: In the order of `pairs_of`, which is that of the page too.
    """
    by_voter: dict[str, dict[tuple[str, int], list[Ballot]]] = {}
    for ballot in ballots:
        of_voter = by_voter.setdefault(ballot.voter, {})
        of_voter.setdefault((ballot.record_id, ballot.turn), []).append(ballot)
    return {voter: _of_voter(pairs, given) for voter, given in by_voter.items()}


def _of_voter(
    pairs: Sequence[Pair], given: Mapping[tuple[str, int], Sequence[Ballot]]
) -> dict[tuple[str, int], Outcome]:
    is_open = [pair.settled() is None for pair in pairs]
    seen = [i for i, pair in enumerate(pairs) if is_open[i] and pair.key in given]
    is_all = len(seen) == sum(is_open)
    reached = len(pairs) if is_all else max(seen, default=-1)
    found = {}
    for i, pair in enumerate(pairs):
        settled = pair.settled()
        if settled is None and pair.key in given:
            found[pair.key] = outcome(given[pair.key])
        elif settled is not None and i < reached:
            found[pair.key] = Outcome(*settled)
    return found


def first_place(ballots: Iterable[Ballot]) -> tuple[int, int]:
    """(choices of the first answer, choices of either): half is no preference for a place."""
    chosen = [ballot.choice for ballot in ballots if ballot.choice in ("first", "second")]
    return chosen.count("first"), len(chosen)
