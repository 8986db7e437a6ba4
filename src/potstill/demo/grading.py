"""How tickets are checked and scored: by their fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.demo.tickets import FIELDS, INTENTS, URGENCIES, parse_ticket
from potstill.types import Record, Rejection, Response, Sample

EXPLAINED = f"""\
You turn a customer's message into one line:
INTENT | ITEM | TIME | URGENCY
INTENT is one of: {", ".join(INTENTS)}. ITEM is the product in the customer's own words. TIME is
how long ago, as a number and a unit (9 days, 1 week, 2 months; a fortnight is 2 weeks). URGENCY is
one of: {", ".join(URGENCIES)}, by the tone. Answer with that line and nothing else. Example:
Message: hi, the jade desk fan I ordered a fortnight ago is still not here, please hurry
track | jade desk fan | 2 weeks | urgent"""
"""What a teacher is told that was not tuned here."""


def is_ticket(record: Record, response: Response) -> Rejection | None:
    """A check: the teacher's answer reads as a ticket, and its item stands in the message."""
    fields = parse_ticket(response.text)
    if fields is None:
        reason, detail = "unparsable", f"not a ticket: {response.text[:80]!r}"
    elif fields["item"].lower() not in record.messages[-1].content.lower():
        reason, detail = "invented", f"the message has no {fields['item']!r}"
    else:
        return None
    return Rejection(
        record_id=response.record_id,
        turn=response.turn,
        sample=response.sample,
        check="ticket",
        reason=reason,
        detail=detail,
    )


class FieldAccuracy:
    """Share of a ticket's four fields that are right, the mean over tickets, in [0, 1]."""

    name = "field_accuracy"
    unit = ""
    higher_is_better = True
    signature = "share of intent, item, time and urgency equal to the reference's"
    is_mean = True

    def rows(self, samples: Sequence[Sample]) -> np.ndarray:
        """[n, 2]: share of right fields, and 1."""
        return np.array([[self._share(sample), 1.0] for sample in samples], dtype=np.float64)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Mean share."""
        return sums[..., 0] / sums[..., 1]

    @staticmethod
    def _share(sample: Sample) -> float:
        expected = parse_ticket(sample.references[0]) if sample.references else None
        found = parse_ticket(sample.text) or {}
        if expected is None:
            return 0.0
        return sum(found.get(field) == expected[field] for field in FIELDS) / len(FIELDS)
