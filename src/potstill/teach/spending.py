"""What answers cost, by what became of them: those that are used, and the waste apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from potstill.teach.index import State
from potstill.teach.outcomes import state_of
from potstill.types import Rejection, Response


@dataclass(slots=True)
class Spending:
    """A sum over answers."""

    num: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    cost: float | None = None
    """None where no price is known."""

    num_unread: int = 0
    """Attempts besides that brought nothing to read, and may have been paid for."""

    def add(self, response: Response) -> None:
        """One outcome more."""
        self.num += 1
        self.num_prompt_tokens += response.num_prompt_tokens
        self.num_new_tokens += response.num_new_tokens
        self.num_unread += response.num_unread
        if response.cost is not None:
            self.cost = (self.cost or 0.0) + response.cost

    @property
    def num_tokens(self) -> int:
        """Of prompts and answers."""
        return self.num_prompt_tokens + self.num_new_tokens

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON; what is nothing is left out."""
        return {name: value for name, value in asdict(self).items() if value}


def told(paid: Spending, unused: Spending) -> dict[str, Any]:
    """What an `Inventory` says of it."""
    return {
        "num_tokens": paid.num_tokens,
        "num_unused_tokens": unused.num_tokens,
        "num_unread": paid.num_unread,
        "cost": paid.cost,
        "unused_cost": unused.cost,
    }


def total(several: Iterable[Spending]) -> Spending:
    """All of them as one."""
    whole = Spending()
    for one in several:
        for name in ("num", "num_prompt_tokens", "num_new_tokens", "num_unread"):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
        if one.cost is not None:
            whole.cost = (whole.cost or 0.0) + one.cost
    return whole


def waste_of(response: Response) -> str:
    """Why nobody can use an answer, in the words of the check `finished`; empty where one can."""
    state = state_of(response)
    if state >= State.DEAD:
        return "cancelled" if state == State.CANCELLED else "error"
    if state == State.CUT:
        return "length"
    if response.finish_reason == "content_filter":
        return "refusal"
    return "" if response.text.strip() else "empty"


class Bill:
    """Sums by what became of the answers: accepted, or the reason why not."""

    ACCEPTED = "accepted"

    def __init__(self) -> None:
        self.by_fate: dict[str, Spending] = {}

    def add(self, fate: str, response: Response) -> None:
        """One answer more."""
        self.by_fate.setdefault(fate, Spending()).add(response)

    def add_sorted(self, responses: Iterable[Response], rejected: Iterable[Rejection]) -> None:
        """The answers to one record; a conversation has one fate in all its turns."""
        reasons = {rejection.sample: rejection.reason for rejection in rejected}
        for response in responses:
            self.add(reasons.get(response.sample, self.ACCEPTED), response)

    @property
    def used(self) -> Spending:
        """What was accepted."""
        return self.by_fate.get(self.ACCEPTED, Spending())

    @property
    def unused(self) -> Spending:
        """The waste."""
        return total(each for fate, each in self.by_fate.items() if fate != self.ACCEPTED)

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON: accepted, unused as a whole and by reason."""
        reasons = {fate: each.facts for fate, each in self.by_fate.items() if fate != self.ACCEPTED}
        return {"accepted": self.used.facts, "unused": self.unused.facts, "by_reason": reasons}


def spending_lines(found: Mapping[str, Any]) -> list[str]:
    """`Bill.facts` for people; none where nothing was paid."""
    used, unused = ({"num": 0, **found.get(name, {})} for name in ("accepted", "unused"))
    tokens = [_num_tokens(used), _num_tokens(unused)]
    num_unread = sum(each.get("num_unread", 0) for each in (used, unused))
    lines = []
    if sum(tokens):
        text = f"Tokens paid: {tokens[0]:,} for {used['num']:,} accepted answers"
        if "cost" in used:
            text += f" (cost {used['cost']:.4g})"
        text += f"; {tokens[1]:,} for {unused['num']:,} that are not used"
        if "cost" in unused:
            text += f" (cost {unused['cost']:.4g})"
        lines.append(f"{text}, {tokens[1] / sum(tokens):.1%} of all.")
    if num_unread:
        attempts = "attempt" if num_unread == 1 else "attempts"
        lines.append(
            f"{num_unread:,} {attempts} brought nothing that could be read, and may have been paid "
            f"for besides: the provider's bill says whether."
        )
    if (elsewhere := found.get("elsewhere", 0.0)) > 0:
        lines.append(
            f"{elsewhere:.4g} more were spent on other answers, which are kept: to write new "
            f"prompts, for auditions, or to prompts and settings of an earlier run."
        )
    return lines


def _num_tokens(facts: Mapping[str, Any]) -> int:
    return facts.get("num_prompt_tokens", 0) + facts.get("num_new_tokens", 0)
