"""Answers that come piece by piece: server-sent events in, one whole answer out.

Each API's events are put together to the tree that the same API sends in one piece, so there is
one reader for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from potstill.models.chat_format import NotAnAnswer, error_text, read_json

_DONE = b"[DONE]"
_SAID = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a chunk's delta that hold text of the model."""


class Pieces(Protocol):
    """Collects the events of one API's stream."""

    def add(self, event: dict[str, Any]) -> bool:
        """Takes one event; returns whether it brought text of the model.

        Raises:
            NotAnAnswer: If the event says that the answer failed.
        """
        ...

    def tree(self) -> dict[str, Any]:
        """What the API would have sent in one piece."""
        ...


class Lines:
    """The lines of a streamed reply, one after the other.

    Args:
        on_token: Called for every event that brings text, as it arrives. A server may put more
            than one token into an event; no event has less than one.
    """

    def __init__(self, pieces: Pieces, on_token: Callable[[], None]):
        self._pieces, self._on_token = pieces, on_token
        self._rest: list[bytes] = []
        self._is_streamed = False

    def add(self, line: bytes) -> None:
        """Takes one line; raises NotAnAnswer if it cannot be read."""
        if not line.startswith(b"data:"):
            self._rest.append(line)  # comments and names of events; or a whole answer
            return
        self._is_streamed = True
        data = line.removeprefix(b"data:").strip()
        if not data or data == _DONE:
            return
        event = read_json(data)
        if not isinstance(event, dict):
            raise NotAnAnswer(f"an event that is no object: {event!r}")
        if self._pieces.add(event):
            self._on_token()

    def tree(self) -> Any:
        """The answer as the API sends it in one piece; raises NotAnAnswer if there is none.

        A server that knows no streams sends it so itself.
        """
        return self._pieces.tree() if self._is_streamed else read_json(b"\n".join(self._rest))


class OpenAIPieces:
    """Chunks of a chat completion, or of a plain one.

    Args:
        on_text: Called with each piece of the answer's text.
    """

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self._on_text = on_text
        self._text: dict[str, list[str]] = {name: [] for name in _SAID}
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> bool:
        if event.get("error"):
            raise NotAnAnswer("the stream broke off: " + ": ".join(error_text(event)).strip(": "))
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        said = False
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {"content": choice.get("text")}
            for name, parts in self._text.items():
                if isinstance(piece := delta.get(name), str) and piece:
                    parts.append(piece)
                    said = True
                    if name == "content" and self._on_text is not None:
                        self._on_text(piece)
            self._finish = choice.get("finish_reason") or self._finish
        return said

    def tree(self) -> dict[str, Any]:
        message = {name: "".join(parts) for name, parts in self._text.items() if parts}
        choice = {"message": {"content": "", **message}, "finish_reason": self._finish}
        return {"choices": [choice], "usage": self._usage}


class AnthropicPieces:
    """Events of a message; `on_text` is called with each piece of the answer's text."""

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self._on_text = on_text
        self._blocks: dict[int, dict[str, Any]] = {}
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> bool:
        kind = event.get("type")
        if kind == "error":
            raise NotAnAnswer("the stream broke off: " + ": ".join(error_text(event)).strip(": "))
        if kind == "message_start":
            self._count(event.get("message") or {})
        elif kind == "message_delta":
            self._count(event)
            self._reason = (event.get("delta") or {}).get("stop_reason") or self._reason
        elif kind == "content_block_start":
            self._blocks[event.get("index", 0)] = dict(event.get("content_block") or {})
        elif kind == "content_block_delta":
            return self._extend(event.get("index", 0), event.get("delta") or {})
        return False

    def tree(self) -> dict[str, Any]:
        blocks = [block for _, block in sorted(self._blocks.items())]
        return {"content": blocks, "stop_reason": self._reason, "usage": self._usage}

    def _extend(self, index: int, delta: dict[str, Any]) -> bool:
        for name in ("text", "thinking"):
            if isinstance(piece := delta.get(name), str) and piece:
                block = self._blocks.setdefault(index, {"type": name})
                block[name] = block.get(name, "") + piece
                if name == "text" and self._on_text is not None:
                    self._on_text(piece)
                return True
        return False

    def _count(self, message: dict[str, Any]) -> None:
        usage = message.get("usage")
        self._usage |= usage if isinstance(usage, dict) else {}
