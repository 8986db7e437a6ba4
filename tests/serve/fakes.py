"""Models that say what they are told to, as sure of it as they are told to be."""

from __future__ import annotations

import numpy as np

from potstill.models.logprobs import LogprobArrays, pack_logprobs
from potstill.types import Response


class Sure:
    """Answers each prompt with its answer, at one probability for each of its four tokens."""

    max_in_flight = 4

    def __init__(self, name="sure", *, answers=None, probability=0.9, fails=None):
        self.name, self.answers, self.probability, self.fails = name, answers, probability, fails
        self.asked = []
        self.is_closed = False

    async def respond(self, record, sampling, *, turn=0, sample=0):
        if self.fails is not None:
            raise self.fails
        question = record.messages[-1].content
        self.asked.append(question)
        text = (self.answers or {}).get(question, f"{self.name} says {question}")
        probs_NK = np.full((4, 2), [self.probability, 0.01])
        chosen_N, ids_NK = np.zeros(4, int), np.tile([0, 1], (4, 1))
        arrays = LogprobArrays(chosen_N, ids_NK, np.log(probs_NK), np.zeros(4))
        return Response(
            record_id=record.id,
            text=text,
            finish_reason="stop",
            num_prompt_tokens=3,
            num_new_tokens=4,
            model=self.name,
            logprobs=pack_logprobs(arrays),
        )

    async def close(self):
        self.is_closed = True
