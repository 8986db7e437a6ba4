"""When the search for cycles of objects is put off: it costs much here, and finds nothing."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_MOST_NEW = 20_000
_entering = threading.Lock()
_inside: list[tuple[int, int, int]] = []
"""Thresholds that were found by those who are inside, in other threads too."""


@contextlib.contextmanager
def not_swept() -> Iterator[None]:
    """No search inside: JSON has no cycles, and ten thousand new dicts set it off often.

    The JSON of an answer with log-probabilities is parsed in half the time without it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def seldom_swept() -> Iterator[None]:
    """Looks for cycles among 20,000 new objects at a time, and in none that were there before.

    Thousands of answers on their way to the disk are new all the time and none of them is part
    of a cycle; looking through them took 6 to 9 % of asking, and through all modules a pause.
    Whoever is the last to leave leaves the process as the first one found it.
    """
    with _entering:
        _inside.append(gc.get_threshold())
        if len(_inside) == 1:
            gc.collect()
            gc.freeze()
            gc.set_threshold(_MOST_NEW, *_inside[0][1:])
    try:
        yield
    finally:
        with _entering:
            before = _inside.pop()  # the last one left is the first that came
            if not _inside:
                gc.set_threshold(*before)
                gc.unfreeze()
