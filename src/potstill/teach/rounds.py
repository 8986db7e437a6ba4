"""Asks through a provider's batches: rounds of waiting, keeping what came, asking for the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from potstill.config import GenerationConfig, PriceConfig
from potstill.errors import TeacherError
from potstill.models.batches import Batches
from potstill.teach.asker import Asker
from potstill.teach.ledger import Ledger
from potstill.teach.purse import Purse

Ask = Callable[[GenerationConfig, Literal["pilot", "rest"]], Awaitable[Asker]]
"""Goes through the input once with these settings: its first prompts alone, or all of it."""


async def ask_in_batches(
    batches: Batches,
    ledger: Ledger,
    *,
    part: str,
    config: GenerationConfig,
    price: PriceConfig | None,
    ask: Ask,
) -> list[Asker]:
    """Asks until every request has an outcome; a conversation takes a round for each turn.

    The pilot is asked at once, at the full price. A row that failed is an outcome; one that a
    batch ended without is asked for again, as long as every round brings something.

    Returns:
        Who went through the input, in order; the last one has counted all of it.

    Raises:
        TeacherError: As `generate`. Batches that are under way go on.
    """
    # What a round brought is kept as a whole before anything is refused.
    lenient = config.model_copy(
        update={"pilot": 0, "min_success_ratio": 0.0, "max_failures": None, "max_cost": None}
    )
    batches.open(ledger.folder, part)
    try:
        askers = [await ask(config, "pilot")]
        while True:
            await batches.gather(askers[-1].tell_waiting)
            batches.collect()
            asker = await ask(lenient, "rest")
            askers.append(asker)
            batches.settle()
            asker.config = config
            asker.refuse_too_few()
            if not batches.num_waiting:
                return askers
            purse = Purse(_in_batch(price), config.max_cost, spent=ledger.cost)
            await batches.post(purse.set_aside)
            await ask(lenient, "rest")
            if not await batches.submit():
                raise TeacherError(
                    f"generation.max_cost = {config.max_cost:g} is reached: {ledger.cost:.4f} are "
                    f"spent, and no batch of the {batches.num_waiting:,} requests that are left "
                    f"fits. All answers are kept; raise the limit and run the same command to go on"
                )
    finally:
        batches.close()


def _in_batch(price: PriceConfig | None) -> PriceConfig | None:
    if price is None:
        return None
    return price.model_copy(
        update={"input": price.input * price.batch, "output": price.output * price.batch}
    )
