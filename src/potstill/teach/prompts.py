"""What the teacher is asked, apart from what the student learns."""

from __future__ import annotations

import json
import re

from potstill.config import GenerationConfig
from potstill.types import Message, Record

ANSWER_MARK = "Answer:"

_THINK_FIRST = (
    "Think about it step by step first. Then write one last line that begins with "
    f'"{ANSWER_MARK}" and holds nothing but the answer, in the form asked for above.'
)
_DENSITY = (
    "Write the summary in {rounds} rounds, each denser than the one before. Round 1 is a plain "
    "summary. In every further round, find one to three important facts (names, numbers, causes) "
    "that the last summary leaves out, and write it again at the same length with those facts "
    "in it and without filler; drop nothing that was in. No summary is longer than {words} "
    "words, and each can be understood without the original text.\n"
    "Reply with one JSON object and nothing else: "
    '{{"rounds": [{{"added": "facts added in this round", "summary": "..."}}, ...]}} '
    "with {rounds} entries."
)
_NUM_ROUNDS = 4
# A reasoning model whose template opens the tag itself answers with the closing tag only.
_TAG = "(?:think|thinking|reasoning)"
_THOUGHT = re.compile(rf"\A\s*(?:<{_TAG}>)?(.*?)</{_TAG}>", re.S)
_OPEN_THOUGHT = re.compile(rf"\A\s*<{_TAG}>", re.S)
_MARK = re.compile(
    r"^[ \t>*_#-]*(?:final[ \t]+)?answer[ \t]*[*_]*[ \t]*[:：][ \t]*[*_]*[ \t]*", re.I | re.M
)


def teacher_prompt(record: Record, config: GenerationConfig) -> Record:
    """The record as the teacher is asked it: instructions join the last user turn.

    The user's own system prompt and history stay as they are.
    """
    if config.prompting == "plain":
        return record
    if config.prompting == "chain_of_thought":
        instruction = _THINK_FIRST
    else:
        instruction = _DENSITY.format(rounds=_NUM_ROUNDS, words=config.max_summary_words)
    return _told(record, instruction)


def lessons(record: Record, config: GenerationConfig) -> tuple[Record, ...]:
    """The training rows that an accepted record gives: itself; with `reasoning: both` a second.

    The second one is told to think first, as the teacher was, and its answer is the reasoning
    and then the answer; so the prompt says which of the two is wanted. System prompt and history
    are the record's own in both. A record without reasoning gives itself only.

    Source:
        Hsieh et al. (2023), "Distilling step-by-step! Outperforming larger language models with
        less training data and smaller model sizes", section 3.2; here both tasks weigh the
        same. arXiv:2305.02301.
    """
    reasoning = str(record.metadata.get("reasoning") or "")
    if config.reasoning != "both" or not reasoning or record.reference is None:
        return (record,)
    update = {
        "id": f"{record.id}#reasoned",
        "reference": join_reasoning(reasoning, record.reference),
        # The prompt is a whole one now: nothing is to be put around bare fields again.
        "metadata": {key: value for key, value in record.metadata.items() if key != "fields"},
    }
    return record, _told(record, _THINK_FIRST).model_copy(update=update)


def _told(record: Record, instruction: str) -> Record:
    *history, last = record.messages
    asked = Message(role="user", content=f"{last.content}\n\n{instruction}")
    return record.model_copy(update={"messages": (*history, asked)})


def split_answer(text: str, config: GenerationConfig) -> tuple[str, str]:
    """(reasoning, answer) of what the teacher said to `teacher_prompt`.

    The answer is empty where the asked-for form was not kept: nothing tells the answer from
    the reasoning then, and the text is kept as reasoning.
    """
    thought, text = split_reasoning(text)
    if config.prompting == "chain_of_thought":
        reasoning, answer = _split_at_mark(text)
    elif config.prompting == "chain_of_density":
        reasoning, answer = _last_summary(text)
    else:
        return thought, text
    return "\n\n".join(part for part in (thought, reasoning) if part), answer


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a model that thinks in tags before it answers.

    A thought that was never closed has no answer after it.
    """
    if "<" not in text:
        return "", text  # most answers, and the search below reads them to their end
    match = _THOUGHT.match(text)
    if match:
        return match.group(1).strip(), text[match.end() :].strip()
    if _OPEN_THOUGHT.match(text):
        return _OPEN_THOUGHT.sub("", text).strip(), ""
    return "", text


def join_reasoning(reasoning: str, answer: str) -> str:
    """What a student learns that is to reason too; the answer stands after its mark."""
    return f"{reasoning}\n{ANSWER_MARK} {answer}" if reasoning else answer


def _split_at_mark(text: str) -> tuple[str, str]:
    marks = list(_MARK.finditer(text))
    if not marks:
        return text.strip(), ""
    last = marks[-1]
    answer = text[last.end() :].strip()
    # "**Answer: B**" closes its emphasis after the answer.
    answer = re.sub(r"\s*(?:\*\*|__)\s*\Z", "", answer) if answer.count("**") % 2 else answer
    return text[: last.start()].strip(), answer


def _last_summary(text: str) -> tuple[str, str]:
    start, end = text.find("{"), text.rfind("}")
    try:
        rounds = json.loads(text[start : end + 1], strict=False)["rounds"]
        summaries = [str(entry["summary"]).strip() for entry in rounds]
    except (ValueError, KeyError, TypeError):
        return text.strip(), ""
    if not summaries:
        return text.strip(), ""
    return "\n\n".join(summaries[:-1]), summaries[-1]
