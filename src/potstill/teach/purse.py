"""What the teacher's answers may cost, counting the requests that are still open."""

from __future__ import annotations

import asyncio

from potstill.config import PriceConfig
from potstill.errors import TeacherError
from potstill.types import Record, Response, Sampling

_TEMPLATE_TOKENS = 32
"""Allowance for a chat template's own tokens around one message."""


class Purse:
    """The money of a run: what is spent, and what the open requests may cost at most."""

    def __init__(self, price: PriceConfig | None, limit: float | None, *, spent: float):
        self.price = price
        self.limit = limit
        self.spent_before = spent
        self.spent_now = 0.0
        self.unsure = 0.0
        """At most the cost of attempts that brought nothing to read; counts against the limit."""

        self._reserved = 0.0
        self._num_open = 0
        self._settled = asyncio.Event()

    async def reserve(
        self, prompt: Record, sampling: Sampling, price: PriceConfig | None = None
    ) -> float:
        """Sets aside what the request costs at most; waits for open ones where money is short.

        Args:
            price: Of the one who is asked, where several share the purse.

        Raises:
            TeacherError: If it does not fit under the limit even when nothing is open.
        """
        if self.price is None:
            return 0.0
        most = self.most(prompt, sampling, price)
        while self.limit is not None:
            spent = self.spent_before + self.spent_now + self.unsure
            if spent + self._reserved + most <= self.limit:
                break
            if not self._num_open:
                unread = f", at most {self.unsure:.4f} of it unread," if self.unsure else ""
                raise TeacherError(
                    f"generation.max_cost = {self.limit:g} is reached: {spent:.4f} are spent"
                    f"{unread} and the next answer may cost {most:.4f}. All answers are kept; "
                    f"raise the limit and run the same command to go on"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += most
        self._num_open += 1
        return most

    def set_aside(self, prompt: Record, sampling: Sampling) -> bool:
        """Whether the request fits under the limit with all that was set aside before it.

        What it costs at most is set aside then, for good.
        """
        if self.price is None or self.limit is None:
            return True
        most = self.most(prompt, sampling)
        if self.spent_before + self._reserved + most > self.limit:
            return False
        self._reserved += most
        return True

    def settle(self, reserved: float, response: Response | None) -> None:
        """Books what the request really cost; what it may have cost, where that is unknown."""
        if self.price is None:
            return
        self._reserved -= reserved
        self._num_open -= 1
        if response is not None:
            unknown = 0.0 if response.finish_reason == "error" else reserved
            self.spent_now += unknown if response.cost is None else response.cost
            self.unsure += response.num_unread * reserved
        self._settled.set()

    def most(self, prompt: Record, sampling: Sampling, price: PriceConfig | None = None) -> float:
        """What the request costs at most."""
        price = price or self.price
        assert price is not None, "without a price nothing is known"
        # A token is at least one byte, so bytes bound the tokens of any tokenizer.
        num_tokens = sum(
            len(message.content.encode("utf-8", "replace")) + _TEMPLATE_TOKENS
            for message in prompt.messages
        )
        paid = num_tokens * price.input + sampling.max_new_tokens * price.output
        return paid / 1e6
