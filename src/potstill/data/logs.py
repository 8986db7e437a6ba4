"""Production logs: stored completions and batch files, what was asked and what was answered.

A log row holds what was asked and what a model answered then. A record made of one says so in
`metadata["log"]`: its format, the model that answered, and how the answer ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from potstill.data.answers import BadRow, is_map
from potstill.data.privacy import LOG_KEY
from potstill.data.read import Row
from potstill.data.shapes import Shape, read_content, read_turns

Format = Literal["auto", "rows", "stored_completions", "batch"]

_FINISHED: dict[str, Literal["stop", "length", "content_filter"]] = {
    "length": "length",
    "incomplete": "length",
    "content_filter": "content_filter",
}
_PROTOCOL = (
    *("messages", "input", "instructions", "choices", "output", "request", "response", "body"),
    *("method", "url", "error", "object", "usage", "system_fingerprint", "service_tier", "tools"),
    *("tool_choice", "request_id", "temperature", "top_p", "max_tokens", "max_completion_tokens"),
    *("presence_penalty", "frequency_penalty", "seed", "response_format", "input_user", "status"),
)
"""Keys of a log row that are not metadata of the record."""

_WITHOUT_PROMPT = (
    "a batch answer without its prompt: no row has the custom_id {!r}; name the batch's input "
    "file beside it"
)


def read_log(row: Mapping[str, Any], format: Format = "auto") -> Shape | None:
    """What a log row says; None where the row is no log.

    Of several choices the first counts.

    Raises:
        BadRow: If the row is a log and cannot be used, or is none and `format` says it is.
    """
    if format == "rows":
        return None
    if format != "stored_completions":
        if is_map(row.get("body")):
            return _exchange(row, row["body"], _answer_body(row), "batch")
        if format == "auto" and _is_answer(row):
            raise BadRow(_WITHOUT_PROMPT.format(row["custom_id"]))
        if format == "batch":
            raise BadRow(
                f'no "body" with the prompt, as a batch row has; it has: {", ".join(list(row)[:8])}'
            )
    if is_map(row.get("request")):
        return _exchange(row, row["request"], _answer_body(row) or row, "stored_completion")
    asks = _first(row, ("messages", "input"))
    answers = _first(row, ("choices", "output"))
    if asks and answers and (format != "auto" or _is_log(row, asks, answers)):
        return _exchange(row, row, row, "stored_completion")
    if format == "stored_completions":
        raise BadRow(
            f"a stored completion has messages or input, and choices or output; this row has: "
            f"{', '.join(list(row)[:8])}"
        )
    return None


def _is_log(row: Mapping[str, Any], asks: str, answers: str) -> bool:
    """Tells a log from a plain row of input and output texts, and from a question's choices."""
    value = row[answers]
    first = value[0] if isinstance(value, list) and value else None
    if answers == "choices":
        return is_map(first) and (asks == "messages" or "message" in first)
    return is_map(first) or (isinstance(row[asks], list) and (asks == "input" or "model" in row))


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


def _is_answer(value: Any) -> bool:
    """Whether a row is a line of a batch's output or error file."""
    return (
        is_map(value)
        and "custom_id" in value
        and not is_map(value.get("body"))
        and bool({"response", "error"} & value.keys())
    )


