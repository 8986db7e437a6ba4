"""Rows to prompts: which keys of a row are the question, the answer and the rest.

Each shape is a function from a row to (messages, reference, metadata, keys it used). Rows of
bare fields (a premise and a hypothesis, a text and its label) carry no instruction: they are
marked with `metadata["fields"]`, and `Task.turns` adds the instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from potstill.data.answers import (
    BadRow,
    brief,
    inner_json,
    is_map,
    option_key,
    read_answers,
    read_choices,
    read_label,
)

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
SYSTEM_KEYS = ("system", "system_prompt")
ANSWER_KEYS = ("answer", "answers", "answerKey", "answer_key")
CONTEXT_KEYS = ("context", "passage")
CHOICE_KEYS = ("choices", "options")
DOCUMENT_KEYS = ("document", "article", "text", "dialogue")
SUMMARY_KEYS = ("summary", "highlights")
COMPLETION_KEYS = ("completion", "response", "reference", "answer", "output")
KNOWN = (
    *("id", "messages", "conversations", "prompt", "question", "premise", "hypothesis", "label"),
    *("instruction", "input", "source", "target", "translation", "sentence", "metadata"),
    *SYSTEM_KEYS,
    *ANSWER_KEYS,
    *CONTEXT_KEYS,
    *CHOICE_KEYS,
    *DOCUMENT_KEYS,
    *SUMMARY_KEYS,
    *COMPLETION_KEYS,
)
"""Keys that mean something, in the order they are looked for."""


class Shape(NamedTuple):
    """What a row says."""

    messages: list[tuple[str, str]]
    """(role, content), the answer to the last user turn left out."""

    reference: str | None
    metadata: dict[str, Any]
    used: tuple[str, ...]
    """Keys of the row that are not metadata any more."""


def read_shape(row: Mapping[str, Any], task: str | None = None) -> Shape:
    """Finds the first shape whose keys the row has.

    Raises:
        BadRow: If no shape fits, or the one that fits is malformed.
    """
    for keys, reader in SHAPES:
        if all(row.get(key) is not None for key in keys):
            return _with_system(reader(row, task), row)
    fields = ", ".join(list(row)[:8]) or "nothing"
    raise BadRow(
        f'no "messages", "prompt" or "question" in this row; it has: {fields}. '
        f"Say which column it is with data.columns, such as {{prompt: {next(iter(row), 'text')}}}"
    )


def _with_system(shape: Shape, row: Mapping[str, Any]) -> Shape:
    key = next((key for key in SYSTEM_KEYS if isinstance(row.get(key), str)), None)
    if key is None or key in shape.used or not row[key].strip():
        return shape
    if shape.messages[0][0] == "system":
        raise BadRow(f'two system prompts: one in the messages and one under "{key}"; keep one')
    messages = [("system", row[key]), *shape.messages]
    return shape._replace(messages=messages, used=(*shape.used, key))


def _messages(row: Mapping[str, Any], task: str | None) -> Shape:
    turns = read_turns(row["messages"], "messages")
    return _split_answer(turns, row, ("messages",))


def _sharegpt(row: Mapping[str, Any], task: str | None) -> Shape:
    turns = read_turns(row["conversations"], "conversations")
    return _split_answer(turns, row, ("conversations",))


def read_turns(value: Any, key: str) -> list[tuple[str, str]]:
    """(role, content) of a list of turns, whether it says role/content or from/value."""
    if isinstance(value, str):
        value = inner_json(value, key)
    if not isinstance(value, list) or not value:
        raise BadRow(f'"{key}" must be a list of turns, got {brief(value)}')
    turns = []
    for index, turn in enumerate(value):
        at = f"{key}[{index}]"
        if not isinstance(turn, Mapping):
            raise BadRow(f"{at} must be an object with role and content, got {brief(turn)}")
        name = turn.get("role", turn.get("from"))
        role = ROLES.get(name.casefold()) if isinstance(name, str) else None
        if role is None:
            raise BadRow(f"{at} has the role {name!r}; there are: system, user, assistant")
        if role == "system" and any(r != "system" for r, _ in turns):
            raise BadRow(f"{at} is a system turn after other turns; put it first")
        turns.append((role, read_content(turn.get("content", turn.get("value")), at)))
    if all(role != "user" for role, _ in turns):
        raise BadRow(f'no user turn in "{key}"; a prompt needs one')
    return turns


def read_content(value: Any, at: str) -> str:
    """Text of a turn, of its parts where it is a list of them."""
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, Mapping) else None for part in value}
        if kinds - {"text", "input_text", "output_text"}:
            raise BadRow(f"{at} holds parts that are not text; only text is understood")
        value = "\n".join(str(part.get("text", "")) for part in value)
    if value is None:
        raise BadRow(f"{at} has no content; tool calls are not understood, leave such rows out")
    if not isinstance(value, str):
        raise BadRow(f"the content of {at} must be text, got {brief(value)}")
    if not value.strip():
        raise BadRow(f"the content of {at} is empty; fill it or leave the row out")
    return value


def _split_answer(turns: list[tuple[str, str]], row: Mapping[str, Any], used: tuple) -> Shape:
    """Takes the last assistant turn out of the prompt: it is the reference."""
    reference = None
    if turns[-1][0] == "assistant":
        reference = turns[-1][1]
        turns = turns[:-1]
        if turns[-1][0] == "assistant":
            same = turns[-1][1].strip() == reference.strip()
            finding = "the answer stands there twice" if same else "two assistant turns"
            raise BadRow(
                f"{finding} at the end, so the prompt would hold an answer; keep one of them"
            )
    if turns[-1][0] != "user":
        raise BadRow(f"no user turn before the answer: it follows {turns[-1][0]}")
    if reference is None:
        key = next((k for k in ("reference", "completion", "answer") if k in row), None)
        if key and isinstance(row[key], str) and row[key].strip():
            return Shape(turns, row[key], {}, (*used, key))
    return Shape(turns, reference, {}, used)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f'"{key}" must be text, got {brief(value)}')
    if not value.strip():
        raise BadRow(f'"{key}" is empty; fill it or leave the row out')
    return value


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


def _optional(row: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    key = _first(row, keys)
    return (None, ()) if key is None else (_text(row, key), (key,))


def _premise_hypothesis(row: Mapping[str, Any], task: str | None) -> Shape:
    premise, hypothesis = _text(row, "premise"), _text(row, "hypothesis")
    label = read_label(row, names_needed=True)
    metadata = {"fields": ["premise", "hypothesis"]} | ({"label": label} if label else {})
    content = f"Premise: {premise}\nHypothesis: {hypothesis}"
    return Shape([("user", content)], label, metadata, ("premise", "hypothesis", "label"))


def _question(row: Mapping[str, Any], task: str | None) -> Shape:
    question, metadata = row["question"], {"fields": ["question"]}
    choice_key, context_key = _first(row, CHOICE_KEYS), _first(row, CONTEXT_KEYS)
    choices = row[choice_key] if choice_key else None
    if is_map(question):  # CommonsenseQA and ARC keep the options inside the question
        choices = choices or question.get("choices")
        question = question.get("stem")
    question = _text({"question": question}, "question")
    answer_key = _first(row, (*ANSWER_KEYS, "completion", "response", "reference"))
    answers = read_answers(row[answer_key]) if answer_key else []
    parts = []
    if context_key:
        parts.append(f"Passage: {_text(row, context_key)}\n\n")
        metadata["fields"] = ["context", "question"]
    if choices is None:
        content = "".join([*parts, f"Question: {question}"]) if context_key else question
        if len(answers) > 1:
            metadata["answers"] = answers
        reference = answers[0] if answers else None
    else:
        options = read_choices(choices)
        lines = "\n".join(f"({key}) {text}" for key, text in options.items())
        content = "".join([*parts, f"Question: {question}\nOptions:\n{lines}"])
        reference = option_key(row[answer_key], options) if answer_key else None
        metadata["fields"].append("choices")
        metadata["choices"] = options
        if reference is not None:
            metadata |= {"answer": reference, "answer_text": options[reference]}
    used = ("question", *(key for key in (choice_key, context_key, answer_key) if key))
    return Shape([("user", content)], reference, metadata, used)


def _alpaca(row: Mapping[str, Any], task: str | None) -> Shape:
    content = _text(row, "instruction")
    if isinstance(row.get("input"), str) and row["input"].strip():
        content += f"\n\n{row['input']}"
    reference, used = _optional(row, ("output", "response", "completion", "answer", "reference"))
    return Shape([("user", content)], reference, {}, ("instruction", "input", *used))


def _translation(row: Mapping[str, Any], task: str | None) -> Shape:
    pair = row["translation"]
    if not is_map(pair) or len(pair) < 2:
        raise BadRow('"translation" must hold two languages, such as {"en": ..., "hi": ...}')
    source = row.get("source_lang") or next(iter(pair))
    target = row.get("target_lang") or next(key for key in pair if key != source)
    if source not in pair or target not in pair:
        raise BadRow(f"no {source!r} or {target!r} in translation; it has: {', '.join(pair)}")
    metadata = {"fields": ["source"], "source_lang": source, "target_lang": target}
    return Shape([("user", _text(pair, source))], _text(pair, target), metadata, ("translation",))


def _source_target(row: Mapping[str, Any], task: str | None) -> Shape:
    reference, used = _optional(row, ("target",))
    metadata = {"fields": ["source"]}
    return Shape([("user", _text(row, "source"))], reference, metadata, ("source", *used))


def _summary(row: Mapping[str, Any], task: str | None) -> Shape:
    key = _first(row, DOCUMENT_KEYS)
    if key is None:
        raise BadRow("a summary without its document; there are: " + ", ".join(row))
    reference, used = _optional(row, SUMMARY_KEYS)
    metadata = {"fields": ["document"]}
    return Shape([("user", _text(row, key))], reference, metadata, (key, *used))


def _text_alone(key: str) -> Callable[[Mapping[str, Any], str | None], Shape]:
    def read(row: Mapping[str, Any], task: str | None) -> Shape:
        fields = {"classification": "text", "summarization": "document", "translation": "source"}
        label = read_label(row)
        field = "text" if label is not None else fields.get(task or "")
        metadata: dict[str, Any] = {"fields": [field]} if field else {}
        if label is not None:
            metadata["label"] = label
        return Shape([("user", _text(row, key))], label, metadata, (key, "label"))

    return read


def _prompt(row: Mapping[str, Any], task: str | None) -> Shape:
    if isinstance(row["prompt"], list):  # preference data keeps turns under "prompt"
        turns = read_turns(row["prompt"], "prompt")
        return _split_answer(turns, row, ("prompt",))
    reference, used = _optional(row, COMPLETION_KEYS)
    if reference is None and row.get("label") is not None:
        reference, used = read_label(row), ()
    return Shape([("user", _text(row, "prompt"))], reference, {}, ("prompt", *used))


def _input_output(row: Mapping[str, Any], task: str | None) -> Shape:
    reference, used = _optional(row, ("output", "target", *COMPLETION_KEYS))
    return Shape([("user", _text(row, "input"))], reference, {}, ("input", *used))


Reader = Callable[[Mapping[str, Any], str | None], Shape]
SHAPES: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("messages",), _messages),
    (("conversations",), _sharegpt),
    (("premise", "hypothesis"), _premise_hypothesis),
    (("question",), _question),
    (("instruction",), _alpaca),
    (("prompt",), _prompt),
    (("translation",), _translation),
    (("source",), _source_target),
    *(((key,), _summary) for key in SUMMARY_KEYS),
    (("input",), _input_output),
    *(((key,), _text_alone(key)) for key in ("text", "sentence", "document", "article")),
)
"""Keys that a row must have -> how it is read; the first that fits."""
