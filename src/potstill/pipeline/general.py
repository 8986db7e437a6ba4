"""Stage general: what the student can still do besides its task, beside the untouched one."""

from __future__ import annotations

from typing import Any

from potstill.examine.general import ask_lm_eval, with_drift
from potstill.models.weights import cached_folder
from potstill.pipeline.context import Context
from potstill.pipeline.measure import Row
from potstill.types import Estimate

ROLES = ("untouched", "distilled")


def general(ctx: Context, rows: list[Row]) -> None:
    """Lets lm-eval ask the student before and after; nothing is done without tasks."""
    settings = ctx.config.evaluate
    chosen = {row.role: row for row in rows if row.role in ROLES}

    def ask(role: str) -> dict[str, Estimate]:
        assert settings.lm_eval is not None
        ctx.tell("general", "progress", f"lm-eval asks {role}", done=0)
        return ask_lm_eval(
            settings.lm_eval,
            cached_folder(chosen[role].ref),
            settings.general_tasks,
            limit=settings.general_limit,
            batch_size=settings.batch_size,
            out=ctx.run.general(role),
            include=settings.general_include,
        )

    def work() -> dict[str, Any]:
        found = {role: ask(role) for role in ROLES if role in chosen}
        if len(found) == len(ROLES):
            found["distilled"] = with_drift(found["distilled"], found["untouched"])
        named = ", ".join(settings.general_tasks)
        dumped = {
            role: {name: one.model_dump(mode="json") for name, one in estimates.items()}
            for role, estimates in found.items()
        }
        return {"general": dumped, "text": f"{named}, by lm-eval"}

    keys = [row.key for row in chosen.values()]
    own = (settings.general_include,) if settings.general_include else ()
    ctx.stage("general", (keys, settings.general_tasks, settings.general_limit, *own), work)
