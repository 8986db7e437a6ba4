"""How many requests of an input are where, and the proof that none is missing."""

from __future__ import annotations

from potstill.teach.index import State
from potstill.teach.outcomes import state_of
from potstill.teach.spending import Spending, waste_of
from potstill.types import Response


class Tally:
    """How many requests are where. Each that was taken up is in one place at any moment."""

    def __init__(self) -> None:
        self.taken = 0
        """All of the following; what was requested besides was not asked yet."""

        self.open = self.answered = self.dead = self.cancelled = 0
        self.blocked = 0
        """Never asked: an earlier turn of the conversation is dead."""

        self.postponed = 0
        """Requested, and left to a batch; not taken up."""

        self.reused = self.cut = 0
        """Of the answered."""

        self.num_prompt_tokens = self.num_new_tokens = 0
        self.num_unread = 0
        """Attempts, in this call, that brought nothing to read and may have been paid for."""

        self.unused = Spending()
        """Of what this call asked for: cut, withheld, empty, failed, cancelled."""

    @property
    def failed(self) -> int:
        """Requests that were given up."""
        return self.dead + self.blocked

    def came(self, response: Response) -> State:
        """An outcome, whether or not another teacher is asked in its place: what it cost."""
        state = state_of(response)
        self.num_unread += response.num_unread
        if waste_of(response):
            self.unused.add(response)
        if state <= State.CUT:
            self.num_prompt_tokens += response.num_prompt_tokens
            self.num_new_tokens += response.num_new_tokens
        return state

    def ended(self, response: Response, *, is_reused: bool = False) -> None:
        """A request was taken up, and this is what came of it."""
        self.reused_as(state_of(response)) if is_reused else self._add(state_of(response))

    def reused_as(self, state: State) -> None:
        """An answer that was there already is taken up."""
        self._add(state)
        self.reused += 1

    def _add(self, state: State) -> None:
        self.taken += 1
        if state <= State.CUT:
            self.answered += 1
            self.cut += state == State.CUT
        elif state == State.CANCELLED:
            self.cancelled += 1
        else:
            self.dead += 1

    def reconcile(self, saved: dict[State, int] | None = None) -> None:
        """Asserts that the counts add up, and are those that the ledger has saved."""
        parts = (self.open, self.answered, self.dead, self.cancelled, self.blocked)
        assert self.taken == sum(parts), vars(self)
        if saved is not None:
            answered = saved.get(State.DONE, 0) + saved.get(State.CUT, 0)
            found = (answered, saved.get(State.DEAD, 0), saved.get(State.CANCELLED, 0))
            assert (self.answered, self.dead, self.cancelled) == found, (vars(self), saved)