def _answer_body(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of the response that a row holds; empty where none came."""
    response = row.get("response")
    if not is_map(response):
        return {}
    if isinstance(response.get("status_code"), int) and response["status_code"] >= 400:
        return {}
    body = response.get("body", response)
    return body if is_map(body) else {}


def _exchange(
    row: Mapping[str, Any], asked: Mapping[str, Any], answered: Mapping[str, Any], format: str
) -> Shape:
    key = _first(asked, ("messages", "input"))
    if key is None:
        raise BadRow('no "messages" or "input" in the request; only chats are understood')
    value = asked[key]
    is_text = key == "input" and isinstance(value, str)
    turns = read_turns([{"role": "user", "content": value}] if is_text else value, key)
    if isinstance(asked.get("instructions"), str) and asked["instructions"].strip():
        turns = [("system", asked["instructions"]), *turns]
    text, finish = _answer(answered)
    if turns[-1][0] == "assistant":
        if text is not None and turns[-1][1].strip() != text.strip():
            raise BadRow(
                f'"{key}" ends with an assistant turn that is not the logged answer; '
                f"a prompt ends with a user turn"
            )
        text, turns = turns[-1][1], turns[:-1]
    if turns[-1][0] != "user":
        raise BadRow(f'"{key}" ends with {turns[-1][0]}; a prompt ends with a user turn')
    model = next((m for m in (answered.get("model"), asked.get("model")) if isinstance(m, str)), "")
    metadata: dict[str, Any] = {
        LOG_KEY: {"format": format, "model": model, "finish_reason": finish}
    }
    if model:
        metadata["model"] = model
    return Shape(turns, text, metadata, _PROTOCOL)


def _answer(body: Mapping[str, Any]) -> tuple[str | None, str]:
    """Text of the answer, None where there is none, and how it ended."""
    if body.get("choices"):
        try:
            choice = body["choices"][0]
            message = choice["message"]
            content = message.get("content")
        except (KeyError, TypeError, IndexError, AttributeError):
            raise BadRow("choices[0].message.content is missing") from None
        _refuse_tools(message.get("tool_calls"), "choices.0.message.tool_calls")
        finish = _FINISHED.get(str(choice.get("finish_reason")), "stop")
    else:
        content, finish = body.get("output"), _FINISHED.get(str(body.get("status")), "stop")
        if isinstance(content, list):
            content = _output_text(content)
    if content is None or (isinstance(content, str) and not content.strip()):
        return None, finish  # refused, filtered, or no answer came
    return read_content(content, "the logged answer"), finish


def _output_text(items: Sequence[Any]) -> list[Any] | None:
    parts: list[Any] = []
    for index, item in enumerate(items):
        kind = item.get("type", "message") if is_map(item) else None
        if kind == "message":
            content = item.get("content")
            parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
        elif kind != "reasoning":
            _refuse_tools(item, f"output.{index}.type")
    return [part for part in parts if not (is_map(part) and part.get("type") == "refusal")] or None


def _refuse_tools(found: Any, at: str) -> None:
    if found:
        rule = f"{{not: {{field: {at}, exists: true}}}}"
        raise BadRow(
            f"the logged answer calls a tool, which is not understood; leave such rows out, "
            f"such as with data.where: {rule}"
        )


def joined(rows: Iterable[Row], answers: Iterable[Row]) -> Iterator[Row]:
    """Batch prompts with the answers of the same custom_id; the rest of the rows as they are.

    An answer that came wins over a failure. An answer without its prompt is a problem, and so
    are two answers that differ.
    """
    by_id: dict[str, Row] = {}
    problems: list[Row] = []
    for row in answers:
        if row.problem or not _is_answer(row.value):
            problems.append(row)
            continue
        key = str(row.value["custom_id"])
        first = by_id.get(key)
        if first is None or not _answer_body(first.value):
            by_id[key] = row
        elif _answer_body(row.value) not in ({}, _answer_body(first.value)):
            problems.append(
                Row(row.where, None, f"the custom_id {key!r} has another answer, {first.where}")
            )
    unused = set(by_id)
    for row in rows:
        key = str(row.value.get("custom_id")) if is_map(row.value) else ""
        if key in by_id:
            unused.discard(key)
            answer = {k: by_id[key].value.get(k) for k in ("response", "error")}
            row = row._replace(value={**row.value, **answer})
        yield row
    yield from problems
    for key, row in by_id.items():
        if key in unused:
            yield Row(row.where, None, _WITHOUT_PROMPT.format(key))


def is_answer_row(row: Row | None) -> bool:
    """Whether a row is an answer of a batch, to be joined with its prompt."""
    return row is not None and _is_answer(row.value)
