"""Conversations: every assistant turn is a prompt of its own, on the history as it was."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from potstill.tasks.facts import agrees, facts_by_turn, facts_of
from potstill.tasks.reading import visible
from potstill.types import Message, Record


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Right when the turn conveys the reference's hard facts, or without any its wording."""

    name: str = "conversation"
    default_metrics: tuple[str, ...] = ("accuracy", "bleu", "rouge_l")
    closed: bool = False

    def turns(self, record: Record) -> tuple[Record, ...]:
        """One record for each assistant turn, the last one being the record itself.

        A row of user turns only gives one prompt for each of them, without the answers that
        nobody has given yet; whoever asks a model puts its own answers in between. Facts listed
        for the whole conversation are given to the turns whose reference says them.
        """
        messages = record.messages
        no_answers = all(message.role != "assistant" for message in messages)
        prompts = []
        for index in range(1, len(messages)):
            asked = messages[index - 1].role == "user"
            if asked and messages[index].role == "assistant":
                prompts.append(
                    record.model_copy(
                        update={
                            "messages": messages[:index],
                            "reference": messages[index].content,
                        }
                    )
                )
            elif asked and no_answers and messages[index].role == "user":
                prompts.append(
                    record.model_copy(update={"messages": messages[:index], "reference": None})
                )
        return _with_facts_by_turn((*prompts, record))

    def parse(self, text: str, record: Record) -> str | None:
        """The answer itself, without thoughts in front of it."""
        return visible(text) or None

    def correct(self, prediction: str | None, record: Record) -> float | None:
        """1.0 where the hard facts are conveyed, or without any ROUGE-L F1 is at least 0.5.

        The facts are `metadata.facts`, else slot values, else those found in the reference.
        """
        if record.reference is None:
            return None
        if prediction is None:
            return 0.0
        # A greeting before any user turn is not asked for, and so no turn has its number.
        pairs = itertools.pairwise(message.role for message in record.messages)
        turn = sum(pair == ("user", "assistant") for pair in pairs)
        facts = facts_of(record.metadata, turn, record.reference)
        return float(agrees(prediction, [record.reference], facts))


def with_answers(prompts: Sequence[Record], turn: int, said: Sequence[str]) -> Record:
    """The prompt of a turn in which the answers to earlier turns are those that were said.

    Args:
        prompts: A task's `turns` of one record.
        said: One answer for each turn before this one.
    """
    messages = list(prompts[turn].messages)
    for earlier in reversed(range(turn)):
        at = len(prompts[earlier].messages)
        num_known = int(messages[at].role == "assistant")
        messages[at : at + num_known] = [Message(role="assistant", content=said[earlier])]
    return prompts[turn].model_copy(update={"messages": tuple(messages)})


def _with_facts_by_turn(turns: tuple[Record, ...]) -> tuple[Record, ...]:
    facts = facts_by_turn(turns[-1].metadata.get("facts"), [t.reference or "" for t in turns])
    if facts is None or len(turns) < 2:
        return turns
    metadata = {**turns[-1].metadata, "facts": facts}
    return tuple(turn.model_copy(update={"metadata": metadata}) for turn in turns)


conversation = Conversation()
