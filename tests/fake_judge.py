"""Judges that choose as a script says: they see two answers and nothing else."""

from __future__ import annotations

import re

from fake_endpoint import FakeEndpoint, completion

ANSWER = re.compile(r"<answer(?: \d)? [0-9a-f]{8}>\n(.*?)\n</answer", re.S)


def answers_in(body: dict) -> list[str]:
    """The answers that a question shows, in their order."""
    return ANSWER.findall(body["messages"][-1]["content"])


def fake_judge(choose, **settings) -> FakeEndpoint:
    """An endpoint that answers `Verdict: choose(first, second)`, or what a longer text says."""

    def answer(body):
        said = str(choose(*answers_in(body)))
        text = said if len(said) > 3 else f"One of them is clearer.\nVerdict: {said}"
        return completion(text, model="fake-judge")

    fake = FakeEndpoint(answer=answer)
    fake.models = ["fake-judge"]
    return fake


def always_first(first, second):
    """A judge with nothing but a liking for the first place."""
    return 1


def longer(first, second):
    """A judge who takes the longer answer."""
    return 1 if len(first) > len(second) else 2 if len(second) > len(first) else "tie"
