"""A page on which people say which of two answers is better, not knowing whose they are.

The page holds prompts and answers and no name of a model. Which answer stands left is drawn from a
hash of the texts, so neither the page nor a file of votes has anything to look up, and votes are
matched to answers by what was read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.errors import DataError
from potstill.examine.ballots import Ballot, Choice, Pair, digest
from potstill.rundir import content_hash

CHOICES: dict[str, Choice] = {
    "left": "first", "right": "second", "tie": "tie", "both_bad": "both_bad",
}  # fmt: skip


class Vote(BaseModel):
    """One vote of a file; what else stands in it is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    record_id: str
    turn: int = 0
    left: str
    """Digest of the answer that stood left."""

    right: str
    choice: Literal["left", "right", "tie", "both_bad"]


class VoteFile(BaseModel):
    """What the page lets a person save."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    potstill_votes: Literal[1]
    page: str = ""
    voter: str = ""
    votes: tuple[Vote, ...]


def blind_page(pairs: Sequence[Pair]) -> str:
    """One self-contained HTML file on the pairs that are not settled, in their order.

    Raises:
        DataError: If there is nothing to vote on.
    """
    shown = [_shown(pair) for pair in pairs if pair.settled() is None]
    if not shown:
        raise DataError("no two answers differ, so there is nothing to vote on")
    page = content_hash([[one["left"], one["right"]] for one in shown])[:12]
    # "<" would let a text end the script element that it stands in.
    data = json.dumps({"page": page, "pairs": shown}, ensure_ascii=False).replace("<", "\\u003c")
    template = resources.files("potstill.examine").joinpath("blind.html")
    return template.read_text(encoding="utf-8").replace("@DATA@", data)


def _shown(pair: Pair) -> dict[str, Any]:
    sides = {digest(pair, text): text for text in (pair.a.text, pair.b.text)}
    left, right = sorted(sides, key=lambda name: content_hash("side", name))
    return {
        "record_id": pair.a.record_id,
        "turn": pair.a.turn,
        "left": left,
        "right": right,
        "prompt": [message.model_dump(mode="json") for message in pair.a.prompt],
        "texts": [sides[left], sides[right]],
    }


def read_votes(paths: Sequence[Path], pairs: Sequence[Pair]) -> tuple[list[Ballot], int]:
    """Votes as ballots, and how many are on answers that the models do not give (any more).

    Voters of one name in several files are told apart by numbers.

    Raises:
        DataError: If a file cannot be read, or none of its votes is on these answers.
    """
    by_key = {pair.key: pair for pair in pairs}
    ballots: list[Ballot] = []
    num_stale = 0
    taken: set[str] = set()
    for number, path in enumerate(paths, start=1):
        file = _read(path)
        voter = _free_name(file.voter.strip() or f"voter {number}", taken)
        taken.add(voter)
        found = [
            _ballot(vote, voter, by_key.get((vote.record_id, vote.turn))) for vote in file.votes
        ]
        fitting = [ballot for ballot in found if ballot is not None]
        if not fitting:
            raise DataError(
                f"{path}: none of its {len(found):,} votes is on these two models' answers; was "
                f"the page made of other models, or of another test set?"
            )
        ballots += fitting
        num_stale += len(found) - len(fitting)
    return ballots, num_stale


def _read(path: Path) -> VoteFile:
    try:
        return VoteFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is not a file of votes: {where}: {first['msg']}; it is what the page of "
            f"`potstill compare A B --blind` saves"
        ) from None


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def _ballot(vote: Vote, voter: str, pair: Pair | None) -> Ballot | None:
    sides = pair.digests() if pair is not None else {}
    if {vote.left, vote.right} != set(sides):
        return None
    return Ballot(
        record_id=vote.record_id,
        turn=vote.turn,
        voter=voter,
        first=sides[vote.left],
        choice=CHOICES[vote.choice],
    )
