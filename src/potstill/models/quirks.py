"""What an endpoint refuses of a request's fields, learned from its refusals."""

from __future__ import annotations

import logging
import re
from typing import Any

log = logging.getLogger(__name__)

_REFUSALS = {
    "max_tokens": re.compile(r"max_completion_tokens"),
    "seed": re.compile(r"\bseed\b"),
    "return_tokens_as_token_ids": re.compile(r"return_tokens_as_token_ids"),
    "stream_options": re.compile(r"stream_options|include_usage"),
    # A temperature out of range is refused too, and that is for the user to mend.
    "temperature": re.compile(r"temperature.*(deprecated|support)", re.DOTALL),
}
"""Field -> what a refusal says that is about it."""


class Quirks:
    """The fields of a request that one endpoint does not take."""

    def __init__(self, *fields: str):
        self._fields = fields
        self._refused: set[str] = set()

    def learns(self, sent: dict[str, Any], text: str) -> bool:
        """Whether the refusal `text` of `sent` is about a field that can be left out.

        What was sent decides, not what is known: of requests in flight together all are refused.
        """
        text = text.lower()
        field = next((f for f in self._fields if f in sent and _REFUSALS[f].search(text)), None)
        if field is None:
            return False
        if field == "temperature" and field not in self._refused:
            log.warning(
                "%s takes no temperature: its own is used, not %g",
                sent.get("model"),
                sent["temperature"],
            )
        self._refused.add(field)
        return True

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without the fields that are refused."""
        for field in self._refused & body.keys():
            value = body.pop(field)
            if field == "max_tokens":
                body["max_completion_tokens"] = value
        return body
