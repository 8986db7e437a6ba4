"""New prompts in the style of real ones: what the teacher is asked, and what it wrote.

The teacher is shown a few training prompts and asked for more of their kind, as in
Self-Instruct; nothing of a test set is ever shown.

Source:
    Wang et al. (2023), "Self-Instruct: aligning language models with self-generated
    instructions". arXiv:2212.10560.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from potstill.config import DataGenerationConfig
from potstill.data.load import content_id
from potstill.data.privacy import LOG_KEY
from potstill.tasks.options import answer_set
from potstill.teach.prompts import split_reasoning
from potstill.types import Message, Record, Rejection, Response

MOST_SEEDS = 2000
"""Real prompts that examples are drawn from: a fair sample, so that memory stays flat."""

LONGEST_SEED = 8000
"""Characters; a longer prompt is no example."""

_CARRIED = (
    *("fields", "labels", "label_names", "source_lang", "source_language"),
    *("target_lang", "target_language", "tgt_lang"),
)
"""Metadata that says how a prompt is put and its answer read; the same for all of a style."""

_ASK = """\
Below are {num} messages that people sent to an assistant.

{examples}

Write {each} new messages that could come from the same people: of the same kind, in the same
language and form, about as long, with everything that is needed to answer them. Vary topics,
details, names, numbers and difficulty. Do not repeat or rephrase a message above or one of your
own, and do not answer any.{wishes}

