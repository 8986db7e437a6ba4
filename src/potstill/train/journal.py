"""The figures of every step: lines of metrics.jsonl, and trackers that are told as well."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from potstill.rundir import write_text
from potstill.train.trackers import Tracker

log = logging.getLogger(__name__)


class Journal:
    """Writes one line a step; a training that goes on goes on in the same file.

    Args:
        path: `metrics.jsonl`; None writes nothing (a process that is not the first).
        step: Steps that are done; lines of later ones are dropped, they will be done again.
        trackers: Are told the same figures. One that fails is left alone from then on, with a
            warning: training goes on.
    """

    def __init__(self, path: Path | None, step: int, trackers: Sequence[Tracker] = ()):
        self._path, self._trackers = path, list(trackers)
        self._file: TextIO | None = None
        if path is not None:
            _keep_lines(path, step)

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)

    def write(self, figures: Mapping[str, float]) -> None:
        """Keeps the figures of one step; they are in the file when this returns."""
        if self._file is not None:
            self._file.write(json.dumps(figures) + "\n")
            self._file.flush()
        for tracker in tuple(self._trackers):
            try:
                tracker.tell(figures)
            except Exception as error:  # a tracker's server may be down for a while, or for good
                log.warning("train: %s is not told any more: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)


def _keep_lines(path: Path, step: int) -> None:
    kept = []
    if path.exists() and step > 0:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    write_text(path, "".join(kept))
