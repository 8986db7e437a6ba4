"""The text of an answer while its tokens come: what is certain of it, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_NOT_WHOLE = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of a character are decoded to until its last one is there."""


class Teller:
    """Tells one answer in pieces that add up to its text.

    What may still change is kept back: a character whose last byte is to come, and the beginning
    of a stop sequence.

    Args:
        tell: Called with each piece, by whoever decodes.
        stops: Texts that end the answer and are no part of it.
    """

    def __init__(self, tell: Callable[[str], None], stops: Sequence[str] = ()):
        self._tell, self._stops = tell, stops
        self._num_told = 0

    def add(self, text: str, *, is_whole: bool) -> None:
        """Takes the text so far; `is_whole` where nothing comes after it."""
        end = len(text) if is_whole else _num_certain(text, self._stops)
        if end > self._num_told:
            piece, self._num_told = text[self._num_told : end], end
            self._tell(piece)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop sequence in it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))], bool(places)


def _num_certain(text: str, stops: Sequence[str]) -> int:
    """How many characters stay as they are, whatever comes."""
    text = text.rstrip(_NOT_WHOLE)
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return len(text) - max(begun, default=0)