Reply with one JSON object and nothing else: {{"prompts": ["...", ...]}} with {each} entries."""

_LIST_KEYS = ("prompts", "messages", "requests", "questions", "items")
_TEXT_KEYS = ("prompt", "message", "text", "content", "question", "input", "request")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.S)
_ITEM = re.compile(r"^[ \t]*(?:\*\*)?(?:\d{1,3}[.)]|[-*•])(?:\*\*)?[ \t]+", re.M)


class Seeds:
    """Real prompts that the teacher is shown; each request shows some that are put alike.

    Args:
        records: The training prompts. Of a conversation the first turn is an example.
        seed: Start of the random numbers: the same prompts and seed give the same requests.
    """

    def __init__(self, records: Iterable[Record], *, seed: int):
        self._seed = seed
        self.num_records = 0
        kept: list[tuple[int, str, Record]] = []
        for record in records:
            self.num_records += 1
            if len(_text(record)) > LONGEST_SEED:
                continue
            digest = hashlib.blake2b(record.id.encode("utf-8", "replace"), digest_size=8).digest()
            one = (-int.from_bytes(digest, "big"), record.id, record)
            (heapq.heappush if len(kept) < MOST_SEEDS else heapq.heappushpop)(kept, one)
        self._seeds = [record for _, _, record in sorted(kept, key=lambda one: one[:2])]
        self._styles: dict[str, list[Record]] = {}
        for record in self._seeds:
            self._styles.setdefault(_style(record), []).append(record)

    def __len__(self) -> int:
        return len(self._seeds)

    def examples(self, number: int, config: DataGenerationConfig) -> list[Record]:
        """The prompts that one request shows: the same ones each time."""
        rng = random.Random(f"{self._seed}:{number}")
        alike = self._styles[_style(rng.choice(self._seeds))]
        return rng.sample(alike, min(config.num_seeds, len(alike)))

    def request(self, number: int, config: DataGenerationConfig) -> Record:
        """One request for new prompts."""
        examples = self.examples(number, config)
        shown = [f"<message {n}>\n{_text(r)}\n</message {n}>" for n, r in enumerate(examples, 1)]
        if system := _system(examples[0]):
            shown.insert(0, f"<instructions of the assistant>\n{system}\n</instructions>")
        text = _ASK.format(
            num=len(examples),
            examples="\n\n".join(shown),
            each=config.num_each,
            wishes=f"\n\n{config.instruction.strip()}" if config.instruction.strip() else "",
        )
        metadata = {LOG_KEY: {}} if any(LOG_KEY in r.metadata for r in examples) else {}
        message = Message(role="user", content=text)
        return Record(id=f"prompts-{number:06d}", messages=(message,), metadata=metadata)


class Written(NamedTuple):
    """What one reply gave."""

    records: list[Record]
    rejected: list[Rejection]


def new_records(response: Response, examples: Sequence[Record]) -> Written:
    """The new prompts of a reply as records, put as the examples are: system prompt, fields.

    They are marked by `metadata["synthetic"]`, and `metadata["seeds"]` names the examples.
    Reasons of rejections are `error`, `unparsable` and `form` (the examples list options or
    labels, and the new prompt does not).
    """
    if response.finish_reason == "error":
        return Written([], [_rejection(response.record_id, "error", response.error)])
    texts = read_prompts(response.text, is_cut=response.finish_reason == "length")
    if not texts:
        detail = " ".join(response.text.split())[:120]
        return Written([], [_rejection(response.record_id, "unparsable", detail)])
    first = examples[0]
    history = [message for message in first.messages if message.role == "system"]
    metadata: dict[str, Any] = {
        **{key: first.metadata[key] for key in _CARRIED if key in first.metadata},
        **({LOG_KEY: {}} if any(LOG_KEY in r.metadata for r in examples) else {}),
        "synthetic": True,
        "seeds": [record.id for record in examples],
    }
    is_closed = all(answer_set(record) for record in examples)
    found = Written([], [])
    for text in texts:
        messages = (*history, Message(role="user", content=text))
        record = Record(id=f"new-{content_id(messages, None)}", messages=messages)
        record = record.model_copy(update={"metadata": metadata})
        if is_closed and not answer_set(record):
            found.rejected.append(_rejection(record.id, "form", " ".join(text.split())[:120]))
        else:
            found.records.append(record)
    return found


def read_prompts(text: str, *, is_cut: bool = False) -> list[str]:
    """The prompts in a reply, in its order; none where nothing can be read. Never raises.

    Read are JSON with a list of texts or of objects that hold one, with words or fences around
    it; the whole texts of JSON that is broken or cut; and lists of numbered or marked lines.

    Args:
        is_cut: Whether the reply was ended by its length, so that the last text is not whole.
    """
    text = split_reasoning(text)[1]
    found = _from_json(text)
    if found is None and (start := text.find("[")) >= 0 and '"' in text[start:]:
        found = _from_broken(text[start:])
    if found is None:
        found = _from_lines(text)
        found = found[:-1] if is_cut else found
    # Half a character, as a reply may hold it, cannot be written down.
    whole = (prompt.encode("utf-8", "replace").decode("utf-8").strip() for prompt in found)
    return [prompt for prompt in whole if prompt]


def _from_json(text: str) -> list[str] | None:
    """Texts of the first JSON value in a reply that holds a list of some; None without one."""
    decoder = json.JSONDecoder(strict=False)
    for match in re.finditer(r"[\[{]", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if found := _texts(value):
            return found
    return None


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        lists = [value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)]
        lists += [part for part in value.values() if isinstance(part, list)]
        return next((found for part in lists if (found := _texts(part))), [])
    if not isinstance(value, list):
        return []
    found = []
    for item in value:
        if isinstance(item, dict):
            texts = [item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)]
            item = texts[0] if texts else None
        if isinstance(item, str):
            found.append(item)
    return found


def _from_broken(text: str) -> list[str] | None:
    """The whole strings of JSON that does not end, or not well; keys are left out."""
    found = []
    for match in _STRING.finditer(text):
        if text[match.end() :].lstrip().startswith(":"):
            continue
        try:
            found.append(json.loads(match.group(), strict=False))
        except ValueError:
            continue
    return found or None


def _from_lines(text: str) -> list[str]:
    starts = list(_ITEM.finditer(text))
    ends = [*(match.start() for match in starts), len(text)][1:]
    return [text[match.end() : end] for match, end in zip(starts, ends, strict=False)]


def _text(record: Record) -> str:
    return next(message.content for message in record.messages if message.role == "user")


def _system(record: Record) -> str:
    return "\n\n".join(m.content for m in record.messages if m.role == "system")


def _style(record: Record) -> str:
    carried = {key: record.metadata.get(key) for key in _CARRIED}
    return json.dumps([_system(record), carried], sort_keys=True, default=str)


def _rejection(record_id: str, reason: str, detail: str) -> Rejection:
    return Rejection(record_id=record_id, check="new_prompts", reason=reason, detail=detail)
